//! Mounting a layer file on the host: straight from the file where the kernel can (Linux 6.12 and later with
//! `EROFS_FS_BACKED_BY_FILE`), else over a loop device that goes with the mount.
//!
//! The hash tree is not checked here. What the host reads through these mounts is for containerd and for
//! runtimes that trust the host; the utility VM checks every block of the same file by itself.

#![allow(unsafe_code, reason = "loop devices are set up by ioctls that no crate of the workspace wraps")]

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount as unmount_at};

/// `linux/loop.h`: control device, number of a device that is free.
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
/// `linux/loop.h`: attach a file and set everything else in one step.
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// Times that another program may take the free device first.
const ATTEMPTS: usize = 32;

/// `struct loop_info64` of `linux/loop.h`.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of `linux/loop.h`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}
const _: () = assert!(size_of::<LoopInfo>() == 232 && size_of::<LoopConfig>() == 304);
const _: () = assert!(std::mem::offset_of!(LoopConfig, info) == 8);

/// Mounts the erofs image at the beginning of `file` on `target`, read-only.
///
/// # Errors
/// When the kernel refuses.
pub fn mount_layer(file: &Path, target: &Path) -> io::Result<()> {
    match mount_erofs(file, target) {
        // What mount(2) says to a file that is not a block device.
        Err(Errno::NOTBLK) => {
            let (path, _device) = loop_device(file)?;
            Ok(mount_erofs(&path, target)?)
        }
        other => Ok(other?),
    }
}

/// Takes a mount away; who still uses it keeps it until they are done.
///
/// # Errors
/// When the kernel refuses.
pub fn unmount(target: &Path) -> io::Result<()> {
    Ok(unmount_at(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?)
}

/// The mount points below `directory`, which must be a canonical path.
///
/// # Errors
/// When the kernel's list cannot be read.
pub fn below(directory: &Path) -> io::Result<HashSet<PathBuf>> {
    let list = fs::read("/proc/self/mountinfo")?;
    let mount_points = list.split(|&byte| byte == b'\n').filter_map(|line| line.split(|&b| b == b' ').nth(4));
    Ok(mount_points.map(unescape).filter(|path| path.starts_with(directory)).collect())
}

fn mount_erofs(source: &Path, target: &Path) -> Result<(), Errno> {
    mount(source, target, "erofs", MountFlags::RDONLY | MountFlags::NODEV, None)
}

/// Undoes the kernel's octal escapes of white space and backslashes (proc(5)).
fn unescape(field: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let octal =
            after.get(..3).filter(|_| byte == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(value) = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            path.push(value);
            rest = &after[3..];
        } else {
            path.push(byte);
            rest = after;
        }
    }
    PathBuf::from(OsStr::from_bytes(&path))
}

/// A read-only loop device over `file` that vanishes with its last user, of which the returned file is one.
fn loop_device(file: &Path) -> io::Result<(PathBuf, File)> {
    let backing = File::open(file)?;
    let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
    for _ in 0..ATTEMPTS {
        // SAFETY: LOOP_CTL_GET_FREE takes no argument; the descriptor is open for the whole call.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = File::open(&path)?;
        match configure(&device, &backing) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(error),
            Ok(()) => return Ok((path, device)),
        }
    }
    Err(io::Error::other(format!("expected a free loop device, found {ATTEMPTS} taken by others first")))
}

fn configure(device: &File, backing: &File) -> io::Result<()> {
    let info = LoopInfo {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
    let fd = u32::try_from(backing.as_raw_fd()).map_err(io::Error::other)?;
    let config = LoopConfig { fd, block_size: 4096, info, reserved: [0; 8] };
    // SAFETY: LOOP_CONFIGURE reads a `struct loop_config` from the pointer, which `config` is (sizes and offset
    // asserted above) and which lives until the call returns; both descriptors are open as long.
    if unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use erofs_verity::layer::Settings;
    use erofs_verity::source::dir::{self, Fidelity};

    use super::*;

    #[test]
    fn mount_points_are_unescaped() {
        assert_eq!(unescape(b"/a\\040b\\134c\\x"), Path::new("/a b\\c\\x"));
        assert!(below(Path::new("/")).unwrap().contains(Path::new("/proc")));
        assert!(below(Path::new("/nowhere")).unwrap().is_empty());
    }

    #[test]
    fn a_loop_device_goes_with_its_mount() {
        let directory = tempfile::tempdir().unwrap();
        let (source, file, target) = (
            directory.path().join("source"),
            directory.path().join("layer"),
            directory.path().join("target"),
        );
        for path in [&source, &target] {
            fs::create_dir(path).unwrap();
        }
        fs::write(source.join("file"), "contents").unwrap();
        let out = OpenOptions::new().read(true).write(true).create_new(true).open(&file).unwrap();
        dir::pack(&source, Fidelity::Portable, &out, &Settings::default()).unwrap();
        let (path, device) = match loop_device(&file) {
            Ok(made) => made,
            Err(error) => return eprintln!("skipped: no loop device can be set up here: {error}"),
        };
        mount_erofs(&path, &target).unwrap();
        drop(device);
        assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "contents");
        assert!(OpenOptions::new().write(true).open(target.join("file")).is_err());
        assert!(below(directory.path()).unwrap().contains(&target));
        unmount(&target).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        let backing = PathBuf::from(format!("/sys/block/{name}/loop/backing_file"));
        assert!(!fs::read_to_string(backing).is_ok_and(|backing| backing.contains(file.to_str().unwrap())));
        // Where the kernel can, no loop device is needed; the result is the same.
        mount_layer(&file, &target).unwrap();
        assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "contents");
        unmount(&target).unwrap();
    }
}
