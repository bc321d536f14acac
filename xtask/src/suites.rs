//! The suites that drive the product in the nested node.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use indicatif::ProgressBar;

use crate::node::NodeConfig;
use crate::tally::{Tally, counted};
use crate::{image, places, redis_image};

/// Builds product, test images and suites, and runs the suites in a node of their own.
///
/// # Errors
/// When something does not build, or the node does not boot.
pub fn run() -> Result<Tally> {
    let product = image::build()?;
    redis_image::busybox(&product, &ProgressBar::hidden())?;
    redis_image::redis(&product, &ProgressBar::hidden())?;
    let build = ["build", "--quiet", "--locked", "--package=testbed"];
    let status = Command::new("cargo").args(build).current_dir(places::repository()).status()?;
    ensure!(status.success(), "the suites do not build");
    let this = std::env::current_exe().context("this program's own path")?;
    let share = NodeConfig::default().share;
    fs::create_dir_all(&share).with_context(|| share.display().to_string())?;
    let progress = share.join("suites");
    remove(&progress)?;
    let mut node = Command::new(this);
    node.args(["node", "--"]).arg(places::target().join("debug/node-suites")).arg("--product").arg(product);
    node.arg("--progress").arg(&progress);
    let mut tally = counted(&mut node)?;
    // The suites always end with their summary, unless their node's kernel crashed or hung under them, or a case did
    // not end. Those that are left go on in another node.
    for _ in 1..NODES {
        if tally.passed > 0 {
            break;
        }
        eprintln!("suites: the node ended before they did: they go on in another");
        tally = counted(&mut node)?;
    }
    remove(&progress)?;
    Ok(tally)
}

fn remove(progress: &Path) -> Result<()> {
    match fs::remove_file(progress) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| progress.display().to_string())
        }
        _ => Ok(()),
    }
}

/// How many nodes the suites may use up.
const NODES: u32 = 4;
