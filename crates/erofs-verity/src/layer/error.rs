//! Why a layer cannot be written.

use std::io;

/// Why a layer cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// More blocks than the format's 32 bits can number.
    #[error("erofs image: expected fewer than {max} blocks of 4096 bytes, found {blocks}", max = u32::MAX)]
    TooLarge {
        /// Blocks that were reached.
        blocks: u64,
    },
    /// A file's content lies where no content was written.
    #[error("{path}: expected content between blocks 1 and {end}, found {blocks} blocks at {first_block}")]
    Extent {
        /// Path in the tree.
        path: String,
        /// First block that the tree names.
        first_block: u32,
        /// Blocks that the file's size takes.
        blocks: u64,
        /// Block behind the last content.
        end: u32,
    },
    /// The file that is to become the layer has something in it.
    #[error("layer: expected an empty file to write to, found one of {0} bytes")]
    NotEmpty(u64),
    /// The layer could not be written.
    #[error("cannot write the layer: {0}")]
    Output(#[source] io::Error),
    /// Digests could not be put aside in a temporary file.
    #[error("cannot put digests aside in a temporary file: {0}")]
    Spool(#[source] io::Error),
    /// A thread could not be started, or ended before its time.
    #[error("cannot hash in parallel: {0}")]
    Thread(#[source] io::Error),
}
