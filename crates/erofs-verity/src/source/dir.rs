//! A tree, or a layer, from a directory of the host.
//!
//! It opens everything below the root beneath it and through no symbolic link, so that a directory that changes
//! meanwhile can give a wrong tree or an error, but never a file from elsewhere. Names are taken in their
//! order, so that contents come in the same order on every file system. `trusted.*` attributes are visible to `CAP_SYS_ADMIN` only: a layer of overlayfs has to
//! be read as root, or its opaque directories are lost.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{self, AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::layer::{Layer, LayerWriter, Settings, WriteError};
use crate::tree::{Data, DeviceNumber, Kind, Metadata, Node, NodeId, Timestamp, Tree, TreeError, Xattrs};

/// Longest list of attribute names and longest value that Linux gives out.
const XATTR_MAX: usize = 65536;
/// Bytes of content that are read at a time.
const COPY_BUFFER: usize = 256 << 10;

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
    /// A file's content could not be taken.
    #[error("{path}: {source}")]
    Content {
        /// Path of the file, below the directory that is read.
        path: String,
        /// What happened.
        source: ContentError,
    },
    /// A node that an image cannot represent.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The layer cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// Takes the content of each regular file as it is met, open at its beginning, with the size that it had when it
/// was looked at; says where in the image it lies.
pub trait Contents {
    /// Takes one content.
    ///
    /// # Errors
    /// When it cannot be read or kept.
    fn take(&mut self, file: &mut dyn Read, size: u64) -> Result<Data, ContentError>;
}

/// Why a content cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// It cannot be read.
    #[error("cannot read content: {0}")]
    Read(#[source] io::Error),
    /// It is not as long as the directory said.
    #[error("expected {expected} bytes of content, found {found}")]
    Size {
        /// Size in the directory.
        expected: u64,
        /// Bytes read: all of them, or, if there are too many, those read until that was noticed.
        found: u64,
    },
    /// It cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl Contents for LayerWriter {
    fn take(&mut self, file: &mut dyn Read, size: u64) -> Result<Data, ContentError> {
        let mut buffer = vec![0; COPY_BUFFER];
        let mut found = 0u64;
        self.begin()?;
        loop {
            match file.read(&mut buffer) {
                Ok(0) if found == size => return Ok(Data::Flat(self.end()?)),
                Ok(0) => return Err(ContentError::Size { expected: size, found }),
                Ok(count) => {
                    found += count as u64;
                    if found > size {
                        return Err(ContentError::Size { expected: size, found });
                    }
                    self.write(&buffer[..count])?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ContentError::Read(error)),
            }
        }
    }
}

/// Packs the directory at `path` into a layer, in the empty file `out`.
///
/// # Errors
/// When anything in it cannot be read or represented, or the layer cannot be written.
pub fn pack(path: &Path, fidelity: Fidelity, out: &File, settings: &Settings) -> Result<Layer, DirError> {
    let mut writer = LayerWriter::new(out, settings)?;
    let tree = read(path, fidelity, &mut writer)?;
    Ok(writer.finish(tree)?)
}

/// Reads the directory at `path`, whose contents go to `contents`.
///
/// # Errors
/// When anything in it cannot be read or represented, or `contents` fails.
pub fn read(path: &Path, fidelity: Fidelity, contents: &mut impl Contents) -> Result<Tree, DirError> {
    let fault = |source: Errno| DirError::Io {
        path: path.display().to_string(),
        action: "open the directory",
        source: source.into(),
    };
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let root = fs::open(path, flags, Mode::empty()).map_err(fault)?;
    let stat = fs::fstat(&root).map_err(fault)?;
    let mut walk = Walk { root, fidelity, contents, links: HashMap::new(), buffer: XattrBuffer::default() };
    let xattrs = xattrs(&mut walk.buffer, fidelity, &walk.root, c".", b"")?;
    let mut tree = Tree::new(metadata(&stat, xattrs))?;
    let mut pending = vec![(Tree::ROOT, Vec::new())];
    while let Some((id, path)) = pending.pop() {
        walk.directory(&mut tree, id, &path, &mut pending)?;
    }
    Ok(tree)
}

struct Walk<'c, C> {
    root: OwnedFd,
    fidelity: Fidelity,
    contents: &'c mut C,
    /// Files with several names that were met, by device and inode number.
    links: HashMap<(u64, u64), NodeId>,
    buffer: XattrBuffer,
}

impl<C: Contents> Walk<'_, C> {
    /// Adds the entries of the directory at `path` (relative to the root, empty for itself); puts directories
    /// among them on `pending`.
    fn directory(
        &mut self,
        tree: &mut Tree,
        id: NodeId,
        path: &[u8],
        pending: &mut Vec<(NodeId, Vec<u8>)>,
    ) -> Result<(), DirError> {
        let fault = |action| move |source: Errno| io_error(path, action, source);
        let own_path = if path.is_empty() { c".".to_owned() } else { c_string(path.to_vec(), path)? };
        let fd = open_beneath(&self.root, &own_path, OFlags::RDONLY | OFlags::DIRECTORY)
            .map_err(fault("open the directory"))?;
        let mut names = Vec::new();
        for entry in Dir::read_from(&fd).map_err(fault("list the directory"))? {
            let entry = entry.map_err(fault("list the directory"))?;
            names.push(entry.file_name().to_owned());
        }
        names.sort_unstable();
        for name in names.iter().filter(|name| !matches!(name.to_bytes(), b"." | b"..")) {
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
        tree: &mut Tree,
        parent: NodeId,
        directory: &OwnedFd,
        name: &CStr,
        path: &[u8],
    ) -> Result<Option<NodeId>, DirError> {
        let stat = fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| io_error(path, "look at it", errno))?;
        let identity = (stat.st_dev, stat.st_ino);
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let linked = !is_directory && stat.st_nlink > 1;
        let whiteout = is_whiteout(&stat) && self.fidelity == Fidelity::Portable;
        if let Some(&first) = self.links.get(&identity).filter(|_| linked && !whiteout) {
            tree.link(parent, name.to_bytes(), first)?;
            return Ok(None);
        }
        let kind = self.kind(&stat, directory, name, path)?;
        if whiteout {
            tree.add(parent, name.to_bytes(), Node { metadata: Metadata::default(), kind })?;
            return Ok(None);
        }
        let xattrs = xattrs(&mut self.buffer, self.fidelity, directory, name, path)?;
        let id = tree.add(parent, name.to_bytes(), Node { metadata: metadata(&stat, xattrs), kind })?;
        if linked {
            self.links.insert(identity, id);
        }
        Ok(is_directory.then_some(id))
    }

    fn kind(&mut self, stat: &Stat, directory: &OwnedFd, name: &CStr, path: &[u8]) -> Result<Kind, DirError> {
        Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Kind::Directory,
            FileType::RegularFile => {
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                Kind::Regular { size, data: self.content(path, size)? }
            }
            FileType::Symlink => {
                let target = fs::readlinkat(directory, name, Vec::new())
                    .map_err(|errno| io_error(path, "read the symbolic link", errno))?;
                Kind::Symlink(target.into_bytes())
            }
            FileType::CharacterDevice => Kind::CharDevice(device_number(stat)),
            FileType::BlockDevice => Kind::BlockDevice(device_number(stat)),
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            FileType::Unknown => {
                let source = io::Error::other(format!("unknown file type in mode {:#o}", stat.st_mode));
                return Err(DirError::Io { path: shown(path), action: "represent it", source });
            }
        })
    }

    fn content(&mut self, path: &[u8], size: u64) -> Result<Data, DirError> {
        // NONBLOCK: should the file have become a pipe, opening it must not wait for a writer.
        let file =
            open_beneath(&self.root, &c_string(path.to_vec(), path)?, OFlags::RDONLY | OFlags::NONBLOCK)
                .map_err(|errno| io_error(path, "open it", errno))?;
        let mut file = File::from(file);
        let unusable = |source| DirError::Io { path: shown(path), action: "read it", source };
        if !file.metadata().map_err(unusable)?.is_file() {
            return Err(unusable(io::Error::other("expected a regular file, found that it was replaced")));
        }
        let taken = self.contents.take(&mut file, size);
        taken.map_err(|source| DirError::Content { path: shown(path), source })
    }
}

fn device_number(stat: &Stat) -> DeviceNumber {
    DeviceNumber { major: fs::major(stat.st_rdev), minor: fs::minor(stat.st_rdev) }
}

/// Whether this is overlayfs's mark of a deleted name.
fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && device_number(stat) == DeviceNumber { major: 0, minor: 0 }
}

/// Attributes of entry `name` of `directory`, of the entry itself if it is a symbolic link.
fn xattrs(
    buffer: &mut XattrBuffer,
    fidelity: Fidelity,
    directory: &OwnedFd,
    name: &CStr,
    path: &[u8],
) -> Result<Xattrs, DirError> {
    let fault = |errno| io_error(path, "read its extended attributes", errno);
    // The calls take no directory descriptor, so it is named through proc(5).
    let prefix = format!("/proc/self/fd/{}/", directory.as_fd().as_raw_fd());
    let entry = c_string([prefix.as_bytes(), name.to_bytes()].concat(), path)?;
    let XattrBuffer { names, value } = buffer;
    let listed = match fs::llistxattr(entry.as_c_str(), &mut names[..]) {
        Err(Errno::NOTSUP) => 0,
        listed => listed.map_err(fault)?,
    };
    let mut xattrs = Xattrs::new();
    for name in names[..listed].split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        if fidelity == Fidelity::Portable && HOST_XATTRS.contains(&name) {
            continue;
        }
        let c_name = c_string(name.to_vec(), path)?;
        let length = fs::lgetxattr(entry.as_c_str(), c_name, &mut value[..]).map_err(fault)?;
        xattrs.insert(name.to_vec(), value[..length].to_vec());
    }
    Ok(xattrs)
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
