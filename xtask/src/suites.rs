//! The suites that drive the product in the nested node.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use indicatif::ProgressBar;

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
    let mut node = Command::new(this);
    node.args(["node", "--"]).arg(places::target().join("debug/node-suites")).arg("--product").arg(product);
    for _ in 1..TRIES {
        let tally = counted(&mut node)?;
        // The suites always end with their summary, unless their node's kernel crashed under them.
        if tally.passed > 0 {
            return Ok(tally);
        }
        eprintln!("suites: the node ended before they did: once more");
    }
    counted(&mut node)
}

/// How often the suites are run when their node ends under them.
const TRIES: u32 = 3;
