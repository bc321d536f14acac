//! The mounts of root file systems and volumes.
//!
//! File systems are made by the interface that names nothing before everything is set (`fsopen`, `fsmount`,
//! `move_mount`): what goes wrong is said in the kernel's own words, and no symbolic link at the target is
//! followed.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};
use tokio::time::{Instant, sleep};

use crate::error::{AgentError, Context, Result};

/// How long a block device may take to reach its size after the host has attached a layer.
const DISK_LIMIT: Duration = Duration::from_secs(10);
/// Interval between looks. The kernel sends no event when a device grows from nothing.
const DISK_LOOK: Duration = Duration::from_millis(2);
/// Unit of a block device's size in sysfs.
const SECTOR: u64 = 512;
/// Longest message of the kernel about a mount; it cuts longer ones itself.
const MAX_REASON: usize = 1024;

/// Waits until the block device at `node` has at least `bytes`; returns its number, "major:minor".
///
/// # Errors
/// If it is no block device, or has not grown within ten seconds.
pub async fn wait_for_disk(node: &str, bytes: u64) -> Result<String> {
    let name = node.strip_prefix("/dev/").unwrap_or(node);
    let size_file = format!("/sys/class/block/{name}/size");
    let deadline = Instant::now() + DISK_LIMIT;
    loop {
        let text = fs::read_to_string(&size_file).doing(|| format!("read {size_file}"))?;
        let size = text.trim().parse::<u64>().unwrap_or(0).saturating_mul(SECTOR);
        if size >= bytes {
            break;
        }
        if Instant::now() >= deadline {
            let message = format!("{node} has {size} bytes after 10 s: expected at least {bytes}");
            return Err(AgentError::State(message));
        }
        sleep(DISK_LOOK).await;
    }
    let number = fs::metadata(node).doing(|| format!("look at {node}"))?.rdev();
    Ok(format!("{}:{}", rustix::fs::major(number), rustix::fs::minor(number)))
}

/// Mounts a verified layer. It is only a part of overlays: nothing on it acts as a device by itself.
///
/// # Errors
/// If the kernel refuses the file system.
pub fn erofs(node: &Path, target: &Path) -> Result<()> {
    let what = || format!("mount erofs of {} at {}", node.display(), target.display());
    let context = FileSystem::open("erofs", &what)?;
    context.string("source", node)?;
    context.flag("ro")?;
    let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY;
    context.mount(read_only | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOATIME, target)
}

/// Mounts an empty file system in memory. What a container writes there counts as its memory.
///
/// # Errors
/// If the kernel refuses.
pub fn tmpfs(target: &Path, options: &[(&str, String)]) -> Result<()> {
    let what = || format!("mount tmpfs at {}", target.display());
    let context = FileSystem::open("tmpfs", &what)?;
    context.string("source", "tmpfs")?;
    for (key, value) in options {
        context.string(key, value.as_str())?;
    }
    context.mount(MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOATIME, target)
}

/// Mounts the writable ext4 file system on `node`, with `options` written as for mount(8). Device files on it are dead;
/// set-user-id programs work, as they do in a container's root file system.
///
/// # Errors
/// If the kernel refuses the file system or an option.
pub fn ext4(node: &Path, target: &Path, options: &str) -> Result<()> {
    let what = || format!("mount ext4 of {} at {}", node.display(), target.display());
    let context = FileSystem::open("ext4", &what)?;
    context.string("source", node)?;
    for option in options.split(',') {
        match option.split_once('=') {
            Some((key, value)) => context.string(key, value)?,
            None => context.flag(option)?,
        }
    }
    context.mount(MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOATIME, target)
}

/// Stacks `lower`, top first, under `upper`. Layers are added one by one, so that their number is not limited by
/// the length of an option string.
///
/// # Errors
/// If the kernel refuses one of the parts.
pub fn overlay(lower: &[String], upper: &Path, work: &Path, target: &Path, devices: bool) -> Result<()> {
    let what = || format!("mount overlay at {}", target.display());
    let context = FileSystem::open("overlay", &what)?;
    context.string("source", "overlay")?;
    for layer in lower {
        context.string("lowerdir+", layer.as_str())?;
    }
    context.string("upperdir", upper)?;
    context.string("workdir", work)?;
    let attributes = if devices { MountAttrFlags::empty() } else { MountAttrFlags::MOUNT_ATTR_NODEV };
    context.mount(attributes, target)
}

/// Shows the directory `source` at `target`, too.
///
/// # Errors
/// If the kernel refuses.
pub fn bind(source: &Path, target: &Path) -> Result<()> {
    let what = || format!("bind {} at {}", source.display(), target.display());
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    let tree = open_tree(CWD, source, flags).doing(what)?;
    place(&tree, target).doing(what)
}

/// Unmounts. Nothing being mounted there is what was wanted.
///
/// # Errors
/// If the mount is in use.
pub fn unmount(target: &Path) -> Result<()> {
    match rustix::mount::unmount(target, UnmountFlags::NOFOLLOW) {
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        result => result.doing(|| format!("unmount {}", target.display())),
    }
}

/// A file system that is being made.
struct FileSystem<'a> {
    context: OwnedFd,
    what: &'a dyn Fn() -> String,
}

impl<'a> FileSystem<'a> {
    fn open(kind: &str, what: &'a dyn Fn() -> String) -> Result<Self> {
        let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).doing(what)?;
        Ok(Self { context, what })
    }

    fn string(&self, key: &str, value: impl rustix::path::Arg) -> Result<()> {
        let result = fsconfig_set_string(self.context.as_fd(), key, value);
        result.doing(|| self.reason(&format!("set {key}")))
    }

    fn flag(&self, key: &str) -> Result<()> {
        fsconfig_set_flag(self.context.as_fd(), key).doing(|| self.reason(&format!("set {key}")))
    }

    fn mount(self, attributes: MountAttrFlags, target: &Path) -> Result<()> {
        fsconfig_create(self.context.as_fd()).doing(|| self.reason("create"))?;
        let mount = fsmount(self.context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes);
        let mount = mount.doing(|| self.reason("mount"))?;
        place(&mount, target).doing(self.what)
    }

    /// What was attempted, and what the kernel says about it: a context's messages are read from its descriptor.
    fn reason(&self, step: &str) -> String {
        let mut text = format!("{}: {step}", (self.what)());
        let mut message = [0; MAX_REASON];
        while let Ok(length @ 1..) = rustix::io::read(&self.context, &mut message) {
            let message = String::from_utf8_lossy(message.get(..length).unwrap_or_default());
            // The first letter is the message's kind: "e erofs: …".
            text = format!("{text}: {}", message.get(2..).unwrap_or_default().trim_end());
        }
        text
    }
}

fn place(mount: &OwnedFd, target: &Path) -> rustix::io::Result<()> {
    move_mount(mount, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}
