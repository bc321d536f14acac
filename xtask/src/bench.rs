//! `cargo xtask bench`: the product beside others, in the node or on this machine, and the guard of its counts.
//!
//! The benches themselves are in `tests/src/bench`; this builds what they need and puts their results into
//! `target/bench`.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::tally::Tally;
use crate::{image, places};

/// Benches that need no virtual machine and are their crates' own: a name, and the package that `cargo bench` runs.
/// They run on this machine, whose processor is not emulated.
const OF_CRATES: [(&str, &str); 3] =
    [("layers", "oci-layer"), ("measure", "igvm-builder"), ("policy", "policy")];

/// Arguments of `bench`; those of `node-bench` follow after `--`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Benches to run [default: all]
    names: Vec<String>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    /// An older report (`bench.json`); what has changed since is printed
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    /// Compare counts and ratios with the committed baseline, and fail when one is worse by more than its margin;
    /// without names, only what needs no machine
    #[arg(long)]
    guard: bool,
    /// Write what is counted into the committed baseline
    #[arg(long)]
    update_baseline: bool,
    /// Run on this machine: its KVM must boot Linux
    #[arg(long)]
    here: bool,
    /// Memory of the node in MiB
    #[arg(long, default_value_t = crate::node::DEFAULT_MEMORY_MIB)]
    node_memory: u64,
    /// More for the harness: `-- --rounds 10 --vcpus 2 --firecracker PATH --vmlinux PATH …`
    #[arg(last = true)]
    more: Vec<OsString>,
}

/// Builds the product, and runs benches or the guard.
///
/// # Errors
/// When something does not build, or the node does not boot.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let everything = arguments.names.is_empty() && !arguments.guard && !arguments.update_baseline;
    let is_of_crate = |name: &String| OF_CRATES.iter().any(|(known, _)| known == name);
    let (of_crates, names): (Vec<_>, Vec<_>) = arguments.names.iter().cloned().partition(is_of_crate);
    let mut good = true;
    for (name, package) in OF_CRATES {
        if everything || of_crates.iter().any(|wanted| wanted == name) {
            good &= bench_crate(name, package)?;
        }
    }
    if of_crates.is_empty() || !names.is_empty() {
        good &= run_harness(arguments, &names)?;
    }
    Ok(ExitCode::from(u8::from(!good)))
}

/// Runs the benches of one crate and keeps what they print; true when they succeed.
fn bench_crate(name: &str, package: &str) -> Result<bool> {
    let crates =
        ["crates/", ""].map(|folder| places::repository().join(format!("{folder}{package}/benches")));
    if !crates.iter().any(|benches| benches.is_dir()) {
        eprintln!("{name}: waiting for benches of {package}");
        return Ok(true);
    }
    eprintln!("{name}: cargo bench --package {package}");
    let mut cargo = Command::new("cargo");
    cargo.args(["bench", "--quiet", "--locked", "--package", package]).current_dir(places::repository());
    let output = cargo.stderr(Stdio::inherit()).output()?;
    print!("{}", String::from_utf8_lossy(&output.stdout));
    let kept = places::target().join("bench");
    fs::create_dir_all(&kept)?;
    fs::write(kept.join(format!("{name}.txt")), &output.stdout)?;
    Ok(output.status.success())
}

/// Runs the harness; true when it succeeds, and so does the guard if it was asked.
fn run_harness(arguments: &Arguments, names: &[String]) -> Result<bool> {
    let product = image::build()?;
    let program = harness()?;
    let counts_only = names.is_empty() && (arguments.guard || arguments.update_baseline);
    let shared = places::target().join("node/share");
    let out = shared.join("bench");
    let mut command = if arguments.here || counts_only {
        Command::new(program)
    } else {
        let mut node = Command::new(std::env::current_exe().context("this program's own path")?);
        node.args(["node", "--memory", &arguments.node_memory.to_string(), "--"]).arg(program);
        node
    };
    command.arg("--product").arg(product).arg("--baseline").arg(baseline(&shared, arguments)?);
    command.args(revision().iter().flat_map(|revision| ["--revision", revision]));
    command.arg("--out").arg(&out);
    if let Some(path) = &arguments.compare {
        command.arg("--compare").arg(std::path::absolute(path)?);
    }
    for (given, flag) in [
        (arguments.json, "--json"),
        (arguments.guard, "--guard"),
        (arguments.update_baseline, "--update-baseline"),
    ] {
        command.args(given.then_some(flag));
    }
    let status = command.args(&arguments.more).args(names).status()?;
    if !counts_only {
        keep(&out)?;
    }
    if arguments.update_baseline && status.success() {
        fs::copy(shared.join("baseline.json"), committed_baseline())?;
    }
    Ok(status.success())
}

/// The guard on what needs no machine, as a step of the test run.
///
/// # Errors
/// When something does not build.
pub fn guard() -> Result<Tally> {
    let product = image::build()?;
    let mut command = Command::new(harness()?);
    command.arg("--product").arg(product).arg("--baseline").arg(committed_baseline()).arg("--guard");
    Ok(Tally::of_check(command.status()?.success()))
}

fn harness() -> Result<PathBuf> {
    let build = ["build", "--quiet", "--locked", "--package=testbed", "--bin=node-bench"];
    let status = Command::new("cargo").args(build).current_dir(places::repository()).status()?;
    ensure!(status.success(), "the benches do not build");
    Ok(places::target().join("debug/node-bench"))
}

fn committed_baseline() -> PathBuf {
    places::repository().join("tests/baseline.json")
}

/// A baseline that a node may write to.
fn baseline(shared: &Path, arguments: &Arguments) -> Result<PathBuf> {
    if !arguments.update_baseline {
        return Ok(committed_baseline());
    }
    fs::create_dir_all(shared)?;
    let copy = shared.join("baseline.json");
    fs::copy(committed_baseline(), &copy)?;
    Ok(copy)
}

/// Copies results to `target/bench`. What a run did not measure stays from the one before.
fn keep(out: &Path) -> Result<()> {
    let kept = places::target().join("bench");
    fs::create_dir_all(&kept)?;
    for entry in fs::read_dir(out).with_context(|| format!("no results in {}", out.display()))? {
        let entry = entry?;
        fs::copy(entry.path(), kept.join(entry.file_name()))?;
    }
    fs::remove_dir_all(out)?;
    eprintln!("results: {}", kept.display());
    Ok(())
}

/// The sources' revision, for the report; nothing outside a repository.
fn revision() -> Option<String> {
    let describe = ["describe", "--always", "--dirty"];
    let output = Command::new("git").args(describe).current_dir(places::repository()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
