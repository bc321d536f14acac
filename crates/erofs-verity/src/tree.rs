//! A file tree: what an image is made of.
//!
//! Nodes live in one arena and refer to each other by index, so depth costs no stack. Every node is checked
//! when it is added, against what Linux and erofs can represent; a [`Tree`] in hand can be written, and the
//! only errors left are those of the contents. Names and targets are bytes, as they are to the kernel.
//!
//! The order in which nodes are added leaves no trace in the image.

use std::collections::BTreeMap;

use crate::erofs::xattr;

/// Longest name of a directory entry in bytes (`NAME_MAX`).
pub const MAX_NAME: usize = 255;
/// Longest target of a symbolic link in bytes (`PATH_MAX` without its terminating zero).
pub const MAX_SYMLINK: usize = 4095;

/// Extended attributes by full name, `user.mime_type` for example.
pub type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// A point in time; negative seconds lie before 1970.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timestamp {
    /// Seconds since the Unix epoch.
    pub seconds: i64,
    /// Nanoseconds within the second, below 1 000 000 000.
    pub nanoseconds: u32,
}

/// What every node has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Permission bits with set-user-ID, set-group-ID and sticky: at most `0o7777`.
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of last modification.
    pub mtime: Timestamp,
    /// Extended attributes.
    pub xattrs: Xattrs,
}

/// What a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind<C> {
    /// A directory; nodes are put into it with [`Tree::add`].
    Directory,
    /// A regular file whose content has to have exactly `size` bytes.
    Regular {
        /// Size in bytes.
        size: u64,
        /// Where the bytes come from.
        content: C,
    },
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// A character device. Number 0:0 is overlayfs's mark of a deleted name.
    CharDevice(DeviceNumber),
    /// A block device.
    BlockDevice(DeviceNumber),
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
}

/// A device number as Linux encodes it in 32 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceNumber {
    /// Major number, 12 bits.
    pub major: u32,
    /// Minor number, 20 bits.
    pub minor: u32,
}

impl DeviceNumber {
    const MAX_MAJOR: u32 = 0xFFF;
    const MAX_MINOR: u32 = 0xF_FFFF;

    /// The kernel's 32-bit encoding (`new_encode_dev`).
    #[must_use]
    pub(crate) const fn encode(self) -> u32 {
        (self.minor & 0xFF) | (self.major << 8) | ((self.minor & !0xFF) << 12)
    }
}

/// A node to be added to a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node<C> {
    /// Permissions, owner, time, extended attributes.
    pub metadata: Metadata,
    /// File type and what belongs to it.
    pub kind: Kind<C>,
}

/// A node of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(u32);

impl NodeId {
    pub(crate) fn index(self) -> usize {
        // Lossless on every platform with pointers of 32 bits or more.
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

pub(crate) type Entries = BTreeMap<Box<[u8]>, NodeId>;

#[derive(Debug)]
pub(crate) struct Slot<C> {
    pub(crate) node: Node<C>,
    /// Directory that the node was first added to; the root is its own parent.
    pub(crate) parent: NodeId,
    /// Names of the node: 1, or more with hard links.
    pub(crate) links: u32,
    /// Directory entries, empty unless the node is a directory.
    pub(crate) entries: Entries,
}

/// A file tree whose nodes have passed every check.
#[derive(Debug)]
pub struct Tree<C> {
    slots: Vec<Slot<C>>,
}

/// Why a node is refused. `path` is the node's path in the tree, shown lossily.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// Name empty, too long, `.`, `..`, or with a slash or zero byte.
    #[error(
        "{path}: expected a name of 1 to {MAX_NAME} bytes without '/' and zero, other than '.' and '..', found {found} bytes"
    )]
    Name {
        /// Path of the refused entry.
        path: String,
        /// Length of the name.
        found: usize,
    },
    /// The parent is not a directory.
    #[error("{path}: expected a directory above it, found another kind of file")]
    NotDirectory {
        /// Path of the refused entry.
        path: String,
    },
    /// No node has this path.
    #[error("{path}: no such node in the tree")]
    Missing {
        /// Path that was looked up.
        path: String,
    },
    /// The name is taken.
    #[error("{path}: is in the tree already")]
    Exists {
        /// Path of the refused entry.
        path: String,
    },
    /// A second name for a directory.
    #[error("{path}: expected a hard link to a file, found one to a directory")]
    DirectoryLink {
        /// Path of the refused entry.
        path: String,
    },
    /// Something that Linux or erofs cannot represent.
    #[error("{path}: {what}: expected {expected}, found {found}")]
    Field {
        /// Path of the refused node.
        path: String,
        /// Field of the node.
        what: &'static str,
        /// Range or form that is possible.
        expected: &'static str,
        /// What was given.
        found: String,
    },
    /// An extended attribute that erofs cannot represent.
    #[error("{path}: {source}")]
    Xattr {
        /// Path of the refused node.
        path: String,
        /// What is wrong with it.
        source: xattr::XattrError,
    },
    /// More nodes or links than fit 32 bits.
    #[error("{path}: expected at most {max} nodes in a tree and links to a node", max = u32::MAX)]
    TooMany {
        /// Path of the refused entry.
        path: String,
    },
}

impl<C> Tree<C> {
    /// The root directory.
    pub const ROOT: NodeId = NodeId(0);

    /// A tree of one empty directory.
    ///
    /// # Errors
    /// When `root` cannot be represented.
    pub fn new(root: Metadata) -> Result<Self, TreeError> {
        let node = Node { metadata: root, kind: Kind::Directory };
        check(&node).map_err(|fault| fault.at("/".into()))?;
        Ok(Self { slots: vec![Slot { node, parent: Self::ROOT, links: 1, entries: Entries::new() }] })
    }

    /// Number of nodes; a file with several names counts once.
    #[must_use]
    pub fn node_count(&self) -> usize {
        self.slots.len()
    }

    /// The node itself.
    #[must_use]
    pub fn node(&self, id: NodeId) -> &Node<C> {
        &self.slots[id.index()].node
    }

    /// Names and nodes in a directory, sorted bytewise; none if `id` is no directory.
    pub fn entries(&self, id: NodeId) -> impl Iterator<Item = (&[u8], NodeId)> {
        self.slot(id).entries.iter().map(|(name, &child)| (&name[..], child))
    }

    pub(crate) fn slot(&self, id: NodeId) -> &Slot<C> {
        &self.slots[id.index()]
    }

    /// Adds `node` as `name` to directory `parent`.
    ///
    /// # Errors
    /// When `parent` is no directory, the name is taken or impossible, or the node cannot be represented.
    pub fn add(&mut self, parent: NodeId, name: &[u8], node: Node<C>) -> Result<NodeId, TreeError> {
        check(&node).map_err(|fault| fault.at(self.child_path(parent, name)))?;
        let id = u32::try_from(self.slots.len())
            .map(NodeId)
            .map_err(|_| TreeError::TooMany { path: self.child_path(parent, name) })?;
        self.enter(parent, name, id)?;
        self.slots.push(Slot { node, parent, links: 1, entries: Entries::new() });
        Ok(id)
    }

    /// Gives the file `target` a further name: `name` in directory `parent`.
    ///
    /// # Errors
    /// When `target` is a directory, `parent` is none, or the name is taken or impossible.
    pub fn link(&mut self, parent: NodeId, name: &[u8], target: NodeId) -> Result<(), TreeError> {
        if matches!(self.node(target).kind, Kind::Directory) {
            return Err(TreeError::DirectoryLink { path: self.child_path(parent, name) });
        }
        let links = self.slot(target).links.checked_add(1);
        let links = links.ok_or_else(|| TreeError::TooMany { path: self.child_path(parent, name) })?;
        self.enter(parent, name, target)?;
        self.slots[target.index()].links = links;
        Ok(())
    }

    /// Adds `node` at `path` (components between slashes, relative to the root), whose parent has to be in
    /// the tree already.
    ///
    /// # Errors
    /// As [`Tree::add`], and when the parent is missing.
    pub fn insert(&mut self, path: &[u8], node: Node<C>) -> Result<NodeId, TreeError> {
        let (parent, name) = match path.iter().rposition(|&byte| byte == b'/') {
            Some(slash) => (self.lookup(&path[..slash])?, &path[slash + 1..]),
            None => (Self::ROOT, path),
        };
        self.add(parent, name, node)
    }

    /// The node at `path`; empty components are skipped, so that the empty path is the root.
    ///
    /// # Errors
    /// When there is none.
    pub fn lookup(&self, path: &[u8]) -> Result<NodeId, TreeError> {
        let components = path.split(|&byte| byte == b'/').filter(|name| !name.is_empty());
        components.into_iter().try_fold(Self::ROOT, |id, name| {
            let found = self.slot(id).entries.get(name).copied();
            found.ok_or_else(|| TreeError::Missing { path: lossy(path) })
        })
    }

    /// Path of a node, of its first name if it has several, for messages.
    #[must_use]
    pub fn path(&self, mut id: NodeId) -> String {
        let mut names: Vec<&[u8]> = Vec::new();
        while id != Self::ROOT {
            let parent = self.slot(id).parent;
            let name = self.slot(parent).entries.iter().find(|&(_, &child)| child == id);
            names.push(name.map_or(b"?", |(name, _)| name));
            id = parent;
        }
        names.iter().rev().fold(String::new(), |path, name| path + "/" + &lossy(name))
    }

    fn enter(&mut self, parent: NodeId, name: &[u8], id: NodeId) -> Result<(), TreeError> {
        if !is_entry_name(name) {
            return Err(TreeError::Name { path: self.child_path(parent, name), found: name.len() });
        }
        if !matches!(self.node(parent).kind, Kind::Directory) {
            return Err(TreeError::NotDirectory { path: self.child_path(parent, name) });
        }
        if self.slot(parent).entries.contains_key(name) {
            return Err(TreeError::Exists { path: self.child_path(parent, name) });
        }
        self.slots[parent.index()].entries.insert(name.into(), id);
        Ok(())
    }

    fn child_path(&self, parent: NodeId, name: &[u8]) -> String {
        let mut shown = lossy(&name[..name.len().min(MAX_NAME)]);
        if name.len() > MAX_NAME {
            shown.push('…');
        }
        format!("{}/{shown}", self.path(parent))
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn is_entry_name(name: &[u8]) -> bool {
    !name.is_empty()
        && name.len() <= MAX_NAME
        && !matches!(name, b"." | b"..")
        && !name.iter().any(|&byte| matches!(byte, b'/' | 0))
}

/// What is wrong with a node, before its path is known.
enum Fault {
    Field { what: &'static str, expected: &'static str, found: String },
    Xattr(xattr::XattrError),
}

impl Fault {
    fn at(self, path: String) -> TreeError {
        match self {
            Self::Field { what, expected, found } => TreeError::Field { path, what, expected, found },
            Self::Xattr(source) => TreeError::Xattr { path, source },
        }
    }

    fn field<T>(what: &'static str, expected: &'static str, found: impl ToString) -> Result<T, Self> {
        Err(Self::Field { what, expected, found: found.to_string() })
    }
}

fn check<C>(node: &Node<C>) -> Result<(), Fault> {
    let Metadata { permissions, mtime, xattrs, .. } = &node.metadata;
    if *permissions > 0o7777 {
        return Fault::field("permissions", "at most 0o7777", format!("{permissions:#o}"));
    }
    if mtime.nanoseconds >= 1_000_000_000 {
        return Fault::field("mtime", "fewer than 1000000000 nanoseconds", mtime.nanoseconds);
    }
    xattr::check(xattrs).map_err(Fault::Xattr)?;
    match &node.kind {
        Kind::Regular { size, .. } if i64::try_from(*size).is_err() => {
            Fault::field("size", "at most 2^63 - 1 bytes", size)
        }
        Kind::Symlink(target) if !(1..=MAX_SYMLINK).contains(&target.len()) => {
            Fault::field("symbolic link", "a target of 1 to 4095 bytes", target.len())
        }
        Kind::Symlink(target) if target.contains(&0) => {
            Fault::field("symbolic link", "a target without zero bytes", "one")
        }
        Kind::CharDevice(number) | Kind::BlockDevice(number)
            if number.major > DeviceNumber::MAX_MAJOR || number.minor > DeviceNumber::MAX_MINOR =>
        {
            let found = format!("{}:{}", number.major, number.minor);
            Fault::field("device number", "at most 4095:1048575", found)
        }
        _ => Ok(()),
    }
}
