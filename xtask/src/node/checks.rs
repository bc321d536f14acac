//! Checks of the node itself, in one boot: what it promises to commands, and to this machine.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};

use super::{Job, Node, NodeConfig, Output};
use crate::tally::Tally;

/// A named check.
type Check = (&'static str, fn(&mut Node) -> Result<()>);

const CHECKS: &[Check] = &[
    ("exit codes are the command's", exit_codes),
    ("streams are kept apart and whole", streams),
    ("commands run in the caller's folder and environment", surroundings),
    ("a command that does not exist says so", missing_command),
    ("processes left behind do not hold a command up", background),
    ("/dev/kvm works", kvm),
    ("this machine's files cannot be changed", files_are_safe),
    ("the shared folder is writable", shared),
    ("containerd answers, CRI plugin included", containerd),
    ("containerd runs the sandbox image with runc", sandbox_image),
];

/// Boots a node and runs every check in it.
///
/// # Errors
/// When the node does not boot or does not power off.
pub fn run() -> Result<Tally> {
    let mut node = Node::boot(&NodeConfig::default())?;
    let mut tally = Tally::default();
    for (name, check) in CHECKS {
        match check(&mut node) {
            Ok(()) => {
                eprintln!("ok: {name}");
                tally.passed += 1;
            }
            Err(error) => {
                eprintln!("FAILED: {name}: {error:#}");
                tally.failed += 1;
            }
        }
    }
    node.shutdown()?;
    Ok(tally)
}

fn shell(node: &mut Node, script: &str) -> Result<Output> {
    node.output(&Job::shell(script)?)
}

/// Runs a script that must succeed; gives its standard output.
fn succeed(node: &mut Node, script: &str) -> Result<String> {
    let Output { status, stdout, stderr } = shell(node, script)?;
    ensure!(status == 0, "{script}: status {status}: {}", String::from_utf8_lossy(&stderr).trim());
    Ok(String::from_utf8(stdout)?)
}

fn exit_codes(node: &mut Node) -> Result<()> {
    for (script, expected) in [("exit 0", 0), ("exit 1", 1), ("exit 42", 42), ("kill -9 $$", 137)] {
        let found = shell(node, script)?.status;
        ensure!(found == expected, "{script}: expected status {expected}, found {found}");
    }
    Ok(())
}

fn streams(node: &mut Node) -> Result<()> {
    let bytes = 300_000;
    let script = format!("head -c {bytes} /dev/zero; printf err >&2; cat; printf end > /dev/stdout");
    let output = shell(node, &script)?;
    ensure!(output.stderr == b"err", "expected `err`, found {:?}", String::from_utf8_lossy(&output.stderr));
    ensure!(output.stdout.len() == bytes + 3, "expected {} bytes, found {}", bytes + 3, output.stdout.len());
    ensure!(output.stdout.ends_with(b"\0end"), "expected the output to end with `end`");
    Ok(())
}

fn surroundings(node: &mut Node) -> Result<()> {
    let here = std::env::current_dir()?;
    let found = succeed(node, "pwd -P; id -u; echo $PATH")?;
    let path = std::env::var("PATH").unwrap_or_default();
    let expected = format!("{}\n0\n{path}\n", here.display());
    ensure!(found == expected, "expected {expected:?}, found {found:?}");
    Ok(())
}

fn missing_command(node: &mut Node) -> Result<()> {
    let output = node.output(&Job::new(["/no/such/command"])?)?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status == 127 && text.contains("/no/such/command"), "found {}: {text}", output.status);
    Ok(())
}

fn background(node: &mut Node) -> Result<()> {
    let started = std::time::Instant::now();
    ensure!(succeed(node, "sleep 600 & echo started")? == "started\n", "expected the command's output");
    ensure!(started.elapsed().as_secs() < 60, "the command took {:?}", started.elapsed());
    Ok(())
}

fn kvm(node: &mut Node) -> Result<()> {
    succeed(node, "test -c /dev/kvm && test -w /dev/kvm && grep -qE '^kvm_(amd|intel) ' /proc/modules")
        .map(drop)
}

/// Neither through the node's root nor through the share beneath it, whatever root in the node tries.
fn files_are_safe(node: &mut Node) -> Result<()> {
    let canary = Path::new("/usr/uvm-node-canary");
    ensure!(!canary.exists(), "{} is in the way", canary.display());
    succeed(node, "touch /usr/uvm-node-canary && test -e /usr/uvm-node-canary")?;
    let attempt = "mount -t virtiofs rootfs /mnt && ! LC_ALL=C touch /mnt/usr/uvm-node-canary && umount /mnt";
    let output = shell(node, attempt)?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status == 0, "expected writing below the overlay to be refused: {text}");
    ensure!(text.contains("Read-only file system"), "expected a read-only file system, found: {text}");
    ensure!(!canary.exists(), "the node wrote {}", canary.display());
    Ok(())
}

fn shared(node: &mut Node) -> Result<()> {
    let file = NodeConfig::default().share.join("check.txt");
    fs::write(&file, "from here").with_context(|| format!("cannot write {}", file.display()))?;
    let name = file.display();
    ensure!(
        succeed(node, &format!("cat {name}"))? == "from here",
        "expected this machine's text in the node"
    );
    succeed(node, &format!("printf 'from there' > {name}.new && mv {name}.new {name}"))?;
    let text = fs::read_to_string(&file)?;
    fs::remove_file(&file)?;
    ensure!(text == "from there", "expected the node's text, found {text:?}");
    Ok(())
}

fn containerd(node: &mut Node) -> Result<()> {
    let plugins = succeed(node, "ctr plugins ls")?;
    let cri = plugins.lines().find(|line| line.split_whitespace().nth(1) == Some("cri")).unwrap_or_default();
    ensure!(cri.split_whitespace().last() == Some("ok"), "expected the CRI plugin to be ok, found {cri:?}");
    let images = succeed(node, "ctr -n k8s.io images ls -q")?;
    ensure!(images.contains("localhost/pause:node"), "expected the sandbox image, found {images:?}");
    Ok(())
}

/// With Debian's own runtime: what fails here is no fault of ours.
fn sandbox_image(node: &mut Node) -> Result<()> {
    let script = "ctr -n k8s.io run --rm localhost/pause:node check /busybox sh -c 'echo out; exit 3'";
    let output = shell(node, script)?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        (output.status, text.trim()) == (3, "out"),
        "expected 3 and `out`, found {} and {text}",
        output.status
    );
    Ok(())
}
