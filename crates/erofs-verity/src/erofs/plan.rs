//! Where everything goes, decided before the first byte is written.
//!
//! Block 0 holds the superblock. From block 1 on come the inodes, breadth first, so that a directory's
//! children lie together; behind each inode its extended attributes and, for directories and symbolic links,
//! the last partial block of its data, when all of that fits into one block. Whole blocks of directories and
//! links follow, then the regular files, each from a block boundary.
//!
//! Contents of regular files are never put between the inodes: the plan then needs sizes only, contents are
//! read once and in order, and every file can be mapped straight from the device.

use super::format::{CompactInode, ExtendedInode, SLOT_SIZE};
use super::{WriteError, dirent, xattr};
use crate::tree::{Kind, NodeId, Timestamp, Tree};
use crate::{BLOCK_BYTES, BLOCK_SIZE};

pub(super) struct Inode {
    pub(super) id: NodeId,
    /// Byte offset in the image.
    pub(super) position: u64,
    /// Bytes of data: file content, link target, or directory entries.
    pub(super) size: u64,
    pub(super) links: u32,
    pub(super) compact: bool,
    pub(super) xattr_size: usize,
    /// Bytes at the end of the data that follow the inode instead of taking a block.
    pub(super) inline: usize,
    /// First whole block of the data, 0 if there is none.
    pub(super) first_block: u32,
}

impl Inode {
    pub(super) fn nid(&self) -> u64 {
        self.position / SLOT_SIZE
    }

    fn data_blocks(&self) -> u64 {
        (self.size - self.inline as u64).div_ceil(BLOCK_BYTES)
    }
}

pub(super) struct Plan {
    /// In the order in which they are written; the root is first.
    pub(super) inodes: Vec<Inode>,
    /// Inode number of every node of the tree, by its index.
    pub(super) nids: Vec<u64>,
    /// Blocks of the whole image.
    pub(super) blocks: u32,
}

impl Plan {
    pub(super) fn new<C>(tree: &Tree<C>) -> Result<Self, WriteError> {
        let mut inodes: Vec<Inode> = breadth_first(tree).into_iter().map(|id| measure(tree, id)).collect();
        let mut nids = vec![0; tree.node_count()];
        let mut end = BLOCK_BYTES;
        for inode in &mut inodes {
            end = place(inode, end);
            nids[inode.id.index()] = inode.nid();
        }
        let mut next_block = end.div_ceil(BLOCK_BYTES);
        for regular in [false, true] {
            let of_pass = |inode: &&mut Inode| {
                matches!(tree.node(inode.id).kind, Kind::Regular { .. }) == regular && inode.data_blocks() > 0
            };
            for inode in inodes.iter_mut().filter(of_pass) {
                inode.first_block = block_number(next_block)?;
                next_block = next_block.saturating_add(inode.data_blocks());
            }
        }
        Ok(Self { inodes, nids, blocks: block_number(next_block)? })
    }
}

fn block_number(block: u64) -> Result<u32, WriteError> {
    u32::try_from(block).map_err(|_| WriteError::TooLarge { blocks: block })
}

fn breadth_first<C>(tree: &Tree<C>) -> Vec<NodeId> {
    let mut seen = vec![false; tree.node_count()];
    seen[Tree::<C>::ROOT.index()] = true;
    let mut order = Vec::with_capacity(tree.node_count());
    order.push(Tree::<C>::ROOT);
    let mut next = 0;
    while let Some(&id) = order.get(next) {
        next += 1;
        for &child in tree.slot(id).entries.values() {
            if !std::mem::replace(&mut seen[child.index()], true) {
                order.push(child);
            }
        }
    }
    order
}

/// Everything about an inode but its place.
fn measure<C>(tree: &Tree<C>, id: NodeId) -> Inode {
    let slot = tree.slot(id);
    let (size, links) = match &slot.node.kind {
        Kind::Directory => {
            let is_directory = |&child: &NodeId| matches!(tree.node(child).kind, Kind::Directory);
            let subdirectories = slot.entries.values().copied().filter(is_directory).count();
            let links = u32::try_from(subdirectories).unwrap_or(u32::MAX).saturating_add(2);
            (dirent::size(&dirent::sorted(tree, id)), links)
        }
        Kind::Regular { size, .. } => (*size, slot.links),
        Kind::Symlink(target) => (target.len() as u64, slot.links),
        _ => (0, slot.links),
    };
    let metadata = &slot.node.metadata;
    let fits_16_bits = |value| u16::try_from(value).is_ok();
    let compact = metadata.mtime == Timestamp::default()
        && fits_16_bits(metadata.uid)
        && fits_16_bits(metadata.gid)
        && fits_16_bits(links)
        && u32::try_from(size).is_ok();
    let xattr_size = xattr::body_size(&metadata.xattrs);
    let head = inode_size(compact) + xattr_size;
    let tail = usize::try_from(size % BLOCK_BYTES).unwrap_or(0);
    let may_inline = !matches!(slot.node.kind, Kind::Regular { .. });
    let inline = if may_inline && head + tail <= BLOCK_SIZE { tail } else { 0 };
    Inode { id, position: 0, size, links, compact, xattr_size, inline, first_block: 0 }
}

const fn inode_size(compact: bool) -> usize {
    if compact { size_of::<CompactInode>() } else { size_of::<ExtendedInode>() }
}

/// Places an inode and what follows it at or after `end`; returns its end. Inline data must not cross a block
/// boundary; inode and attributes do so only if they are larger than a block.
fn place(inode: &mut Inode, end: u64) -> u64 {
    let length = (inode_size(inode.compact) + inode.xattr_size + inode.inline) as u64;
    let position = end.next_multiple_of(SLOT_SIZE);
    let crosses = position % BLOCK_BYTES + length > BLOCK_BYTES;
    inode.position = if crosses { position.next_multiple_of(BLOCK_BYTES) } else { position };
    inode.position + length
}
