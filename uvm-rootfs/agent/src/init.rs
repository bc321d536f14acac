#![allow(unsafe_code, reason = "raising the loopback interface takes an ioctl that rustix lacks")]
//! What PID 1 does before it serves, and at the very end.
//!
//! Unsafe: two `ioctl`s on a local `ifreq`, which the kernel fills and reads within its size.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use rustix::net::{AddressFamily, SocketType, socket};
use rustix::system::{RebootCommand, reboot};

use crate::cgroup;
use crate::error::{Context, Result};
use crate::note;

/// One of the guest's file systems.
struct FileSystem {
    kind: &'static str,
    target: &'static str,
    flags: MountFlags,
    options: &'static std::ffi::CStr,
}

const SAFE: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// In the order in which they are mounted; parents first.
const FILE_SYSTEMS: [FileSystem; 9] = [
    FileSystem { kind: "proc", target: "/proc", flags: SAFE, options: c"" },
    FileSystem { kind: "sysfs", target: "/sys", flags: SAFE, options: c"" },
    FileSystem { kind: "devtmpfs", target: "/dev", flags: MountFlags::NOSUID, options: c"mode=0755" },
    FileSystem {
        kind: "devpts",
        target: "/dev/pts",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        options: c"mode=0620,gid=5,ptmxmode=0666",
    },
    FileSystem {
        kind: "tmpfs",
        target: "/dev/shm",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
        options: c"mode=1777",
    },
    FileSystem { kind: "mqueue", target: "/dev/mqueue", flags: SAFE, options: c"" },
    FileSystem {
        kind: "tmpfs",
        target: "/run",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
        options: c"mode=0755",
    },
    FileSystem {
        kind: "tmpfs",
        target: "/tmp",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
        options: c"mode=1777",
    },
    FileSystem { kind: "cgroup2", target: cgroup::ROOT, flags: SAFE, options: c"nsdelegate" },
];

/// Mounts the guest's file systems, enables the control groups' controllers, raises the loopback interface.
///
/// # Errors
/// If one of them fails: the guest is then not what was measured, and must not serve.
pub fn set_up() -> Result<()> {
    for system in &FILE_SYSTEMS {
        let target = Path::new(system.target);
        if !target.exists() {
            fs::create_dir(target).doing(|| format!("make {}", target.display()))?;
        }
        match mount(system.kind, target, system.kind, system.flags, system.options) {
            // The kernel mounts /dev itself where it is told to.
            Err(Errno::BUSY) => {}
            result => result.doing(|| format!("mount {} at {}", system.kind, system.target))?,
        }
    }
    enable_controllers()?;
    raise_loopback()
}

/// The measured command line.
///
/// # Errors
/// If the kernel does not show it.
pub fn command_line() -> Result<String> {
    const FILE: &str = "/proc/cmdline";
    fs::read_to_string(FILE).doing(|| format!("read {FILE}"))
}

/// Whether the measured command line has the word `word`.
#[must_use]
pub fn command_line_has(word: &str) -> bool {
    command_line().is_ok_and(|line| line.split_ascii_whitespace().any(|found| found == word))
}

/// Enables every controller for the groups of containers.
///
/// # Errors
/// If the parent group cannot be made.
pub fn enable_controllers() -> Result<()> {
    let root = Path::new(cgroup::ROOT);
    let parent = root.join(cgroup::PARENT);
    if !parent.exists() {
        fs::create_dir(&parent).doing(|| format!("make {}", parent.display()))?;
    }
    for group in [root, &parent] {
        let available = group.join("cgroup.controllers");
        let available = fs::read_to_string(&available).doing(|| format!("read {}", available.display()))?;
        let control = group.join("cgroup.subtree_control");
        for controller in available.split_ascii_whitespace() {
            // One at a time: a controller that cannot be enabled must not keep the others out.
            if let Err(error) = fs::write(&control, format!("+{controller}")) {
                note!("controller {controller} in {}: {error}", group.display());
            }
        }
    }
    Ok(())
}

fn raise_loopback() -> Result<()> {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None).doing(|| "open a socket".to_owned())?;
    let mut flags = interface_flags(&socket)?;
    flags |= libc::IFF_UP;
    set_interface_flags(&socket, flags)
}

/// `ifreq` (netdevice(7)) with the flags in its union: 16 bytes of name, then 24 bytes.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: libc::c_short,
    rest: [u8; 22],
}

const _: () = assert!(size_of::<InterfaceRequest>() == size_of::<libc::ifreq>());

impl InterfaceRequest {
    fn loopback(flags: libc::c_short) -> Self {
        let mut name = [0; 16];
        name[..2].copy_from_slice(b"lo");
        Self { name, flags, rest: [0; 22] }
    }
}

fn interface_flags(socket: &OwnedFd) -> Result<libc::c_int> {
    let mut request = InterfaceRequest::loopback(0);
    // SAFETY: SIOCGIFFLAGS reads and writes one ifreq, which `request` is.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) };
    if result != 0 {
        return Err(std::io::Error::last_os_error()).doing(|| "look at the loopback interface".to_owned());
    }
    Ok(libc::c_int::from(request.flags))
}

fn set_interface_flags(socket: &OwnedFd, flags: libc::c_int) -> Result<()> {
    let flags = libc::c_short::try_from(flags).map_err(std::io::Error::other);
    let mut request = InterfaceRequest::loopback(flags.doing(|| "raise the loopback interface".to_owned())?);
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which `request` is.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) };
    if result != 0 {
        return Err(std::io::Error::last_os_error()).doing(|| "raise the loopback interface".to_owned());
    }
    Ok(())
}

/// Ends the guest. Nothing is written back first: whatever it holds ends with it.
pub fn power_off() {
    if let Err(error) = reboot(RebootCommand::PowerOff) {
        note!("power off: {error}");
    }
}
