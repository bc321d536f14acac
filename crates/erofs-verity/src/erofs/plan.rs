//! Where every inode goes, decided before the first of them is written.
//!
//! The metadata area begins at the block after the contents. Its first 32 bytes stay unused, so that no inode
//! has the number 0. Then come the inodes, breadth first, so that a directory's children lie together; behind
//! each inode its extended attributes, then a sparse file's chunk starts or, for directories and symbolic
//! links, the last partial block of their data, when all of that fits into one block. Whole blocks of
//! directories and links follow the inodes, in the same order.
//!
//! Contents of regular files are never put between the inodes: they are written as they arrive, and every file
//! can be mapped straight from the device.

use super::dirent;
use super::format::{CompactInode, ExtendedInode, SLOT_SIZE};
use crate::layer::WriteError;
use crate::tree::arena::{Arena, Inode, NONE, file_type, index};
use crate::tree::{NodeId, Tree};
use crate::{BLOCK_BYTES, BLOCK_SIZE};

/// The sizes of an inode and of what goes with it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) compact: bool,
    pub(super) xattr_size: usize,
    /// Bytes of a sparse file's chunk starts.
    pub(super) chunk_index: usize,
    /// Bytes at the end of a directory or link that follow the inode instead of taking a block.
    pub(super) inline: usize,
    /// Whole blocks of a directory or link, behind all inodes.
    pub(super) blocks: u64,
}

impl Shape {
    pub(super) fn of(arena: &Arena, inode: &Inode) -> Self {
        let fits_16_bits = |value| u16::try_from(value).is_ok();
        let compact = (inode.seconds, inode.nanoseconds) == (0, 0)
            && fits_16_bits(inode.uid)
            && fits_16_bits(inode.gid)
            && fits_16_bits(inode.links)
            && u32::try_from(inode.size).is_ok();
        let xattr_size = if inode.xattrs == NONE { 0 } else { arena.blob(inode.xattrs).len() };
        let chunk_index =
            if inode.chunked { arena.chunks(inode.data).1.count() * size_of::<u32>() } else { 0 };
        let mut shape = Self { compact, xattr_size, chunk_index, inline: 0, blocks: 0 };
        if matches!(inode.file_type(), file_type::DIRECTORY | file_type::SYMLINK) {
            let tail = usize::try_from(inode.size % BLOCK_BYTES).unwrap_or(0);
            shape.inline = if shape.head() + tail <= BLOCK_SIZE { tail } else { 0 };
            shape.blocks = (inode.size - shape.inline as u64).div_ceil(BLOCK_BYTES);
        }
        shape
    }

    fn head(&self) -> usize {
        let inode = if self.compact { size_of::<CompactInode>() } else { size_of::<ExtendedInode>() };
        inode + self.xattr_size
    }

    /// Place for the inode and what follows it at or after `end`, and its own end. Inline data must not cross
    /// a block boundary; the rest does so only if it is larger than a block.
    fn place(&self, end: u64) -> (u64, u64) {
        let length = (self.head() + self.chunk_index + self.inline) as u64;
        let position = end.next_multiple_of(SLOT_SIZE);
        let crosses = position % BLOCK_BYTES + length > BLOCK_BYTES;
        let position = if crosses { position.next_multiple_of(BLOCK_BYTES) } else { position };
        (position, position + length)
    }
}

pub(super) struct Plan {
    /// Nodes in the order in which they are written; the root is first.
    pub(super) order: Vec<u32>,
    /// Place of every node's inode, in units of 32 bytes from the beginning of the metadata area: its number.
    pub(super) slots: Vec<u32>,
    /// Blocks of the metadata area before the whole blocks of directories and links.
    pub(super) inode_blocks: u64,
    /// Whether any file is in chunks.
    pub(super) chunked: bool,
}

impl Plan {
    /// Sorts every directory of `tree` and places every inode.
    pub(super) fn new(tree: &mut Tree) -> Result<Self, WriteError> {
        let mut plan = Self {
            order: Vec::with_capacity(tree.node_count()),
            slots: vec![NONE; tree.arena().inodes.len()],
            inode_blocks: 0,
            chunked: false,
        };
        let mut end = SLOT_SIZE;
        let mut buffer = Vec::new();
        plan.reach(Tree::ROOT.0);
        let mut next = 0;
        while let Some(&node) = plan.order.get(next) {
            next += 1;
            if tree.is_directory(NodeId(node)) {
                plan.enter(tree, node, &mut buffer);
            }
            let inode = &tree.arena().inodes[index(node)];
            plan.chunked |= inode.chunked;
            let position;
            (position, end) = Shape::of(tree.arena(), inode).place(end);
            plan.slots[index(node)] = u32::try_from(position / SLOT_SIZE)
                .map_err(|_| WriteError::TooLarge { blocks: position / BLOCK_BYTES })?;
        }
        plan.inode_blocks = end.div_ceil(BLOCK_BYTES);
        Ok(plan)
    }

    /// Puts a node at the end of the order unless it is there.
    fn reach(&mut self, node: u32) {
        if self.slots[index(node)] == NONE {
            self.slots[index(node)] = 0;
            self.order.push(node);
        }
    }

    /// Sorts a directory, measures it, and reaches everything in it.
    fn enter(&mut self, tree: &mut Tree, directory: u32, buffer: &mut Vec<u32>) {
        let parent = tree.parent(NodeId(directory)).0;
        let arena = tree.arena_mut();
        arena.sort_children(directory, buffer);
        let size = dirent::size(dirent::sorted(arena, directory, parent));
        arena.inodes[index(directory)].size = size;
        for entry in arena.children(directory) {
            self.reach(arena.entries[index(entry)].node);
        }
    }
}
