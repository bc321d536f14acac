//! Deterministic erofs images and dm-verity hash trees.
//!
//! A container layer travels into the utility VM as one file: an erofs image, a dm-verity superblock and
//! the hash tree over the image. The guest trusts nothing of it but the root digest, so the root digest has
//! to be a function of the layer's contents alone: not of a tool's version, the order of a directory
//! listing, the clock, or the number of processors.
//!
//! - [`tree`]: a file tree in memory, checked node by node. File contents stay where they are.
//! - [`source`]: where contents come from; [`source::dir`] reads a tree from a directory of the host.
//! - [`erofs`]: the image of a tree, written in one pass.
//! - [`verity`]: hash tree, superblock, device-mapper table.
//! - [`layer`]: all of it in one streaming pass.

pub mod erofs;
pub mod layer;
pub mod source;
pub mod tree;
pub mod verity;

/// Bytes in a block, of the file system, of the data that is hashed, and of the hash tree alike.
pub const BLOCK_SIZE: usize = 4096;
/// [`BLOCK_SIZE`] for arithmetic on file offsets.
const BLOCK_BYTES: u64 = 4096;
