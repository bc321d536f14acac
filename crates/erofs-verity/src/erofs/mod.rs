//! Images of erofs, the kernel's read-only file system: uncompressed, blocks of 4096 bytes.
//!
//! Block 0 has the superblock, contents follow, and behind them lies the metadata area, to which the
//! superblock points. So contents can be written before the tree is known. Nothing else than the tree and
//! its contents leaves a trace: UUID, volume name and build time are zero, inodes are numbered by their place,
//! and places follow from sorted names. The format is Linux's `Documentation/filesystems/erofs.rst`.

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use crate::layer::{BlockStream, WriteError};
use crate::tree::arena::{Arena, Inode, NONE, file_type, index};
use crate::tree::{NodeId, Tree};
use crate::{BLOCK_BYTES, BLOCK_SIZE};
use format::{
    CompactInode, DATA_CHUNKED, DATA_INLINE, DATA_PLAIN, ExtendedInode, INODE_EXTENDED, SLOT_SIZE,
    SUPERBLOCK_OFFSET, SuperBlock,
};
use plan::{Plan, Shape};

mod dirent;
mod format;
mod plan;
pub mod xattr;

/// Writes the metadata area of `tree` to `out`, which stands behind the contents; returns block 0.
pub(crate) fn write_metadata(mut tree: Tree, out: &mut BlockStream) -> Result<Vec<u8>, WriteError> {
    out.align()?;
    let meta_block = block_number(out.position() / BLOCK_BYTES)?;
    tree.arena_mut().freeze();
    let plan = Plan::new(&mut tree)?;
    let first_block = u64::from(meta_block) + plan.inode_blocks;
    let mut area = MetadataArea { tree: &tree, plan: &plan, meta_block, next_block: first_block, out };
    area.write_inodes()?;
    area.write_blocks()?;
    let blocks = block_number(out.position() / BLOCK_BYTES)?;
    Ok(superblock(&plan, meta_block, blocks))
}

fn block_number(block: u64) -> Result<u32, WriteError> {
    // The last number stands for a hole.
    u32::try_from(block).ok().filter(|&block| block != NONE).ok_or(WriteError::TooLarge { blocks: block })
}

fn superblock(plan: &Plan, meta_block: u32, blocks: u32) -> Vec<u8> {
    let mut superblock = SuperBlock {
        magic: U32::new(format::MAGIC),
        checksum: U32::ZERO,
        feature_compat: U32::new(format::FEATURE_COMPAT),
        block_bits: format::BLOCK_BITS,
        extension_slots: 0,
        // The root inode lies in the first blocks of the metadata area, whatever the tree.
        root_nid: U16::new(u16::try_from(plan.slots[index(Tree::ROOT.0)]).unwrap_or(0)),
        inodes: U64::new(plan.order.len() as u64),
        build_time: U64::ZERO,
        build_time_nsec: U32::ZERO,
        blocks: U32::new(blocks),
        meta_block: U32::new(meta_block),
        xattr_block: U32::ZERO,
        uuid: [0; 16],
        volume_name: [0; 16],
        feature_incompat: U32::new(if plan.chunked { format::FEATURE_CHUNKED } else { 0 }),
        unused: [0; 44],
    };
    let mut block = vec![0; BLOCK_SIZE];
    let end = SUPERBLOCK_OFFSET + size_of::<SuperBlock>();
    block[SUPERBLOCK_OFFSET..end].copy_from_slice(superblock.as_bytes());
    // The kernel's CRC-32C covers the rest of the block and lacks the customary final inversion.
    superblock.checksum = U32::new(!crc32c::crc32c(&block[SUPERBLOCK_OFFSET..]));
    block[SUPERBLOCK_OFFSET..end].copy_from_slice(superblock.as_bytes());
    block
}

struct MetadataArea<'t, 'o> {
    tree: &'t Tree,
    plan: &'t Plan,
    meta_block: u32,
    /// Where the next whole block of a directory or link goes.
    next_block: u64,
    out: &'o mut BlockStream,
}

impl MetadataArea<'_, '_> {
    fn arena(&self) -> &Arena {
        self.tree.arena()
    }

    fn write_inodes(&mut self) -> Result<(), WriteError> {
        let start = u64::from(self.meta_block) * BLOCK_BYTES;
        let (tree, plan) = (self.tree, self.plan);
        for (number, &node) in plan.order.iter().enumerate() {
            let inode = &tree.arena().inodes[index(node)];
            let shape = Shape::of(tree.arena(), inode);
            self.out.pad_to(start + u64::from(plan.slots[index(node)]) * SLOT_SIZE)?;
            // Shown by the kernel on no 64-bit system; it has to be unique only.
            let ino = u32::try_from(number + 1).unwrap_or(NONE);
            self.write_inode(node, inode, &shape, ino)?;
            if inode.xattrs != NONE {
                self.out.put(tree.arena().blob(inode.xattrs))?;
            }
            if inode.chunked {
                self.write_chunk_index(node, inode)?;
            }
            if shape.inline > 0 {
                self.write_inline(node, inode, &shape)?;
            }
            self.next_block += shape.blocks;
        }
        self.out.align()
    }

    fn write_inode(&mut self, node: u32, inode: &Inode, shape: &Shape, ino: u32) -> Result<(), WriteError> {
        let layout = match shape.inline {
            _ if inode.chunked => DATA_CHUNKED,
            0 => DATA_PLAIN,
            _ => DATA_INLINE,
        };
        let format = U16::new(layout | if shape.compact { 0 } else { INODE_EXTENDED });
        let xattr_count = U16::new(xattr::inode_count(shape.xattr_size));
        let mode = U16::new(inode.mode);
        let (reserved, ino) = (U16::ZERO, U32::new(ino));
        let location = U32::new(self.location(node, inode, shape)?);
        if shape.compact {
            // The shape is compact only if all of these fit.
            let narrow = |value: u32| U16::new(u16::try_from(value).unwrap_or(u16::MAX));
            let (uid, gid, links) = (narrow(inode.uid), narrow(inode.gid), narrow(inode.links));
            let size = U32::new(u32::try_from(inode.size).unwrap_or(u32::MAX));
            let (reserved, reserved2) = (U32::ZERO, U32::ZERO);
            let inode = CompactInode {
                format,
                xattr_count,
                mode,
                links,
                size,
                reserved,
                location,
                ino,
                uid,
                gid,
                reserved2,
            };
            return self.out.put(inode.as_bytes());
        }
        let inode = ExtendedInode {
            format,
            xattr_count,
            mode,
            reserved,
            size: U64::new(inode.size),
            location,
            ino,
            uid: U32::new(inode.uid),
            gid: U32::new(inode.gid),
            mtime: U64::new(inode.seconds.cast_unsigned()),
            mtime_nsec: U32::new(inode.nanoseconds),
            links: U32::new(inode.links),
            reserved2: [0; 16],
        };
        self.out.put(inode.as_bytes())
    }

    /// What the inode's location field holds: a device number, the size of chunks, or where the data is.
    fn location(&self, node: u32, inode: &Inode, shape: &Shape) -> Result<u32, WriteError> {
        match inode.file_type() {
            file_type::CHAR_DEVICE | file_type::BLOCK_DEVICE => Ok(inode.data),
            file_type::REGULAR if inode.size == 0 => Ok(0),
            file_type::REGULAR if inode.chunked => Ok(self.arena().chunks(inode.data).0),
            file_type::REGULAR => {
                self.check_extent(node, inode.data, inode.size.div_ceil(BLOCK_BYTES))?;
                Ok(inode.data)
            }
            _ if shape.blocks > 0 => block_number(self.next_block),
            _ => Ok(0),
        }
    }

    fn write_chunk_index(&mut self, node: u32, inode: &Inode) -> Result<(), WriteError> {
        let tree = self.tree;
        let (bits, starts) = tree.arena().chunks(inode.data);
        let mut left = inode.size.div_ceil(BLOCK_BYTES);
        for start in starts {
            let blocks = left.min(1 << bits);
            left -= blocks;
            if start != NONE {
                self.check_extent(node, start, blocks)?;
            }
            self.out.put(&start.to_le_bytes())?;
        }
        Ok(())
    }

    /// Refuses content that does not lie between the superblock and the metadata area.
    fn check_extent(&self, node: u32, first_block: u32, blocks: u64) -> Result<(), WriteError> {
        if first_block > 0 && u64::from(first_block) + blocks <= u64::from(self.meta_block) {
            return Ok(());
        }
        let path = self.tree.path(NodeId(node));
        Err(WriteError::Extent { path, first_block, blocks, end: self.meta_block })
    }

    fn write_inline(&mut self, node: u32, inode: &Inode, shape: &Shape) -> Result<(), WriteError> {
        let tree = self.tree;
        if inode.is_directory() {
            let last = self.directory(node).last();
            return self.out.put(&dirent::encode(tree.arena(), &last.unwrap_or_default(), &self.plan.slots));
        }
        let target = tree.arena().blob(inode.data);
        self.out.put(&target[target.len() - shape.inline..])
    }

    fn write_blocks(&mut self) -> Result<(), WriteError> {
        let (tree, plan) = (self.tree, self.plan);
        for &node in &plan.order {
            let inode = &tree.arena().inodes[index(node)];
            let blocks = usize::try_from(Shape::of(tree.arena(), inode).blocks).unwrap_or(usize::MAX);
            if blocks == 0 {
                continue;
            }
            if inode.is_directory() {
                for block in self.directory(node).take(blocks) {
                    self.out.put(&dirent::encode(tree.arena(), &block, &plan.slots))?;
                    self.out.align()?;
                }
            } else {
                self.out.put(tree.arena().blob(inode.data))?;
                self.out.align()?;
            }
        }
        Ok(())
    }
}

impl<'t> MetadataArea<'t, '_> {
    /// A directory's entries, a block at a time.
    fn directory(&self, node: u32) -> impl Iterator<Item = Vec<(&'t [u8], u32)>> + use<'t> {
        let tree = self.tree;
        dirent::Blocks::new(dirent::sorted(tree.arena(), node, tree.parent(NodeId(node)).0))
    }
}
