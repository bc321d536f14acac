//! containerd's own command-line client, as its users call it.

use std::sync::Once;
use std::time::Duration;

use anyhow::Result;

use crate::case::Bed;
use crate::command::{Outcome, run, run_with_input, run_within};
use crate::snapshots::SNAPSHOTTER;

/// The runtime under test.
pub const RUNTIME: &str = "io.containerd.uvm.v2";
/// A small image with a shell.
pub const BUSYBOX: &str = "docker.io/library/busybox:uvm";

/// How long an image of a hundred layers may take. The node is emulated.
const TRANSFER_LIMIT: Duration = Duration::from_secs(600);

static IMPORTED: Once = Once::new();

/// Imports the test image, once: into the default namespace, where containerd's own snapshotter unpacks it, and
/// into CRI's, whose snapshotter is the product's.
///
/// # Errors
/// When containerd refuses it.
pub fn import_busybox(bed: &Bed) -> Result<()> {
    let mut outcome = Ok(());
    IMPORTED.call_once(|| outcome = import_into_all(bed));
    outcome
}

fn import_into_all(bed: &Bed) -> Result<()> {
    let archive = bed.product.join("busybox.oci.tar").display().to_string();
    for (namespace, snapshotter) in [("default", "overlayfs"), ("k8s.io", SNAPSHOTTER)] {
        let import = ["-n", namespace, "image", "import", "--snapshotter", snapshotter, &archive];
        run("ctr", &import)?.expect_status(0)?;
    }
    Ok(())
}

/// `ctr` with these arguments.
///
/// # Errors
/// When it does not end in time.
pub fn ctr(arguments: &[&str]) -> Result<Outcome> {
    run("ctr", arguments)
}

/// `ctr` with these arguments, which move a whole image: that takes as long as the image has layers.
///
/// # Errors
/// When it does not end in time.
pub fn transfer(arguments: &[&str]) -> Result<Outcome> {
    run_within(TRANSFER_LIMIT, "ctr", arguments)
}

/// `ctr run --rm` under the runtime: `flags`, then container `id` with `command`.
///
/// # Errors
/// When it does not end in time.
pub fn run_once(flags: &[&str], id: &str, command: &[&str]) -> Result<Outcome> {
    run_once_with_input(flags, id, command, b"")
}

/// Like [`run_once`], with standard input.
///
/// # Errors
/// When it does not end in time.
pub fn run_once_with_input(flags: &[&str], id: &str, command: &[&str], input: &[u8]) -> Result<Outcome> {
    let arguments = [&["run", "--rm", "--runtime", RUNTIME], flags, &[BUSYBOX, id], command].concat();
    run_with_input("ctr", &arguments, input)
}

/// A container that runs in the background, removed when this is dropped.
#[derive(Debug)]
pub struct Detached(pub &'static str);

impl Detached {
    /// Starts container `id` with `command`.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(flags: &[&str], id: &'static str, command: &[&str]) -> Result<Self> {
        let guard = Self(id);
        let arguments = [&["run", "--detach", "--runtime", RUNTIME], flags, &[BUSYBOX, id], command].concat();
        run("ctr", &arguments)?.expect_status(0)?;
        Ok(guard)
    }

    /// `ctr task exec` in it.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn exec(&self, flags: &[&str], exec_id: &str, command: &[&str]) -> Result<Outcome> {
        let arguments = [&["task", "exec", "--exec-id", exec_id], flags, &[self.0], command].concat();
        ctr(&arguments)
    }

    /// Its status as `ctr task ls` shows it.
    ///
    /// # Errors
    /// When `ctr` fails.
    pub fn status(&self) -> Result<Option<String>> {
        let list = ctr(&["task", "ls"])?.expect_status(0)?.out;
        let line = list.lines().find(|line| line.split_whitespace().next() == Some(self.0));
        Ok(line.and_then(|line| line.split_whitespace().nth(2)).map(str::to_owned))
    }
}

impl Drop for Detached {
    fn drop(&mut self) {
        // Whatever the case did: nothing of it may disturb the next one. Each call fails if there is nothing
        // left to do.
        let _ = ctr(&["task", "kill", "--signal", "KILL", self.0]);
        let _ = ctr(&["task", "delete", "--force", self.0]);
        let _ = ctr(&["container", "delete", self.0]);
    }
}
