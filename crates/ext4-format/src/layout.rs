//! Where everything lies: groups of 128 MiB, each with its own bitmaps and inode table at its start.
//!
//! Group 0 begins with the superblock and the descriptors of all groups. No group depends on another (no
//! `flex_bg`), so a bitmap that says only what the kernel can work out itself needs not be written.

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32};

use crate::disk::{DESCRIPTORS_PER_BLOCK, Descriptor, FIRST_FREE_INODE, INODES_PER_BLOCK};
use crate::{BLOCK, BLOCK_SIZE, Block, FormatError, MAX_BYTES, MIN_BYTES};

/// Blocks that one block of bitmap describes.
pub(crate) const BLOCKS_PER_GROUP: u32 = 32768;
/// One inode for each 16 KiB, as is customary for file systems of mixed use.
const BLOCKS_PER_INODE: u32 = 4;
/// A last group with less room than this beside its own structures is left out.
const LEAST_USEFUL: u64 = 64;
/// Block number and inode bitmap in front of each inode table.
const BITMAPS: u32 = 2;
/// Blocks of root directory and lost+found, behind the first inode table.
const DIRECTORIES: u32 = 2;

const INODE_UNINIT: u16 = 1;
const BLOCK_UNINIT: u16 = 2;

/// The places of a file system of a certain size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    blocks: u32,
    groups: u32,
    descriptor_blocks: u32,
    inodes_per_group: u32,
}

/// Numbers of a group's own blocks.
pub(crate) struct Group {
    pub block_bitmap: u64,
    pub inode_bitmap: u64,
    pub inode_table: u64,
}

impl Layout {
    /// The layout for a device of `bytes` bytes.
    ///
    /// # Errors
    /// A size outside [`MIN_BYTES`] … [`MAX_BYTES`].
    pub fn new(bytes: u64) -> Result<Self, FormatError> {
        if !(MIN_BYTES..=MAX_BYTES).contains(&bytes) {
            return Err(FormatError::Size(bytes));
        }
        let mut blocks = u32::try_from(bytes / BLOCK_SIZE).unwrap_or(u32::MAX);
        let inodes = (blocks / BLOCKS_PER_INODE).min(BLOCKS_PER_GROUP / BLOCKS_PER_INODE);
        let inodes_per_group = inodes.next_multiple_of(INODES_PER_BLOCK);
        let own = BITMAPS + inodes_per_group / INODES_PER_BLOCK;
        let rest = blocks % BLOCKS_PER_GROUP;
        if blocks > BLOCKS_PER_GROUP && u64::from(rest) < u64::from(own) + LEAST_USEFUL {
            blocks -= rest;
        }
        let groups = blocks.div_ceil(BLOCKS_PER_GROUP);
        Ok(Self {
            blocks,
            groups,
            descriptor_blocks: groups.div_ceil(DESCRIPTORS_PER_BLOCK),
            inodes_per_group,
        })
    }

    /// Blocks of the file system; a tail of the device too short for a group is left unused.
    #[must_use]
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// Blocks that files and directories may take.
    #[must_use]
    pub fn free_blocks(&self) -> u32 {
        (0..self.groups).map(|group| self.length(group) - self.used(group)).sum()
    }

    /// Inodes, the reserved ones included.
    #[must_use]
    pub fn inodes(&self) -> u32 {
        self.groups * self.inodes_per_group
    }

    pub(crate) fn groups(&self) -> u32 {
        self.groups
    }

    pub(crate) fn inodes_per_group(&self) -> u32 {
        self.inodes_per_group
    }

    pub(crate) fn descriptor_blocks(&self) -> u64 {
        u64::from(self.descriptor_blocks)
    }

    pub(crate) fn root_directory(&self) -> u64 {
        self.group(0).inode_table + u64::from(self.inodes_per_group / INODES_PER_BLOCK)
    }

    pub(crate) fn lost_and_found(&self) -> u64 {
        self.root_directory() + 1
    }

    pub(crate) fn group(&self, group: u32) -> Group {
        let start = u64::from(group) * u64::from(BLOCKS_PER_GROUP) + u64::from(self.shared(group));
        Group { block_bitmap: start, inode_bitmap: start + 1, inode_table: start + u64::from(BITMAPS) }
    }

    /// Blocks at the group's start that describe the whole file system.
    fn shared(&self, group: u32) -> u32 {
        if group == 0 { 1 + self.descriptor_blocks } else { 0 }
    }

    fn length(&self, group: u32) -> u32 {
        (self.blocks - group * BLOCKS_PER_GROUP).min(BLOCKS_PER_GROUP)
    }

    /// Blocks in use, all of them at the group's start.
    fn used(&self, group: u32) -> u32 {
        let directories = if group == 0 { DIRECTORIES } else { 0 };
        self.shared(group) + BITMAPS + self.inodes_per_group / INODES_PER_BLOCK + directories
    }

    pub(crate) fn block_bitmap(&self, group: u32) -> Block {
        let mut bits = [0; BLOCK];
        set(&mut bits, 0, self.used(group));
        set(&mut bits, self.length(group), BLOCKS_PER_GROUP);
        bits
    }

    /// That of the first group, the only one with inodes in use.
    pub(crate) fn inode_bitmap(&self) -> Block {
        let mut bits = [0; BLOCK];
        set(&mut bits, 0, FIRST_FREE_INODE - 1);
        set(&mut bits, self.inodes_per_group, BLOCKS_PER_GROUP);
        bits
    }

    /// The descriptor of `group`, with its checksum.
    pub(crate) fn descriptor(&self, group: u32, uuid: &[u8; 16]) -> Descriptor {
        let first = group == 0;
        let place = self.group(group);
        let inodes_used = if first { FIRST_FREE_INODE - 1 } else { 0 };
        let free_inodes = low(self.inodes_per_group - inodes_used);
        // The kernel works out a bitmap's padding only at a group's own end, so the last group has its written.
        let flags = match group {
            0 => 0,
            _ if group == self.groups - 1 => INODE_UNINIT,
            _ => INODE_UNINIT | BLOCK_UNINIT,
        };
        let mut descriptor = Descriptor {
            block_bitmap: number(place.block_bitmap),
            inode_bitmap: number(place.inode_bitmap),
            inode_table: number(place.inode_table),
            free_blocks: low(self.length(group) - self.used(group)),
            free_inodes,
            used_directories: U16::new(if first { 2 } else { 0 }),
            flags: U16::new(flags),
            snapshot: U32::ZERO,
            bitmap_checksums: U32::ZERO,
            unused_inodes: free_inodes,
            checksum: U16::ZERO,
        };
        let covered = [uuid.as_slice(), &group.to_le_bytes(), &descriptor.as_bytes()[..30]];
        descriptor.checksum = U16::new(covered.into_iter().fold(u16::MAX, crc16));
        descriptor
    }
}

/// A block's number on disk: there are fewer than 2^32 blocks.
pub(crate) fn number(block: u64) -> U32 {
    U32::new(u32::try_from(block).unwrap_or(u32::MAX))
}

/// A count within one group on disk: there are at most 2^15 of anything in it.
fn low(count: u32) -> U16 {
    U16::new(u16::try_from(count).unwrap_or(u16::MAX))
}

/// Sets the bits from `start` up to `end`, bit 0 of byte 0 first.
fn set(bits: &mut Block, start: u32, end: u32) {
    for (byte, first) in bits.iter_mut().zip((0_u32..).step_by(8)) {
        for bit in 0..8 {
            if (start..end).contains(&(first + bit)) {
                *byte |= 1 << bit;
            }
        }
    }
}

/// CRC-16 with the polynomial 0x8005, least significant bit first, continued from `crc`.
fn crc16(crc: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(crc, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xa001 } else { crc >> 1 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_crc_16() {
        // The published check value of CRC-16/MODBUS, which is this one: initial value all ones.
        assert_eq!(crc16(u16::MAX, b"123456789"), 0x4b37);
    }

    #[test]
    fn sizes_out_of_range_are_refused() {
        for bytes in [0, MIN_BYTES - 1, MAX_BYTES + 1, u64::MAX] {
            assert!(matches!(Layout::new(bytes), Err(FormatError::Size(found)) if found == bytes), "{bytes}");
        }
    }

    #[test]
    fn every_group_has_room_and_all_blocks_are_counted() {
        let group = u64::from(BLOCKS_PER_GROUP) * BLOCK_SIZE;
        let sizes = [MIN_BYTES, group - 4096, group, group + 4096, 3 * group + (8 << 20), 1 << 40, MAX_BYTES];
        for bytes in sizes {
            let layout = Layout::new(bytes).unwrap();
            let mut used = 0;
            for group in 0..layout.groups() {
                assert!(layout.used(group) < layout.length(group), "{bytes}: group {group} of {layout:?}");
                used += layout.used(group);
            }
            assert_eq!(layout.free_blocks() + used, layout.blocks(), "{bytes}");
            assert!(u64::from(layout.blocks()) * BLOCK_SIZE <= bytes, "{bytes}");
        }
        assert_eq!(Layout::new(MAX_BYTES).unwrap().groups(), 131_072);
        assert_eq!(Layout::new(group + 4096).unwrap().groups(), 1);
    }
}
