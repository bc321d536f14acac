//! OCI image layers to layer files, in one streaming pass.
//!
//! A layer comes as a tar archive, compressed or not, and becomes an erofs image with its dm-verity tree
//! ([`erofs_verity::layer`]). Every byte of the result, and so the root hash, is a function of the
//! uncompressed archive alone: of neither its compression, nor the clock, nor the number of threads.
//!
//! - [`tar`]: the reader of one archive. Its input is hostile: it is written by whoever made the image.
//! - [`compression`]: gzip, zstd or none, told apart by their magic numbers.
//! - [`apply`]: what the entries of an archive mean, by the OCI image specification's section on layers.
//! - [`convert`]: all of it, with the digests of both forms, on all processors.
//!
//! Archives are as large and as deep as their makers please; [`Limits`] bound what a conversion takes.

pub mod apply;
pub mod compression;
pub mod convert;
mod digest;
mod limits;
mod pipeline;
pub mod tar;

pub use convert::{ConvertError, Converted, convert, convert_with};
pub use digest::{Digest, DigestError};
pub use limits::Limits;
