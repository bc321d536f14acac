//! The structures on disk, byte for byte; all numbers are little-endian.
//!
//! Fields that an empty file system leaves at zero are gathered in padding.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{Immutable, IntoBytes};

use crate::layout::{BLOCKS_PER_GROUP, number};
use crate::{BLOCK, BLOCK_SIZE, Block, Identity, Layout};

/// Number of the root directory's inode.
pub const ROOT_INODE: u32 = 2;
/// Number of the inode of `lost+found`, which tools expect to exist.
pub const LOST_AND_FOUND: u32 = 11;
/// The first inode that the kernel gives away.
pub const FIRST_FREE_INODE: u32 = 12;
/// Inodes in a block of inode table.
pub const INODES_PER_BLOCK: u32 = 16;
/// Descriptors in a block.
pub const DESCRIPTORS_PER_BLOCK: u32 = 128;

/// `struct ext4_super_block`, up to the last field that is set.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
pub struct SuperBlock {
    inodes_count: U32,
    blocks_count: U32,
    reserved_blocks_count: U32,
    free_blocks_count: U32,
    free_inodes_count: U32,
    first_data_block: U32,
    log_block_size: U32,
    log_cluster_size: U32,
    blocks_per_group: U32,
    clusters_per_group: U32,
    inodes_per_group: U32,
    mount_and_write_time: [U32; 2],
    mount_count: U16,
    max_mount_count: U16,
    magic: U16,
    state: U16,
    errors: U16,
    minor_revision: U16,
    last_check_and_interval: [U32; 2],
    creator_os: U32,
    revision: U32,
    reserved_owner: [U16; 2],
    first_inode: U32,
    inode_size: U16,
    block_group: U16,
    feature_compat: U32,
    feature_incompat: U32,
    feature_ro_compat: U32,
    uuid: [u8; 16],
    /// Label, last mount point, preallocation, journal, orphans.
    unused: [u8; 116],
    hash_seed: [u8; 16],
    hash_version: u8,
    journal_backup_type: u8,
    descriptor_size: U16,
    default_mount_options: U32,
    /// First meta block group, time of making, journal's blocks, upper halves of counts.
    unused_too: [u8; 88],
    min_extra_inode_size: U16,
    want_extra_inode_size: U16,
    flags: U32,
}

const _: () = assert!(std::mem::offset_of!(SuperBlock, magic) == 0x38);
const _: () = assert!(std::mem::offset_of!(SuperBlock, uuid) == 0x68);
const _: () = assert!(std::mem::offset_of!(SuperBlock, hash_seed) == 0xec);
const _: () = assert!(std::mem::offset_of!(SuperBlock, default_mount_options) == 0x100);
const _: () = assert!(std::mem::offset_of!(SuperBlock, min_extra_inode_size) == 0x15c);
const _: () = assert!(std::mem::offset_of!(SuperBlock, flags) == 0x160);

/// Extended attributes; hashed directories; backup superblocks only where named, and none is.
const COMPAT: u32 = EXT_ATTR | DIR_INDEX | SPARSE_SUPER2;
const EXT_ATTR: u32 = 0x8;
const DIR_INDEX: u32 = 0x20;
const SPARSE_SUPER2: u32 = 0x200;
/// File types in directories; extents.
const INCOMPAT: u32 = FILETYPE | EXTENTS;
const FILETYPE: u32 = 0x2;
const EXTENTS: u32 = 0x40;
/// Files beyond 2 GiB and 2 TiB; checked group descriptors (`uninit_bg`); more than 65,000 subdirectories; times
/// of nanoseconds beyond 2038.
const RO_COMPAT: u32 = LARGE_FILE | HUGE_FILE | GDT_CSUM | DIR_NLINK | EXTRA_ISIZE;
const LARGE_FILE: u32 = 0x2;
const HUGE_FILE: u32 = 0x8;
const GDT_CSUM: u32 = 0x10;
const DIR_NLINK: u32 = 0x20;
const EXTRA_ISIZE: u32 = 0x40;

const MAGIC: u16 = 0xef53;
const CLEAN: u16 = 1;
/// Errors make the file system read-only: what cannot be authenticated is not written over.
const ERRORS_REMOUNT_READ_ONLY: u16 = 2;
/// 1024 bytes shifted by this are a block.
const LOG_BLOCK_SIZE: u32 = 2;
const DYNAMIC_REVISION: u32 = 1;
const HALF_MD4: u8 = 1;
/// Names are hashed as signed characters, as on every x86 machine.
const SIGNED_HASH: u32 = 1;
/// Bytes of inode behind the first 128: the fields up to the project number.
const EXTRA_INODE_SIZE: u16 = 32;
const XATTR_USER: u32 = 4;
const ACL: u32 = 8;

impl SuperBlock {
    pub(crate) fn new(layout: &Layout, identity: &Identity) -> Self {
        Self {
            inodes_count: U32::new(layout.inodes()),
            blocks_count: U32::new(layout.blocks()),
            reserved_blocks_count: U32::ZERO,
            free_blocks_count: U32::new(layout.free_blocks()),
            free_inodes_count: U32::new(layout.inodes() - (FIRST_FREE_INODE - 1)),
            first_data_block: U32::ZERO,
            log_block_size: U32::new(LOG_BLOCK_SIZE),
            log_cluster_size: U32::new(LOG_BLOCK_SIZE),
            blocks_per_group: U32::new(BLOCKS_PER_GROUP),
            clusters_per_group: U32::new(BLOCKS_PER_GROUP),
            inodes_per_group: U32::new(layout.inodes_per_group()),
            mount_and_write_time: [U32::ZERO; 2],
            mount_count: U16::ZERO,
            // Never due for a check.
            max_mount_count: U16::new(u16::MAX),
            magic: U16::new(MAGIC),
            state: U16::new(CLEAN),
            errors: U16::new(ERRORS_REMOUNT_READ_ONLY),
            minor_revision: U16::ZERO,
            last_check_and_interval: [U32::ZERO; 2],
            creator_os: U32::ZERO,
            revision: U32::new(DYNAMIC_REVISION),
            reserved_owner: [U16::ZERO; 2],
            first_inode: U32::new(LOST_AND_FOUND),
            inode_size: U16::new(256),
            block_group: U16::ZERO,
            feature_compat: U32::new(COMPAT),
            feature_incompat: U32::new(INCOMPAT),
            feature_ro_compat: U32::new(RO_COMPAT),
            uuid: identity.uuid,
            unused: [0; 116],
            hash_seed: identity.hash_seed,
            hash_version: HALF_MD4,
            journal_backup_type: 0,
            descriptor_size: U16::ZERO,
            default_mount_options: U32::new(XATTR_USER | ACL),
            unused_too: [0; 88],
            min_extra_inode_size: U16::new(EXTRA_INODE_SIZE),
            want_extra_inode_size: U16::new(EXTRA_INODE_SIZE),
            flags: U32::new(SIGNED_HASH),
        }
    }
}

/// `struct ext4_group_desc`, the form of 32 bytes.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
pub struct Descriptor {
    pub block_bitmap: U32,
    pub inode_bitmap: U32,
    pub inode_table: U32,
    pub free_blocks: U16,
    pub free_inodes: U16,
    pub used_directories: U16,
    pub flags: U16,
    pub snapshot: U32,
    pub bitmap_checksums: U32,
    /// Inodes at the end of the table that were never used, and may not have been written.
    pub unused_inodes: U16,
    pub checksum: U16,
}

const _: () = assert!(size_of::<Descriptor>() * 128 == BLOCK);

/// `struct ext4_inode` with one extent.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
pub struct Inode {
    mode: U16,
    owner: U16,
    size: U32,
    times: [U32; 4],
    group: U16,
    links: U16,
    sectors: U32,
    flags: U32,
    version: U32,
    extent_magic: U16,
    extents: U16,
    extents_max: U16,
    extent_depth: U16,
    extent_generation: U32,
    extent_block: U32,
    extent_length: U16,
    extent_start_high: U16,
    extent_start: U32,
    /// Three more extents, and the fields up to the extra ones.
    unused: [u8; 64],
    extra_size: U16,
    /// The other extra fields, and room for attributes.
    rest: [u8; 126],
}

const _: () = assert!(size_of::<Inode>() == 256);
const _: () = assert!(std::mem::offset_of!(Inode, extent_magic) == 0x28);
const _: () = assert!(std::mem::offset_of!(Inode, extra_size) == 0x80);

const DIRECTORY: u16 = 0o040_000;
const EXTENTS_FLAG: u32 = 0x8_0000;
const EXTENT_MAGIC: u16 = 0xf30a;

impl Inode {
    /// A directory of one block, owned by root.
    pub fn directory(permissions: u16, links: u16, block: u64) -> Self {
        Self {
            mode: U16::new(DIRECTORY | permissions),
            owner: U16::ZERO,
            size: number(BLOCK_SIZE),
            times: [U32::ZERO; 4],
            group: U16::ZERO,
            links: U16::new(links),
            sectors: number(BLOCK_SIZE / 512),
            flags: U32::new(EXTENTS_FLAG),
            version: U32::ZERO,
            extent_magic: U16::new(EXTENT_MAGIC),
            extents: U16::new(1),
            extents_max: U16::new(4),
            extent_depth: U16::ZERO,
            extent_generation: U32::ZERO,
            extent_block: U32::ZERO,
            extent_length: U16::new(1),
            extent_start_high: U16::ZERO,
            extent_start: number(block),
            unused: [0; 64],
            extra_size: U16::new(EXTRA_INODE_SIZE),
            rest: [0; 126],
        }
    }
}

/// A directory's block: itself, the root above it, and `lost+found` where it is the root.
pub fn directory(inode: u32, lost_and_found: Option<u32>) -> Block {
    const HEAD: usize = 8;
    const DIRECTORY_TYPE: u8 = 2;
    let names = [(inode, "."), (ROOT_INODE, "..")];
    let entries = names.into_iter().chain(lost_and_found.map(|inode| (inode, "lost+found")));
    let count = 2 + usize::from(lost_and_found.is_some());
    let mut content = [0; BLOCK];
    let mut at = 0;
    for (index, (inode, name)) in entries.enumerate() {
        // The last entry reaches to the block's end.
        let length = if index + 1 == count { BLOCK - at } else { (HEAD + name.len()).next_multiple_of(4) };
        let [low, high, ..] = length.to_le_bytes();
        let [name_length, ..] = name.len().to_le_bytes();
        content[at..at + 4].copy_from_slice(&inode.to_le_bytes());
        content[at + 4..at + HEAD].copy_from_slice(&[low, high, name_length, DIRECTORY_TYPE]);
        content[at + HEAD..at + HEAD + name.len()].copy_from_slice(name.as_bytes());
        at += length;
    }
    content
}
