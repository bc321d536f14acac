//! OCI image layers to layer files, in one streaming pass.
//!
//! - [`tar`]: the reader of one archive. Its input is hostile: it is written by whoever made the image.

pub mod tar;
