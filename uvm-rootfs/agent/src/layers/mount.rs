//! The mounts of a root file system.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};
use tokio::time::{Instant, sleep};

use crate::error::{AgentError, Context, Result};

/// How long a block device may take to reach its size after the host has attached a layer.
const DISK_LIMIT: Duration = Duration::from_secs(10);
/// Interval between looks. The kernel sends no event when a device grows from nothing.
const DISK_LOOK: Duration = Duration::from_millis(2);
/// Unit of a block device's size in sysfs.
const SECTOR: u64 = 512;

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

/// Mounts a verified layer. It is only a part of an overlay: nothing on it runs or acts as a device by itself.
///
/// # Errors
/// If the kernel refuses the file system.
pub fn erofs(node: &Path, target: &Path) -> Result<()> {
    let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOATIME;
    rustix::mount::mount(node, target, "erofs", flags, None)
        .doing(|| format!("mount erofs of {} at {}", node.display(), target.display()))
}

/// Mounts an empty file system in memory. What a container writes there counts as its memory.
///
/// # Errors
/// If the kernel refuses.
pub fn tmpfs(target: &Path, options: &str) -> Result<()> {
    let options = std::ffi::CString::new(options)
        .map_err(std::io::Error::other)
        .doing(|| "tmpfs options".to_owned())?;
    rustix::mount::mount(
        "tmpfs",
        target,
        "tmpfs",
        MountFlags::NODEV | MountFlags::NOATIME,
        options.as_c_str(),
    )
    .doing(|| format!("mount tmpfs at {}", target.display()))
}

/// Stacks `lower`, top first, under `upper`. Layers are added one by one, so that their number is not limited by
/// the length of an option string.
///
/// # Errors
/// If the kernel refuses one of the parts.
pub fn overlay(lower: &[&str], upper: &Path, work: &Path, target: &Path, devices: bool) -> Result<()> {
    let at = || format!("mount overlay at {}", target.display());
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).doing(at)?;
    for layer in lower {
        fsconfig_set_string(&context, "lowerdir+", *layer)
            .doing(|| format!("{}: add layer {layer}", at()))?;
    }
    fsconfig_set_string(&context, "upperdir", upper).doing(|| format!("{}: set upperdir", at()))?;
    fsconfig_set_string(&context, "workdir", work).doing(|| format!("{}: set workdir", at()))?;
    fsconfig_create(&context).doing(at)?;
    let attributes = if devices { MountAttrFlags::empty() } else { MountAttrFlags::MOUNT_ATTR_NODEV };
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).doing(at)?;
    move_mount(&mount, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).doing(at)
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
