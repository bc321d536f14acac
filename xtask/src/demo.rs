//! `cargo xtask demo`: everything once, for a newcomer: a real image runs as a pod in a utility VM, and what
//! that is and costs is shown.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use indicatif::ProgressBar;
use launch::timeline::{Reached, table};
use serde::Deserialize;

use crate::node::{Job, Node, NodeConfig, Output, Streams};
use crate::{image, redis_image};

const RUNTIME: &str = "io.containerd.uvm.v2";
const CONTAINER: &str = "demo";
/// Mappings of the VMM from this size on are the guest's memory.
const GUEST_MAPPING_KIB: u64 = 32 * 1024;

/// Arguments of `demo`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// An image of your own: an OCI archive [default: Debian's redis-server]
    #[arg(long)]
    image: Option<PathBuf>,
    /// Command to run in your own image
    #[arg(last = true, requires = "image")]
    command: Vec<String>,
}

/// A policy for the demo's pod: what matters here is that its digest is bound to the launch.
const POLICY: &str = "package agent_policy\n\ndefault allow := true\n";
/// What makes the demo's report fresh.
const NONCE: &str = "64656d6f";

/// The part of the measurement sidecar that is shown.
#[derive(Deserialize)]
struct Sidecar {
    platforms: Vec<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    cost: Cost,
}

#[derive(Deserialize)]
struct Cost {
    measured_pages: u32,
    unmeasured_pages: u32,
    shared_pages: u32,
}

/// What the shim keeps of a machine's measurement.
#[derive(Deserialize)]
struct Measurement {
    digest: String,
    host_data: String,
}

/// Builds, boots the node, and shows the demo; the exit code is that of the user's own command.
///
/// # Errors
/// When a part does not do what it should.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let product = image::build()?;
    let archive = match &arguments.image {
        Some(path) => fs::canonicalize(path).with_context(|| path.display().to_string())?,
        None => redis_image::redis(&product, &ProgressBar::hidden())?.path,
    };
    let mut node = Node::boot(&NodeConfig::default())?;
    let reference = import(&mut node, &archive)?;
    let status = if arguments.image.is_some() {
        own_image(&mut node, &reference, &arguments.command)?
    } else {
        redis(&mut node, &reference, &product)?;
        0
    };
    node.shutdown()?;
    Ok(ExitCode::from(status))
}

/// Imports an archive; gives the name that containerd knows the image by.
fn import(node: &mut Node, archive: &Path) -> Result<String> {
    let said = succeed(node, &["ctr", "image", "import", &archive.display().to_string()])?;
    let name = said.lines().find_map(|line| line.strip_prefix("unpacking ")?.split_whitespace().next());
    name.map(str::to_owned).with_context(|| format!("expected the image's name from ctr, found {said:?}"))
}

fn own_image(node: &mut Node, reference: &str, command: &[String]) -> Result<u8> {
    let mut arguments =
        ["ctr", "run", "--rm", "--runtime", RUNTIME, reference, CONTAINER].map(str::to_owned).to_vec();
    arguments.extend_from_slice(command);
    node.run(&Job::new(arguments)?, Streams::inherited())
}

fn redis(node: &mut Node, reference: &str, product: &Path) -> Result<()> {
    section("a pod in a utility VM");
    let config = product.join("uvm-sim.toml").display().to_string();
    let annotation = format!("io.katacontainers.config.agent.policy={}", BASE64_STANDARD.encode(POLICY));
    let flags = ["--runtime-config-path", &config, "--annotation", &annotation];
    let run = ["ctr", "run", "--detach", "--runtime", RUNTIME];
    succeed(node, &[&run[..], &flags, &[reference, CONTAINER]].concat())?;
    println!("{reference} runs as container {CONTAINER:?} of runtime {RUNTIME}, under the simulated TEE");

    section("redis-cli in the pod");
    wait_for_redis(node)?;
    for command in [&["set", "greeting", "hello from a utility VM"][..], &["get", "greeting"]] {
        let answer = exec(node, &[&["redis-cli"], command].concat())?;
        println!("redis-cli {}  →  {}", command.join(" "), answer.trim());
    }

    section("whose kernel");
    println!("node     {}", succeed(node, &["uname", "-r"])?.trim());
    println!("guest    {}", guest_kernel(node)?);

    section("what was launched");
    let sidecar = fs::read(product.join("uvm-sim.json")).context("the measurement sidecar")?;
    let sidecar: Sidecar = serde_json::from_slice(&sidecar)?;
    let measurement = format!("/run/uvm/default/{CONTAINER}/measurement.json");
    let measurement: Measurement = serde_json::from_str(&succeed(node, &["cat", &measurement])?)?;
    println!("launch digest   {}", measurement.digest);
    println!("host data       {} (SHA-256 of the pod's policy)", measurement.host_data);
    for Platform { cost } in &sidecar.platforms {
        let Cost { measured_pages, unmeasured_pages, shared_pages } = cost;
        println!(
            "pages           {measured_pages} measured, {unmeasured_pages} private, {shared_pages} shared"
        );
    }

    section("what its report proves");
    attest(node, product)?;

    section("boot timeline");
    let timeline = format!("/run/uvm/default/{CONTAINER}/timeline.json");
    let timeline: Vec<Reached> = serde_json::from_str(&succeed(node, &["cat", &timeline])?)?;
    print!("{}", table(&timeline));

    section("memory on the host (PSS)");
    for (name, program) in [("shim", "containerd-shim-uvm-v2"), ("VMM beside guest memory", "uvm-vmm")] {
        println!("{name:<24}{:>8} KiB", memory_beside_guest(node, program)?);
    }

    succeed(node, &["ctr", "task", "kill", "--signal", "KILL", CONTAINER])?;
    wait_for_end(node)?;
    succeed(node, &["ctr", "container", "delete", CONTAINER])?;
    Ok(())
}

/// Fetches a report from the pod's agent and verifies it as the pod's owner would.
fn attest(node: &mut Node, product: &Path) -> Result<()> {
    let tool = product.join("bin/uvm-launch").display().to_string();
    let image = product.join("uvm-sim.igvm").display().to_string();
    let vsock = format!("/run/uvm/default/{CONTAINER}/vsock");
    let (report, policy) = ("/tmp/report.json", "/tmp/policy.rego");
    succeed(node, &["sh", "-c", &format!("printf '%s' '{POLICY}' > {policy}")])?;
    succeed(node, &[&tool, "report", "--vsock", &vsock, "--nonce", NONCE, "--out", report])?;
    let known = ["--image", &image, "--tee", "sim", "--policy", policy, "--nonce", NONCE];
    print!("{}", succeed(node, &[&[tool.as_str(), "verify", report, "--allow-sim"], &known[..]].concat())?);
    Ok(())
}

fn section(title: &str) {
    println!("\n── {title}");
}

/// The server answers once it has started: the container's command and its readiness are two things.
fn wait_for_redis(node: &mut Node) -> Result<()> {
    let mut last = String::new();
    for _ in 0..20 {
        match exec(node, &["redis-cli", "ping"]) {
            Ok(answer) if answer.trim() == "PONG" => return Ok(()),
            Ok(answer) => last = answer,
            Err(error) => last = error.to_string(),
        }
    }
    bail!("expected PONG from redis-server, found {last:?}")
}

fn wait_for_end(node: &mut Node) -> Result<()> {
    for _ in 0..20 {
        // Refused as long as the task runs.
        if succeed(node, &["ctr", "task", "delete", CONTAINER]).is_ok() {
            return Ok(());
        }
    }
    bail!("the killed container is still there")
}

fn exec(node: &mut Node, command: &[&str]) -> Result<String> {
    succeed(node, &[&["ctr", "task", "exec", "--exec-id", "demo-exec", CONTAINER], command].concat())
}

/// The version that the guest's own `/proc` shows.
fn guest_kernel(node: &mut Node) -> Result<String> {
    let version = exec(node, &["cat", "/proc/sys/kernel/osrelease"])?;
    ensure!(!version.trim().is_empty(), "expected the guest's kernel version, found nothing");
    Ok(version.trim().to_owned())
}

/// PSS in KiB of the program's one process, without mappings that hold guest memory.
fn memory_beside_guest(node: &mut Node, program: &str) -> Result<u64> {
    let script = format!("cat /proc/$(pgrep -f -o /{program})/smaps");
    let smaps = succeed(node, &["sh", "-c", &script])?;
    let (mut size, mut total) = (0, 0);
    for line in smaps.lines() {
        let value = || line.split_whitespace().nth(1).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        if line.starts_with("Size:") {
            size = value();
        } else if line.starts_with("Pss:") && size < GUEST_MAPPING_KIB {
            total += value();
        }
    }
    ensure!(total > 0, "expected mappings of {program}, found none");
    Ok(total)
}

/// Runs a command that must succeed; gives its standard output.
fn succeed(node: &mut Node, command: &[&str]) -> Result<String> {
    let Output { status, stdout, stderr } = node.output(&Job::new(command.iter().copied())?)?;
    let said = String::from_utf8_lossy(&stderr);
    ensure!(status == 0, "{}: status {status}: {}", command.join(" "), said.trim());
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}
