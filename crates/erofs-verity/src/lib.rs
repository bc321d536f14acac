//! Deterministic erofs images and dm-verity hash trees.
//!
//! A container layer travels into the utility VM as one file: an erofs image, a dm-verity superblock and
//! the hash tree over the image. The guest trusts nothing of it but the root digest, so the root digest has
//! to be a function of the layer's contents alone: not of a tool's version, the order of a directory
//! listing, the clock, or the number of processors.
//!
//! - [`layer`]: [`layer::LayerWriter`] takes files' contents as they come and a tree at the end, and writes a
//!   layer in one pass.
//! - [`tree`]: a file tree in memory, checked node by node, within a budget of memory.
//! - [`erofs`]: the image's format.
//! - [`verity`]: hash tree, superblock, device-mapper table.
//! - [`source::dir`]: a layer from a directory of the host.

pub mod erofs;
pub mod layer;
pub mod source;
pub mod tree;
pub mod verity;

/// Bytes in a block, of the file system, of the data that is hashed, and of the hash tree alike.
pub const BLOCK_SIZE: usize = 4096;
/// [`BLOCK_SIZE`] for arithmetic on file offsets.
const BLOCK_BYTES: u64 = 4096;
