//! This machine's files as the node sees them: all read-only, but for one folder.
//!
//! The promise that nothing in the node can change this machine is kept here, by this machine's kernel, not by the
//! node: in a mount name space of its own, the whole tree is mounted once more with every mount read-only, and the
//! file server that QEMU talks to sees nothing else. The process runs single-threaded, and ends as that server.

use std::{
    convert::Infallible,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, mount_bind, mount_bind_recursive, mount_remount};

/// The file server, which Debian's QEMU brings.
const VIRTIOFSD: &str = "/usr/lib/qemu/virtiofsd";

/// What the process is told.
#[derive(clap::Args)]
pub struct Arguments {
    /// Empty folder at which the read-only tree is mounted
    #[arg(long)]
    root: PathBuf,
    /// Folder that stays writable
    #[arg(long)]
    share: PathBuf,
    /// Descriptor of the listening vhost-user socket
    #[arg(long)]
    socket: i32,
}

/// The command that runs this program as the share: in a new mount name space, ending with its parent.
///
/// # Errors
/// When this program does not know its own path.
pub fn command(root: &Path, share: &Path, socket: i32) -> Result<Command> {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private"]);
    command.arg(std::env::current_exe()?).arg("node-share");
    command.arg("--root").arg(root).arg("--share").arg(share).arg("--socket").arg(socket.to_string());
    Ok(command)
}

/// Mounts the tree and becomes the file server.
///
/// # Errors
/// When a mount fails: nothing is served then.
pub fn run(arguments: &Arguments) -> Result<Infallible> {
    let Arguments { root, share, socket } = arguments;
    ensure!(root.is_absolute() && share.is_absolute(), "expected absolute folders for the node's share");
    mount_bind_recursive("/", root).with_context(|| format!("cannot mount / at {}", root.display()))?;
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    for (point, flags) in mounts_below(&table, root) {
        mount_remount(&point, MountFlags::BIND | MountFlags::RDONLY | flags, c"")
            .with_context(|| format!("cannot make {} read-only", point.display()))?;
    }
    let window = root.join(share.strip_prefix("/")?);
    mount_bind(share, &window).with_context(|| format!("cannot share {}", share.display()))?;
    let error = Command::new(VIRTIOFSD)
        .arg(format!("--fd={socket}"))
        .arg("-o")
        .arg(format!("source={},sandbox=chroot,cache=always", root.display()))
        .exec();
    Err(error).with_context(|| format!("cannot start {VIRTIOFSD}"))
}

/// Mount points at or below `root` in a mountinfo table, with the flags that a remount must repeat.
fn mounts_below(table: &str, root: &Path) -> Vec<(PathBuf, MountFlags)> {
    let mount = |line: &str| {
        let mut fields = line.split(' ').skip(4);
        let point = PathBuf::from(unescape(fields.next()?));
        let mut flags = MountFlags::empty();
        for option in fields.next()?.split(',') {
            flags |= match option {
                "nosuid" => MountFlags::NOSUID,
                "nodev" => MountFlags::NODEV,
                "noexec" => MountFlags::NOEXEC,
                "noatime" => MountFlags::NOATIME,
                "nodiratime" => MountFlags::NODIRATIME,
                _ => MountFlags::empty(),
            };
        }
        point.starts_with(root).then_some((point, flags))
    };
    table.lines().filter_map(mount).collect()
}

/// A path of mountinfo: blanks and backslashes are written as three octal digits.
fn unescape(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(field.to_owned(), |path, (code, character)| path.replace(code, character))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mount_below_the_root_is_found_with_its_flags() {
        let table = "22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
                     90 22 254:0 / /r rw,relatime shared:1 - ext4 /dev/vda rw\n\
                     91 90 0:21 / /r/a\\040b rw,nosuid,nodev,noexec - tmpfs tmpfs rw\n\
                     92 22 0:22 / /rest rw - tmpfs tmpfs rw\n";
        let found = mounts_below(table, Path::new("/r"));
        let hard = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        assert_eq!(found, [("/r".into(), MountFlags::empty()), ("/r/a b".into(), hard)]);
    }
}
