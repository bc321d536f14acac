//! The node's file systems: an overlay whose lower layer is the machine's read-only tree and whose upper is memory.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use rustix::{
    mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount},
    process::{chdir, pivot_root},
};

use crate::node::wire::Setup;

/// Where the new root is put together: a tmpfs that only the overlay refers to in the end.
const STAGE: &str = "/run";
/// Kernel modules that the node always needs, in addition to its processor's KVM module. Of those that layers and
/// scratch devices are tried with, these two bring the device files through which the rest is asked for.
const MODULES: [&str; 4] = ["overlay", "tun", "loop", "dm-mod"];
/// Folders of those who keep upper directories of overlays, and the modes that they give them.
const STATE: [(&str, &str); 2] =
    [("var/lib/containerd", "mode=711"), ("var/lib/uvm-snapshotter", "mode=700")];

fn mount_new(kind: &str, target: impl AsRef<Path>, options: &str) -> Result<()> {
    let target = target.as_ref();
    let data = std::ffi::CString::new(options)?;
    mount(kind, target, kind, MountFlags::empty(), data.as_c_str())
        .with_context(|| format!("cannot mount {kind} ({options}) at {}", target.display()))
}

/// Mounts what is needed to find the port. The root is still the machine's own tree, which cannot be written.
///
/// # Errors
/// When a mount fails.
pub fn early() -> Result<()> {
    mount_new("proc", "/proc", "")?;
    mount_new("sysfs", "/sys", "")?;
    mount_new("devtmpfs", "/dev", "")
}

/// Makes the overlay the root.
///
/// # Errors
/// When a module or a mount is refused.
pub fn root(setup: &Setup) -> Result<()> {
    mount_new("tmpfs", STAGE, "mode=755")?;
    load_modules(&setup.modules)?;
    let stage = Path::new(STAGE);
    let [upper, work, root] = ["upper", "work", "root"].map(|name| stage.join(name));
    for folder in [&upper, &work, &root] {
        fs::create_dir(folder)?;
    }
    let layers = format!("lowerdir=/,upperdir={},workdir={}", upper.display(), work.display());
    mount_new("overlay", &root, &layers)?;

    mount_new("proc", root.join("proc"), "")?;
    mount_new("sysfs", root.join("sys"), "")?;
    mount_new("cgroup2", root.join("sys/fs/cgroup"), "")?;
    mount_new("devtmpfs", root.join("dev"), "")?;
    // Elsewhere udev makes these.
    for (name, target) in [("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
        symlink(Path::new("/proc/self").join(target), root.join("dev").join(name))?;
    }
    for (kind, name, options) in
        [("devpts", "pts", "ptmxmode=666,mode=620,gid=5"), ("tmpfs", "shm", "mode=1777")]
    {
        let folder = root.join("dev").join(name);
        fs::create_dir_all(&folder)?;
        mount_new(kind, folder, options)?;
    }
    mount_new("tmpfs", root.join("run"), "mode=755")?;
    // An overlay cannot be the upper layer of another: snapshots need a file system that can.
    for (folder, mode) in STATE {
        let folder = root.join(folder);
        fs::create_dir_all(&folder)?;
        mount_new("tmpfs", folder, mode)?;
    }
    let window = root.join(setup.share.strip_prefix("/")?);
    mount_bind(&setup.share, &window).with_context(|| format!("cannot share {}", setup.share.display()))?;

    let old = root.join("run/old");
    fs::create_dir(&old)?;
    pivot_root(&root, &old).context("cannot make the overlay the root")?;
    chdir("/")?;
    unmount("/run/old", UnmountFlags::DETACH).context("cannot unmount the old root")?;
    fs::remove_dir("/run/old")?;
    offer_modules(&setup.modules)
}

/// Loads what the boot needs; the rest comes by itself when it is used.
fn load_modules(modules: &Path) -> Result<()> {
    let processor = fs::read_to_string("/proc/cpuinfo")?;
    let flag = |name: &str| processor.split_whitespace().any(|word| word == name);
    let kvm = if flag("svm") { "kvm-amd" } else { "kvm-intel" };
    let output =
        Command::new("/sbin/modprobe").arg("-d").arg(modules).arg("-a").args(MODULES).arg(kvm).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "modprobe: {}: {}", output.status, said.trim());
    ensure!(Path::new("/dev/kvm").exists(), "expected /dev/kvm after loading {kvm}, found none");
    Ok(())
}

/// Puts the kernel's modules where modprobe looks, so that the kernel can ask for more of them.
fn offer_modules(modules: &Path) -> Result<()> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let place = PathBuf::from("/lib/modules").join(release.trim());
    fs::create_dir_all("/lib/modules")?;
    if !place.exists() {
        symlink(modules.join("lib/modules").join(release.trim()), &place)
            .with_context(|| format!("cannot link {}", place.display()))?;
    }
    Ok(())
}
