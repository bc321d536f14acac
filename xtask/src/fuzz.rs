//! `cargo xtask fuzz`: the fuzz targets of `tests/fuzz`, each for a while; in `cargo xtask test`, a short one.
//!
//! The targets are built with the stable compiler that builds everything else, which is told to accept the
//! instrumentation flags. What a target finds lies in `target/fuzz/artifacts`.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::progress::Progress;
use crate::tally::Tally;
use crate::{image, places, setup};

/// The targets, by the name of their program.
const TARGETS: [&str; 5] = ["image", "report", "parameters", "layer_tar", "erofs_writer"];
/// How long each runs in the tests.
const SHORT_SECONDS: u32 = 10;
/// Longest input: what is parsed is decided by far fewer bytes.
const MAX_BYTES: u32 = 64 * 1024;

/// Arguments of `fuzz`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// How long each target runs
    #[arg(long, default_value_t = 300)]
    seconds: u32,
    /// Targets to run, by name [default: all]
    targets: Vec<String>,
}

/// Runs targets for as long as asked; true when none found anything.
///
/// # Errors
/// An unknown target, or targets that do not build.
pub fn run(arguments: &Arguments) -> Result<bool> {
    for name in &arguments.targets {
        let known = TARGETS.contains(&name.as_str());
        ensure!(known, "expected one of the targets {}, found {name}", TARGETS.join(", "));
    }
    let wanted =
        |target: &&&str| arguments.targets.is_empty() || arguments.targets.iter().any(|n| n == **target);
    let targets: Vec<&str> = TARGETS.iter().filter(wanted).copied().collect();
    Ok(run_all(&targets, arguments.seconds)?.failed == 0)
}

/// Runs every target for a short while.
///
/// # Errors
/// When the targets do not build.
pub fn short() -> Result<Tally> {
    run_all(&TARGETS, SHORT_SECONDS)
}

fn run_all(targets: &[&str], seconds: u32) -> Result<Tally> {
    setup::ensure_all()?;
    setup::ensure_cargo_fuzz()?;
    let folder = places::target().join("fuzz");
    seeds(&folder)?;
    build(&folder)?;
    let mut total = Tally::default();
    for target in targets {
        total.add(Tally::of_check(run_one(&folder, target, seconds)?));
    }
    Ok(total)
}

fn build(folder: &Path) -> Result<()> {
    let progress = Progress::start("build fuzz targets");
    let mut cargo = Command::new("cargo");
    cargo.current_dir(places::repository().join("tests/fuzz")).env("RUSTC_BOOTSTRAP", "1");
    cargo.args(["fuzz", "build", "--fuzz-dir", ".", "--target-dir"]).arg(folder);
    let output = cargo.output().context("cannot start cargo fuzz")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the fuzz targets do not build:\n{said}");
    progress.finish("done");
    Ok(())
}

/// Small valid inputs, from which mutation starts.
fn seeds(folder: &Path) -> Result<()> {
    let folder = folder.join("seeds");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let mut seeds = Command::new("cargo");
    seeds.current_dir(places::repository()).args(["run", "--quiet", "--locked", "--package=testbed"]);
    let status = seeds.args(["--bin=fuzz-seeds", "--"]).arg(folder).status()?;
    ensure!(status.success(), "the seeds of the fuzz targets cannot be made");
    Ok(())
}

/// Runs one target; true when it found nothing. Its last lines are shown when it did.
fn run_one(folder: &Path, target: &str, seconds: u32) -> Result<bool> {
    let (corpus, artifacts) = (folder.join("corpus").join(target), folder.join("artifacts"));
    fs::create_dir_all(&corpus)?;
    fs::create_dir_all(&artifacts)?;
    let progress = Progress::start(format!("fuzz {target}"));
    let output = Command::new(folder.join(image::TRIPLE).join("release").join(target))
        .arg(corpus)
        .arg(folder.join("seeds").join(target))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={MAX_BYTES}"))
        .arg(format!("-artifact_prefix={}/{target}-", artifacts.display()))
        .output()
        .with_context(|| format!("cannot start fuzz target {target}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let runs = said.lines().rev().find(|line| line.starts_with("Done")).unwrap_or("").to_owned();
    if output.status.success() {
        progress.finish(&runs);
        return Ok(true);
    }
    progress.finish("found something");
    let lines: Vec<&str> = said.lines().collect();
    eprintln!("{}", lines[lines.len().saturating_sub(40)..].join("\n"));
    Ok(false)
}
