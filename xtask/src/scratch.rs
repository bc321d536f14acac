//! The agent's test of scratch space, in a node: it needs root, device-mapper and a memory disk of its own.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::{
    places,
    tally::{Tally, counted},
};

const TEST: [&str; 5] = ["test", "--quiet", "--locked", "--package=uvm-agent", "--test=scratch"];

/// Builds the test and runs it in a node.
///
/// # Errors
/// When it does not build, or the node does not boot.
pub fn run() -> Result<Tally> {
    // Compiled here, where that is quick: in the node cargo finds nothing left to do.
    let status =
        Command::new("cargo").args(TEST).arg("--no-run").current_dir(places::repository()).status()?;
    ensure!(status.success(), "the test of scratch space does not build");
    let this = std::env::current_exe().context("this program's own path")?;
    let mut node = Command::new(this);
    node.args(["node", "--", "cargo", "--offline"]).args(TEST).args(["--", "--ignored"]);
    counted(node.current_dir(places::repository()))
}
