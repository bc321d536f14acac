//! What a pod may leave on the host: nothing. The ledger lists everything that could be left, so that two
//! lists can be compared.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::command::eventually;

/// Everything on this machine that a pod makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ledger(BTreeSet<String>);

/// Folders in which pods have files and sockets.
const FOLDERS: [&str; 4] = ["/run/uvm", "/run/containerd/s", TASKS, "/run/containerd/fifo"];
/// Where the snapshotter keeps and mounts layers.
const LAYERS: &str = "/var/lib/uvm-snapshotter/layers/";
const TASKS: &str = "/run/containerd/io.containerd.runtime.v2.task";
const NAMESPACES: [&str; 2] = ["default", "k8s.io"];
const CGROUPS: &str = "/sys/fs/cgroup";
/// Deepest folder that is looked into.
const DEPTH: usize = 8;

impl Ledger {
    /// What there is now.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn take() -> Result<Self> {
        let mut entries = BTreeSet::new();
        for entry in fs::read_dir("/proc")?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let command = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            let service = command.trim() == "uvm-snapshotter";
            if !service && (command.starts_with("uvm-") || command.starts_with("containerd-shim")) {
                entries.insert(format!("process {} {name}", command.trim()));
            }
        }
        for mount in fs::read_to_string("/proc/self/mounts")?.lines() {
            let place = mount.split(' ').nth(1).unwrap_or(mount);
            // An image's layers stay mounted for as long as there is the image.
            if !place.starts_with(LAYERS) {
                entries.insert(format!("mount {place}"));
            }
        }
        entries.extend(block_devices()?);
        for folder in FOLDERS {
            walk(Path::new(folder), DEPTH, &mut |path| {
                // containerd keeps a folder for each namespace that it has ever seen.
                if !NAMESPACES.iter().any(|name| path == Path::new(TASKS).join(name)) {
                    entries.insert(format!("file {}", path.display()));
                }
            });
        }
        walk(Path::new(CGROUPS), DEPTH, &mut |path| {
            // runc, which some cases compare with, keeps a group for each namespace that it has ever seen.
            if path.is_dir() && !NAMESPACES.iter().any(|name| path == Path::new(CGROUPS).join(name)) {
                entries.insert(format!("cgroup {}", path.display()));
            }
        });
        Ok(Self(entries))
    }

    /// Fails if there is anything now that there was not then; what ends asynchronously has a few seconds.
    ///
    /// # Errors
    /// With the list of what was left.
    pub fn expect_nothing_new(&self) -> Result<()> {
        let mut left = Vec::new();
        let settled = eventually("leftovers gone", Duration::from_secs(15), || {
            let now = Self::take()?;
            left = now.0.difference(&self.0).cloned().collect::<Vec<_>>();
            Ok(left.is_empty().then_some(()))
        });
        ensure!(settled.is_ok(), "left behind: {left:#?}");
        Ok(())
    }
}

/// Device-mapper devices, and loop devices with a file that is no stored layer.
fn block_devices() -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/block")?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let file = fs::read_to_string(entry.path().join("loop/backing_file")).ok();
        if name.starts_with("dm-") || file.as_ref().is_some_and(|file| !file.starts_with(LAYERS)) {
            found.push(format!("block device {name} {}", file.unwrap_or_default().trim()));
        }
    }
    Ok(found)
}

fn walk(folder: &Path, depth: usize, visit: &mut impl FnMut(&Path)) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        visit(&path);
        let is_folder = fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir());
        if is_folder && depth > 0 {
            walk(&path, depth - 1, visit);
        }
    }
}

/// Process ids whose command is `name`.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn processes(name: &str) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        // The kernel keeps 15 bytes of a command's name.
        let command = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if command.trim() == &name[..name.len().min(15)]
            && let Ok(pid) = entry.file_name().to_string_lossy().parse()
        {
            found.push(pid);
        }
    }
    Ok(found)
}
