//! Writes an empty ext4 file system.
//!
//! It is made for devices whose blocks cannot be read before they are written, such as freshly keyed authenticated
//! encryption: every block that the kernel reads before writing it is written here, and nothing else is. Bitmaps
//! and inode tables of all but the first group are marked uninitialised (the `uninit_bg` feature), so the work is
//! a few blocks and one descriptor of 32 bytes for each 128 MiB.
//!
//! The file system has no journal, because what it holds ends with its machine; no backup superblocks
//! (`sparse_super2` with none named), because nobody will repair it; and no metadata checksums, because a device
//! that authenticates its blocks has them already. The kernel must be told not to initialise inode tables in the
//! background and not to read them ahead: see [`MOUNT_OPTIONS`].
//!
//! Every byte is a function of the size and the [`Identity`]. Follows the kernel's
//! `Documentation/filesystems/ext4`, whose names of fields are used.

mod disk;
mod layout;

use std::io::{self, Seek, SeekFrom, Write};

use thiserror::Error;
use zerocopy::IntoBytes;

use disk::{Descriptor, Inode, SuperBlock};
pub use layout::Layout;

/// Bytes of a block. Writes are whole blocks at multiples of it.
pub const BLOCK_SIZE: u64 = 4096;
/// Smallest device in bytes.
pub const MIN_BYTES: u64 = 16 << 20;
/// Largest device in bytes. Block numbers have 32 bits, so that of a device this large the last block is unused.
pub const MAX_BYTES: u64 = 16 << 40;
/// Mount options with which the kernel reads only what was written: it leaves inode tables alone until they are
/// used, reads no neighbours of an inode, and does not look through the bitmaps ahead of need.
pub const MOUNT_OPTIONS: &str = "noinit_itable,inode_readahead_blks=0,no_prefetch_block_bitmaps";

/// [`BLOCK_SIZE`] as the size of a buffer.
const BLOCK: usize = 4096;
type Block = [u8; BLOCK];

/// What tells one file system from another; chosen by the caller, best by chance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The file system's UUID.
    pub uuid: [u8; 16],
    /// Key of the directories' hash tree. Who knows it can choose names that collide.
    pub hash_seed: [u8; 16],
}

/// Why no file system was written.
#[derive(Debug, Error)]
pub enum FormatError {
    /// The device's size is out of range.
    #[error("a device of {0} bytes: expected {MIN_BYTES} to {MAX_BYTES}")]
    Size(u64),
    /// The device refused a block.
    #[error("write block {block}: {source}")]
    Write {
        /// Number of the block.
        block: u64,
        /// What the device said.
        source: io::Error,
    },
}

/// Writes an empty file system for a device of `bytes` bytes; gives the number of bytes written.
///
/// The device is not flushed. The superblock is written last.
///
/// # Errors
/// A size outside [`MIN_BYTES`] … [`MAX_BYTES`], or a failed write.
pub fn format(device: &mut (impl Write + Seek), bytes: u64, identity: &Identity) -> Result<u64, FormatError> {
    let layout = Layout::new(bytes)?;
    let mut out = Output { device, written: 0 };
    out.descriptors(&layout, identity)?;
    let first = layout.group(0);
    out.block(first.block_bitmap, &layout.block_bitmap(0))?;
    out.block(first.inode_bitmap, &layout.inode_bitmap())?;
    out.block(first.inode_table, &inode_table(&layout))?;
    out.block(layout.root_directory(), &disk::directory(disk::ROOT_INODE, Some(disk::LOST_AND_FOUND)))?;
    out.block(layout.lost_and_found(), &disk::directory(disk::LOST_AND_FOUND, None))?;
    if layout.groups() > 1 {
        let last = layout.groups() - 1;
        out.block(layout.group(last).block_bitmap, &layout.block_bitmap(last))?;
    }
    out.block(0, &super_block(&layout, identity))?;
    Ok(out.written)
}

struct Output<'a, W> {
    device: &'a mut W,
    written: u64,
}

impl<W: Write + Seek> Output<'_, W> {
    fn block(&mut self, block: u64, content: &Block) -> Result<(), FormatError> {
        let at = SeekFrom::Start(block * BLOCK_SIZE);
        let result = self.device.seek(at).and_then(|_| self.device.write_all(content));
        result.map_err(|source| FormatError::Write { block, source })?;
        self.written += BLOCK_SIZE;
        Ok(())
    }

    /// The group descriptors, from block 1 on.
    fn descriptors(&mut self, layout: &Layout, identity: &Identity) -> Result<(), FormatError> {
        let mut group = 0;
        for block in 1..=layout.descriptor_blocks() {
            let mut content = [0; BLOCK];
            for place in content.chunks_exact_mut(size_of::<Descriptor>()) {
                if group == layout.groups() {
                    break;
                }
                place.copy_from_slice(layout.descriptor(group, &identity.uuid).as_bytes());
                group += 1;
            }
            self.block(block, &content)?;
        }
        Ok(())
    }
}

/// The first block of the first inode table: sixteen inodes, of which two are in use.
fn inode_table(layout: &Layout) -> Block {
    let mut content = [0; BLOCK];
    let mut put = |number: u32, inode: Inode| {
        for (place, index) in content.chunks_exact_mut(size_of::<Inode>()).zip(1..) {
            if index == number {
                place.copy_from_slice(inode.as_bytes());
            }
        }
    };
    // The root counts itself, its name above (itself again) and the `..` of lost+found.
    put(disk::ROOT_INODE, Inode::directory(0o755, 3, layout.root_directory()));
    put(disk::LOST_AND_FOUND, Inode::directory(0o700, 2, layout.lost_and_found()));
    content
}

fn super_block(layout: &Layout, identity: &Identity) -> Block {
    const AT: usize = 1024;
    let mut content = [0; BLOCK];
    let fields = SuperBlock::new(layout, identity);
    content[AT..AT + size_of::<SuperBlock>()].copy_from_slice(fields.as_bytes());
    content
}
