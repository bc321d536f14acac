//! A tree from a directory of the host.
//!
//! The only module here that touches a file system. It opens everything below the root beneath it and through
//! no symbolic link, so that a directory that changes meanwhile can give a wrong tree or an error, but never a
//! file from elsewhere. `trusted.*` attributes are visible to `CAP_SYS_ADMIN` only: a layer of overlayfs has to
//! be read as root, or its opaque directories are lost.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{self, AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::Content;
use crate::tree::{DeviceNumber, Kind, Metadata, Node, NodeId, Timestamp, Tree, TreeError, Xattrs};

/// Longest list of attribute names and longest value that Linux gives out.
const XATTR_MAX: usize = 65536;

/// How much of the host's own traces a tree keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fidelity {
    /// Every attribute, time and hard link as it is.
    Exact,
    /// Without what this host's kernel added and no image asked for, so that the same layer gives the same
    /// tree on every host: SELinux labels, overlayfs's references to other file systems (`origin`, `impure`,
    /// `nlink`, `uuid`, `upper`), and owner, mode, time and shared identity of whiteouts.
    Portable,
}

/// Attributes that [`Fidelity::Portable`] leaves out.
const HOST_XATTRS: [&[u8]; 6] = [
    b"security.selinux",
    b"trusted.overlay.impure",
    b"trusted.overlay.nlink",
    b"trusted.overlay.origin",
    b"trusted.overlay.upper",
    b"trusted.overlay.uuid",
];

/// Why a directory cannot be read as a tree.
#[derive(Debug, thiserror::Error)]
pub enum DirError {
    /// A system call failed.
    #[error("{path}: cannot {action}: {source}")]
    Io {
        /// Path of the file, below the directory that is read unless it is that itself.
        path: String,
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A node that an image cannot represent.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// A regular file below the directory that was read; it is opened when its content is wanted.
#[derive(Debug, Clone)]
pub struct HostFile {
    root: Arc<OwnedFd>,
    path: CString,
}

impl Content for HostFile {
    fn open(&self) -> io::Result<Box<dyn Read + '_>> {
        // NONBLOCK: should the file have become a pipe, opening it must not wait for a writer.
        let file = File::from(open_beneath(&*self.root, &self.path, OFlags::RDONLY | OFlags::NONBLOCK)?);
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("expected a regular file, found that it was replaced"));
        }
        Ok(Box::new(file))
    }
}

/// Reads the directory at `path`: its tree now, its contents when they are written.
///
/// # Errors
/// When anything in it cannot be read or represented.
pub fn read(path: &Path, fidelity: Fidelity) -> Result<Tree<HostFile>, DirError> {
    let fault = |source: Errno| DirError::Io {
        path: path.display().to_string(),
        action: "open the directory",
        source: source.into(),
    };
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let root = Arc::new(fs::open(path, flags, Mode::empty()).map_err(fault)?);
    let mut walk = Walk { root, fidelity, links: HashMap::new(), buffer: XattrBuffer::default() };
    let stat = fs::fstat(&*walk.root).map_err(fault)?;
    let xattrs = walk.xattrs(&walk.root.clone(), c".", b"")?;
    let mut tree = Tree::new(metadata(&stat, xattrs))?;
    let mut pending = vec![(Tree::<HostFile>::ROOT, Vec::new())];
    while let Some((id, path)) = pending.pop() {
        walk.directory(&mut tree, id, &path, &mut pending)?;
    }
    Ok(tree)
}

struct Walk {
    root: Arc<OwnedFd>,
    fidelity: Fidelity,
    /// Files with several names that were met, by device and inode number.
    links: HashMap<(u64, u64), NodeId>,
    buffer: XattrBuffer,
}

impl Walk {
    /// Adds the entries of the directory at `path` (relative to the root, empty for itself); puts directories
    /// among them on `pending`.
    fn directory(
        &mut self,
        tree: &mut Tree<HostFile>,
        id: NodeId,
        path: &[u8],
        pending: &mut Vec<(NodeId, Vec<u8>)>,
    ) -> Result<(), DirError> {
        let fault = |action| move |source: Errno| io_error(path, action, source);
        let own_path = if path.is_empty() { c".".to_owned() } else { c_string(path.to_vec(), path)? };
        let fd = open_beneath(&*self.root, &own_path, OFlags::RDONLY | OFlags::DIRECTORY)
            .map_err(fault("open the directory"))?;
        let fd = Arc::new(fd);
        for entry in Dir::read_from(&*fd).map_err(fault("list the directory"))? {
            let entry = entry.map_err(fault("list the directory"))?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let child_path = join(path, name.to_bytes());
            if let Some(directory) = self.entry(tree, id, &fd, name, &child_path)? {
                pending.push((directory, child_path));
            }
        }
        Ok(())
    }

    /// Adds one entry; returns it if it is a directory.
    fn entry(
        &mut self,
        tree: &mut Tree<HostFile>,
        parent: NodeId,
        directory: &Arc<OwnedFd>,
        name: &CStr,
        path: &[u8],
    ) -> Result<Option<NodeId>, DirError> {
        let stat = fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| io_error(path, "look at it", errno))?;
        let kind = self.kind(&stat, directory, name, path)?;
        let is_directory = matches!(kind, Kind::Directory);
        let whiteout = matches!(kind, Kind::CharDevice(DeviceNumber { major: 0, minor: 0 }));
        if whiteout && self.fidelity == Fidelity::Portable {
            tree.add(parent, name.to_bytes(), Node { metadata: Metadata::default(), kind })?;
            return Ok(None);
        }
        let identity = (stat.st_dev, stat.st_ino);
        let linked = !is_directory && stat.st_nlink > 1;
        if let Some(&first) = self.links.get(&identity).filter(|_| linked) {
            tree.link(parent, name.to_bytes(), first)?;
            return Ok(None);
        }
        let xattrs = self.xattrs(directory, name, path)?;
        let id = tree.add(parent, name.to_bytes(), Node { metadata: metadata(&stat, xattrs), kind })?;
        if linked {
            self.links.insert(identity, id);
        }
        Ok(is_directory.then_some(id))
    }

    fn kind(
        &self,
        stat: &Stat,
        directory: &OwnedFd,
        name: &CStr,
        path: &[u8],
    ) -> Result<Kind<HostFile>, DirError> {
        let number = || DeviceNumber { major: fs::major(stat.st_rdev), minor: fs::minor(stat.st_rdev) };
        Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Kind::Directory,
            FileType::RegularFile => Kind::Regular {
                size: u64::try_from(stat.st_size).unwrap_or(0),
                content: HostFile { root: Arc::clone(&self.root), path: c_string(path.to_vec(), path)? },
            },
            FileType::Symlink => {
                let target = fs::readlinkat(directory, name, Vec::new())
                    .map_err(|errno| io_error(path, "read the symbolic link", errno))?;
                Kind::Symlink(target.into_bytes())
            }
            FileType::CharacterDevice => Kind::CharDevice(number()),
            FileType::BlockDevice => Kind::BlockDevice(number()),
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            FileType::Unknown => {
                let source = io::Error::other(format!("unknown file type in mode {:#o}", stat.st_mode));
                return Err(DirError::Io { path: shown(path), action: "represent it", source });
            }
        })
    }

    /// Attributes of entry `name` of `directory`, of the entry itself if it is a symbolic link.
    fn xattrs(&mut self, directory: &OwnedFd, name: &CStr, path: &[u8]) -> Result<Xattrs, DirError> {
        let fault = |errno| io_error(path, "read its extended attributes", errno);
        // The calls take no directory descriptor, so it is named through proc(5).
        let prefix = format!("/proc/self/fd/{}/", directory.as_fd().as_raw_fd());
        let entry = c_string([prefix.as_bytes(), name.to_bytes()].concat(), path)?;
        let XattrBuffer { names, value } = &mut self.buffer;
        let listed = match fs::llistxattr(entry.as_c_str(), &mut names[..]) {
            Err(Errno::NOTSUP) => 0,
            listed => listed.map_err(fault)?,
        };
        let mut xattrs = Xattrs::new();
        for name in names[..listed].split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
            if self.fidelity == Fidelity::Portable && HOST_XATTRS.contains(&name) {
                continue;
            }
            let c_name = c_string(name.to_vec(), path)?;
            let length = fs::lgetxattr(entry.as_c_str(), c_name, &mut value[..]).map_err(fault)?;
            xattrs.insert(name.to_vec(), value[..length].to_vec());
        }
        Ok(xattrs)
    }
}

struct XattrBuffer {
    names: Vec<u8>,
    value: Vec<u8>,
}

impl Default for XattrBuffer {
    fn default() -> Self {
        Self { names: vec![0; XATTR_MAX], value: vec![0; XATTR_MAX] }
    }
}

fn open_beneath(root: impl AsFd, path: &CStr, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    fs::openat2(root, path, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty(), resolve)
}

fn metadata(stat: &Stat, xattrs: Xattrs) -> Metadata {
    Metadata {
        permissions: u16::try_from(stat.st_mode & 0o7777).unwrap_or(0),
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: Timestamp {
            seconds: stat.st_mtime,
            nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
        },
        xattrs,
    }
}

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() }
}

fn c_string(bytes: Vec<u8>, path: &[u8]) -> Result<CString, DirError> {
    CString::new(bytes).map_err(|_| io_error(path, "name it", Errno::INVAL))
}

fn io_error(path: &[u8], action: &'static str, source: Errno) -> DirError {
    DirError::Io { path: shown(path), action, source: source.into() }
}

fn shown(path: &[u8]) -> String {
    format!("/{}", String::from_utf8_lossy(path))
}
