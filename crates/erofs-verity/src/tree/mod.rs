//! A file tree: what an image is made of.
//!
//! Nodes live in one arena and refer to each other by number, so depth costs no stack, and an entry takes 64
//! bytes, its name, and its share of a hash table. Every node is checked when it is added, against what Linux
//! and erofs can represent, and against a budget of memory ([`Tree::with_budget`]). Names and targets are
//! bytes, as they are to the kernel.
//!
//! The order in which nodes are added leaves no trace in the image, except through where the contents lie.

pub use error::TreeError;
pub use node::{Data, DeviceNumber, Extent, Kind, MAX_NAME, MAX_SYMLINK, Metadata, Node, Timestamp, Xattrs};

use crate::erofs::xattr;
use arena::{Arena, Demand, Inode, NONE, file_type, index};
use node::{Fault, check_kind, check_metadata, is_entry_name};

pub(crate) mod arena;
mod error;
mod node;
mod query;

/// A node of a tree. It never comes to mean another node, even if its own is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub(crate) u32);

/// A file tree whose nodes have passed every check.
#[derive(Debug)]
pub struct Tree {
    arena: Arena,
    budget: usize,
    /// Nodes that are not removed.
    living: usize,
}

impl Tree {
    /// The root directory.
    pub const ROOT: NodeId = NodeId(0);

    /// A tree of one empty directory, which may take any memory.
    ///
    /// # Errors
    /// When `root` cannot be represented.
    pub fn new(root: Metadata) -> Result<Self, TreeError> {
        Self::with_budget(root, usize::MAX)
    }

    /// A tree of one empty directory. Whatever would make [`Tree::bytes`] exceed `budget` is refused.
    ///
    /// # Errors
    /// When `root` cannot be represented or exceeds the budget.
    pub fn with_budget(root: Metadata, budget: usize) -> Result<Self, TreeError> {
        let mut tree = Self { arena: Arena::default(), budget, living: 0 };
        let path = || "/".to_owned();
        let body = encoded(&root).map_err(|fault| fault.at(path()))?;
        tree.reserve(Demand { nodes: 1, blob_bytes: tree.xattr_size(&body), ..Demand::default() }, path)?;
        tree.put_inode(&root, &Kind::Directory, &body);
        tree.arena.inodes[0].links = 2;
        Ok(tree)
    }

    /// Bytes that the tree takes in memory. What was removed or replaced goes on counting.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.arena.bytes()
    }

    /// Number of nodes; a file with several names counts once.
    #[must_use]
    pub fn node_count(&self) -> usize {
        self.living
    }

    /// Adds `node` as `name` to directory `parent`.
    ///
    /// # Errors
    /// When `parent` is no directory, the name is taken or impossible, or the node cannot be represented or
    /// exceeds the budget.
    pub fn add(&mut self, parent: NodeId, name: &[u8], node: Node) -> Result<NodeId, TreeError> {
        let path = || self.child_path(parent, name);
        self.check_free(parent, name)?;
        let body = encoded(&node.metadata).map_err(|fault| fault.at(path()))?;
        check_kind(&node.kind).map_err(|fault| fault.at(path()))?;
        let blob_bytes = self.xattr_size(&body) + blob_size(&node.kind);
        self.reserve(Demand { nodes: 1, entries: 1, name_bytes: name.len() + 1, blob_bytes }, path)?;
        let id = self.put_inode(&node.metadata, &node.kind, &body);
        let entry = self.arena.put_entry(parent.0, name, id.0);
        self.inode_mut(id).entry = entry;
        if matches!(node.kind, Kind::Directory) {
            self.inode_mut(id).links = 2;
            self.inode_mut(parent).links += 1;
        }
        Ok(id)
    }

    /// Gives the file `target` a further name: `name` in directory `parent`.
    ///
    /// # Errors
    /// When `target` is a directory or removed, `parent` is no directory, the name is taken or impossible, or
    /// the budget is exceeded.
    pub fn link(&mut self, parent: NodeId, name: &[u8], target: NodeId) -> Result<(), TreeError> {
        let path = || self.child_path(parent, name);
        self.check_free(parent, name)?;
        if self.is_directory(target) {
            return Err(TreeError::DirectoryLink { path: path() });
        }
        if self.inode(target).mode == 0 {
            return Err(TreeError::Missing { path: path() });
        }
        let links = self.inode(target).links.checked_add(1);
        let links = links.ok_or_else(|| TreeError::TooMany { path: path() })?;
        self.reserve(Demand { entries: 1, name_bytes: name.len() + 1, ..Demand::default() }, path)?;
        self.arena.put_entry(parent.0, name, target.0);
        self.inode_mut(target).links = links;
        Ok(())
    }

    /// Removes the entry `name` of directory `parent`, with everything below it. A file goes with its last
    /// name.
    ///
    /// # Errors
    /// When there is no such entry.
    pub fn remove(&mut self, parent: NodeId, name: &[u8]) -> Result<(), TreeError> {
        let missing = || TreeError::Missing { path: self.child_path(parent, name) };
        let entry = self.arena.find(parent.0, name).ok_or_else(missing)?;
        let mut pending = vec![entry];
        while let Some(entry) = pending.pop() {
            let arena::Entry { parent, node, .. } = self.arena.entries[index(entry)];
            let directory = self.is_directory(NodeId(node));
            if directory {
                pending.extend(self.arena.children(node));
                self.inode_mut(NodeId(parent)).links -= 1;
            }
            self.arena.remove_entry(entry);
            let inode = self.inode_mut(NodeId(node));
            inode.links -= 1;
            if directory || inode.links == 0 {
                inode.mode = 0;
                self.living -= 1;
            }
        }
        Ok(())
    }

    /// Gives a node other permissions, owner, time and attributes.
    ///
    /// # Errors
    /// When they cannot be represented or exceed the budget.
    pub fn set_metadata(&mut self, id: NodeId, metadata: &Metadata) -> Result<(), TreeError> {
        let path = || self.path(id);
        let body = encoded(metadata).map_err(|fault| fault.at(path()))?;
        self.reserve(Demand { blob_bytes: self.xattr_size(&body), ..Demand::default() }, path)?;
        let xattrs = self.put_xattrs(&body);
        let inode = self.inode_mut(id);
        inode.seconds = metadata.mtime.seconds;
        inode.nanoseconds = metadata.mtime.nanoseconds;
        inode.uid = metadata.uid;
        inode.gid = metadata.gid;
        inode.mode = inode.file_type() | metadata.permissions;
        inode.xattrs = xattrs;
        Ok(())
    }

    /// Gives a node an extended attribute, in place of one of the same name.
    ///
    /// # Errors
    /// When it cannot be represented beside the node's others, or exceeds the budget.
    pub fn set_xattr(&mut self, id: NodeId, name: &[u8], value: &[u8]) -> Result<(), TreeError> {
        let mut metadata = self.metadata(id);
        metadata.xattrs.insert(name.to_vec(), value.to_vec());
        self.set_metadata(id, &metadata)
    }

    /// Adds `node` at `path` (components between slashes, relative to the root), whose parent has to be in
    /// the tree already.
    ///
    /// # Errors
    /// As [`Tree::add`], and when the parent is missing.
    pub fn insert(&mut self, path: &[u8], node: Node) -> Result<NodeId, TreeError> {
        let (parent, name) = match path.iter().rposition(|&byte| byte == b'/') {
            Some(slash) => (self.lookup(&path[..slash])?, &path[slash + 1..]),
            None => (Self::ROOT, path),
        };
        self.add(parent, name, node)
    }

    fn check_free(&self, parent: NodeId, name: &[u8]) -> Result<(), TreeError> {
        let path = || self.child_path(parent, name);
        if !is_entry_name(name) {
            return Err(TreeError::Name { path: path(), found: name.len() });
        }
        if !self.is_directory(parent) {
            return Err(TreeError::NotDirectory { path: path() });
        }
        if self.arena.find(parent.0, name).is_some() {
            return Err(TreeError::Exists { path: path() });
        }
        Ok(())
    }

    /// Makes sure that what `demand` says can be added.
    fn reserve(&self, demand: Demand, path: impl Fn() -> String) -> Result<(), TreeError> {
        let needed = self.arena.bytes_with(demand).ok_or_else(|| TreeError::TooMany { path: path() })?;
        if needed > self.budget {
            return Err(TreeError::Budget { path: path(), budget: self.budget, needed });
        }
        Ok(())
    }

    /// Adds a node that has been checked and for which there is room.
    fn put_inode(&mut self, metadata: &Metadata, kind: &Kind, xattr_body: &[u8]) -> NodeId {
        let (file_type, size, data) = self.put_kind(kind);
        let xattrs = self.put_xattrs(xattr_body);
        let number = arena::next_number(self.arena.inodes.len()).unwrap_or(NONE);
        self.arena.inodes.push(Inode {
            seconds: metadata.mtime.seconds,
            size,
            nanoseconds: metadata.mtime.nanoseconds,
            uid: metadata.uid,
            gid: metadata.gid,
            links: 1,
            mode: file_type | metadata.permissions,
            chunked: matches!(kind, Kind::Regular { data: Data::Chunked { .. }, .. }),
            xattrs,
            data,
            entry: NONE,
        });
        self.living += 1;
        NodeId(number)
    }

    /// Keeps what belongs to a file type: its bits of the mode, its size, its data.
    fn put_kind(&mut self, kind: &Kind) -> (u16, u64, u32) {
        match kind {
            Kind::Directory => (file_type::DIRECTORY, 0, NONE),
            Kind::Regular { size, data: Data::Flat(extent) } => {
                (file_type::REGULAR, *size, extent.first_block)
            }
            Kind::Regular { size, data: Data::Chunked { chunk_blocks, starts } } => {
                let numbers = std::iter::once(chunk_blocks.ilog2())
                    .chain(starts.iter().map(|start| start.unwrap_or(NONE)));
                let bytes: Vec<u8> = numbers.flat_map(u32::to_le_bytes).collect();
                (file_type::REGULAR, *size, self.arena.put_blob(&bytes))
            }
            Kind::Symlink(target) => (file_type::SYMLINK, target.len() as u64, self.arena.put_blob(target)),
            Kind::CharDevice(number) => (file_type::CHAR_DEVICE, 0, number.encode()),
            Kind::BlockDevice(number) => (file_type::BLOCK_DEVICE, 0, number.encode()),
            Kind::Fifo => (file_type::FIFO, 0, 0),
            Kind::Socket => (file_type::SOCKET, 0, 0),
        }
    }

    fn put_xattrs(&mut self, body: &[u8]) -> u32 {
        if body.is_empty() {
            return NONE;
        }
        self.arena.find_xattr_set(body).unwrap_or_else(|| self.arena.put_xattr_set(body))
    }

    /// Bytes that [`Self::put_xattrs`] keeps.
    fn xattr_size(&self, body: &[u8]) -> usize {
        let known = body.is_empty() || self.arena.find_xattr_set(body).is_some();
        if known { 0 } else { Arena::blob_size(body.len()) }
    }

    fn inode(&self, id: NodeId) -> &Inode {
        &self.arena.inodes[index(id.0)]
    }

    fn inode_mut(&mut self, id: NodeId) -> &mut Inode {
        &mut self.arena.inodes[index(id.0)]
    }

    pub(crate) fn arena(&self) -> &Arena {
        &self.arena
    }

    pub(crate) fn arena_mut(&mut self) -> &mut Arena {
        &mut self.arena
    }
}

/// A node's attributes as erofs encodes them; its metadata have been checked.
fn encoded(metadata: &Metadata) -> Result<Vec<u8>, Fault> {
    check_metadata(metadata)?;
    xattr::encode(&metadata.xattrs).map_err(Fault::Xattr)
}

/// Bytes that [`Tree::put_kind`] keeps.
fn blob_size(kind: &Kind) -> usize {
    match kind {
        Kind::Symlink(target) => Arena::blob_size(target.len()),
        Kind::Regular { data: Data::Chunked { starts, .. }, .. } => {
            Arena::blob_size((starts.len() + 1) * size_of::<u32>())
        }
        _ => 0,
    }
}
