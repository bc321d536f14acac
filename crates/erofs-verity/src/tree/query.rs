//! What a tree is asked.

use super::arena::{NONE, file_type, index};
use super::{Data, DeviceNumber, Extent, Kind, MAX_NAME, Metadata, NodeId, Timestamp, Tree, TreeError};
use crate::BLOCK_BYTES;
use crate::erofs::xattr;

impl Tree {
    /// The node that directory `parent` has under `name`.
    #[must_use]
    pub fn child(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        self.arena.find(parent.0, name).map(|entry| NodeId(self.arena.entries[index(entry)].node))
    }

    /// The directory of a node, of its first name if it has several. The root's is itself.
    #[must_use]
    pub fn parent(&self, id: NodeId) -> NodeId {
        match self.inode(id).entry {
            NONE => Self::ROOT,
            entry => NodeId(self.arena.entries[index(entry)].parent),
        }
    }

    /// The node at `path`; empty components are skipped, so that the empty path is the root.
    ///
    /// # Errors
    /// When there is none.
    pub fn lookup(&self, path: &[u8]) -> Result<NodeId, TreeError> {
        let mut components = path.split(|&byte| byte == b'/').filter(|name| !name.is_empty());
        components.try_fold(Self::ROOT, |id, name| {
            self.child(id, name).ok_or_else(|| TreeError::Missing { path: lossy(path) })
        })
    }

    /// Whether the node is a directory.
    #[must_use]
    pub fn is_directory(&self, id: NodeId) -> bool {
        self.inode(id).is_directory()
    }

    /// Names and nodes in a directory, in no particular order; none if `id` is no directory.
    pub fn entries(&self, id: NodeId) -> impl Iterator<Item = (&[u8], NodeId)> {
        let node = |entry| NodeId(self.arena.entries[index(entry)].node);
        self.arena.children(id.0).map(move |entry| (self.arena.name(entry), node(entry)))
    }

    /// Permissions, owner, time and attributes of a node.
    #[must_use]
    pub fn metadata(&self, id: NodeId) -> Metadata {
        let inode = self.inode(id);
        let xattrs = match inode.xattrs {
            NONE => super::Xattrs::new(),
            set => xattr::decode(self.arena.blob(set)),
        };
        Metadata {
            permissions: inode.mode & !file_type::MASK,
            uid: inode.uid,
            gid: inode.gid,
            mtime: Timestamp { seconds: inode.seconds, nanoseconds: inode.nanoseconds },
            xattrs,
        }
    }

    /// File type of a node and what belongs to it; `None` if the node is removed.
    #[must_use]
    pub fn kind(&self, id: NodeId) -> Option<Kind> {
        let inode = self.inode(id);
        Some(match inode.file_type() {
            file_type::DIRECTORY => Kind::Directory,
            file_type::REGULAR => Kind::Regular { size: inode.size, data: self.data(id) },
            file_type::SYMLINK => Kind::Symlink(self.arena.blob(inode.data).to_vec()),
            file_type::CHAR_DEVICE => Kind::CharDevice(DeviceNumber::decode(inode.data)),
            file_type::BLOCK_DEVICE => Kind::BlockDevice(DeviceNumber::decode(inode.data)),
            file_type::FIFO => Kind::Fifo,
            file_type::SOCKET => Kind::Socket,
            _ => return None,
        })
    }

    fn data(&self, id: NodeId) -> Data {
        let inode = self.inode(id);
        if !inode.chunked {
            // The size was checked against a number of 32 bits.
            let blocks = u32::try_from(inode.size.div_ceil(BLOCK_BYTES)).unwrap_or(u32::MAX);
            return Data::Flat(Extent { first_block: inode.data, blocks });
        }
        let (bits, starts) = self.arena.chunks(inode.data);
        let starts = starts.map(|start| (start != NONE).then_some(start)).collect();
        Data::Chunked { chunk_blocks: 1 << bits, starts }
    }

    /// Path of a node, of its first name if it has several, for messages; cut in front if it is very long.
    #[must_use]
    pub fn path(&self, mut id: NodeId) -> String {
        /// Components that are shown.
        const MAX_COMPONENTS: usize = 64;
        let mut names: Vec<&[u8]> = Vec::new();
        while id != Self::ROOT {
            if names.len() == MAX_COMPONENTS {
                names.push("…".as_bytes());
                break;
            }
            names.push(match self.inode(id).entry {
                NONE => b"?",
                entry => self.arena.name(entry),
            });
            id = self.parent(id);
        }
        names.iter().rev().fold(String::new(), |path, name| path + "/" + &lossy(name))
    }

    pub(super) fn child_path(&self, parent: NodeId, name: &[u8]) -> String {
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
