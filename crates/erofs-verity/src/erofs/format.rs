//! On-disk structures of erofs (Linux `Documentation/filesystems/erofs.rst`), little-endian throughout.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes};

/// Where the superblock lies in the image.
pub(super) const SUPERBLOCK_OFFSET: usize = 1024;
/// `EROFS_SUPER_MAGIC_V1`.
pub(super) const MAGIC: u32 = 0xE0F5_E1E2;
/// Compatible features: superblock checksum, and times of extended inodes that are modification times.
pub(super) const FEATURE_COMPAT: u32 = 0x1 | 0x2;
/// Incompatible feature: inodes of layout [`DATA_CHUNKED`].
pub(super) const FEATURE_CHUNKED: u32 = 0x4;
/// Binary logarithm of the block size.
pub(super) const BLOCK_BITS: u8 = 12;
/// Inodes are numbered by their position in units of this many bytes.
pub(super) const SLOT_SIZE: u64 = 32;
/// Bytes of the header before a node's inline extended attributes.
pub(super) const XATTR_HEADER_SIZE: usize = 12;

/// In an inode's format field: the inode is an [`ExtendedInode`].
pub(super) const INODE_EXTENDED: u16 = 1;
/// In an inode's format field: data in one run of blocks.
pub(super) const DATA_PLAIN: u16 = 0;
/// In an inode's format field: as plain, with the last partial block behind the inode.
pub(super) const DATA_INLINE: u16 = 2 << 1;
/// In an inode's format field: data in chunks, whose first blocks are listed behind the inode. Without
/// `EROFS_CHUNK_FORMAT_INDEXES`, each is a 32-bit number, all ones for a hole.
pub(super) const DATA_CHUNKED: u16 = 4 << 1;

#[derive(IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct SuperBlock {
    pub(super) magic: U32,
    pub(super) checksum: U32,
    pub(super) feature_compat: U32,
    pub(super) block_bits: u8,
    pub(super) extension_slots: u8,
    pub(super) root_nid: U16,
    pub(super) inodes: U64,
    pub(super) build_time: U64,
    pub(super) build_time_nsec: U32,
    pub(super) blocks: U32,
    pub(super) meta_block: U32,
    pub(super) xattr_block: U32,
    pub(super) uuid: [u8; 16],
    pub(super) volume_name: [u8; 16],
    pub(super) feature_incompat: U32,
    /// Compression, extra devices, directory block size, long xattr prefixes, packed inode: none of them.
    pub(super) unused: [u8; 44],
}
const _: () = assert!(size_of::<SuperBlock>() == 128);

/// Inode of 32 bytes: 16-bit owners, 32-bit size, and the image's build time as its time.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct CompactInode {
    pub(super) format: U16,
    pub(super) xattr_count: U16,
    pub(super) mode: U16,
    pub(super) links: U16,
    pub(super) size: U32,
    pub(super) reserved: U32,
    pub(super) location: U32,
    pub(super) ino: U32,
    pub(super) uid: U16,
    pub(super) gid: U16,
    pub(super) reserved2: U32,
}
const _: () = assert!(size_of::<CompactInode>() == 32);

/// Inode of 64 bytes.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct ExtendedInode {
    pub(super) format: U16,
    pub(super) xattr_count: U16,
    pub(super) mode: U16,
    pub(super) reserved: U16,
    pub(super) size: U64,
    pub(super) location: U32,
    pub(super) ino: U32,
    pub(super) uid: U32,
    pub(super) gid: U32,
    pub(super) mtime: U64,
    pub(super) mtime_nsec: U32,
    pub(super) links: U32,
    pub(super) reserved2: [u8; 16],
}
const _: () = assert!(size_of::<ExtendedInode>() == 64);

#[derive(IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct XattrEntry {
    pub(super) name_len: u8,
    pub(super) name_index: u8,
    pub(super) value_size: U16,
}
const _: () = assert!(size_of::<XattrEntry>() == 4);

/// Bytes of a directory entry without its name (`struct erofs_dirent`, whose 8-byte first field is unaligned).
#[derive(IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Dirent {
    pub(super) nid: U64,
    pub(super) name_offset: U16,
    pub(super) file_type: u8,
    pub(super) reserved: u8,
}
const _: () = assert!(size_of::<Dirent>() == 12);
