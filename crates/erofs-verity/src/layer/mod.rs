//! A layer file: erofs image, verity superblock, hash tree, in one pass.
//!
//! | bytes | what |
//! |---|---|
//! | `0 .. data_blocks * 4096` | erofs image |
//! | `.. tree_offset` | verity superblock, one block |
//! | `.. length` | hash tree, top level first |
//!
//! Contents are written in the order in which they come, while their blocks are hashed by a few threads; the
//! tree of the names follows at the end. The bytes are a function of the sequence of contents and of the tree
//! alone. Memory is bounded: a fixed number of buffers, a bounded part of the digests, and the tree.

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::thread;

pub use error::WriteError;
pub(crate) use stream::BlockStream;

use crate::tree::{Extent, Tree};
use crate::verity::{HashTree, OnCorruption, RootDigest, Superblock, VerityTarget};
use crate::{BLOCK_BYTES, BLOCK_SIZE, erofs};

mod error;
mod leaves;
mod pool;
mod stream;

/// What a written layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layer {
    /// Root digest of the hash tree.
    pub root: RootDigest,
    /// Blocks of 4096 bytes in the erofs image.
    pub data_blocks: u64,
    /// Byte offset in the layer of the hash tree's first block.
    pub tree_offset: u64,
    /// Bytes in the whole layer, a multiple of 4096.
    pub length: u64,
}

impl Layer {
    /// The device-mapper target that shows the layer's image, verified, when the layer begins at the first
    /// byte of `device`.
    #[must_use]
    pub fn verity_target<'d>(&self, device: &'d str, on_corruption: OnCorruption) -> VerityTarget<'d> {
        VerityTarget {
            device,
            data_blocks: self.data_blocks,
            hash_start: self.tree_offset / BLOCK_BYTES,
            root: self.root,
            on_corruption,
        }
    }
}

/// How a layer is written. Nothing of it shows in the layer.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Threads that hash and write, at most [`Settings::MAX_THREADS`].
    pub threads: NonZeroUsize,
    /// Directory of the temporary file to which a large layer's digests go, 8 MiB for each GiB. It should be
    /// on a disk: a file in a file system in memory is memory.
    pub spool: PathBuf,
}

impl Settings {
    /// More threads hash faster than any source delivers, and each has a buffer of 512 KiB.
    pub const MAX_THREADS: usize = 16;

    fn threads(&self) -> usize {
        self.threads.get().min(Self::MAX_THREADS)
    }
}

impl Default for Settings {
    /// All processors, and the directory for temporary files.
    fn default() -> Self {
        Self {
            threads: thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            spool: std::env::temp_dir(),
        }
    }
}

/// Writes a layer to a file while the contents of its files arrive.
///
/// For every file, [`begin`](Self::begin), [`write`](Self::write) as often as needed, [`end`](Self::end); what
/// `end` returns goes into the tree; [`finish`](Self::finish) writes the rest.
pub struct LayerWriter {
    stream: BlockStream,
    file_start: u64,
}

impl LayerWriter {
    /// Begins a layer in the empty file `out`, open for reading and writing.
    ///
    /// # Errors
    /// When `out` has anything in it or cannot be used.
    pub fn new(out: &File, settings: &Settings) -> Result<Self, WriteError> {
        let mut stream = BlockStream::new(out, settings)?;
        // The superblock's place. It is known last and written by offset.
        stream.pad_to(BLOCK_BYTES)?;
        Ok(Self { stream, file_start: BLOCK_BYTES })
    }

    /// Begins the next content, at a block boundary.
    ///
    /// # Errors
    /// When what was written before could not be stored.
    pub fn begin(&mut self) -> Result<(), WriteError> {
        self.stream.align()?;
        self.file_start = self.stream.position();
        Ok(())
    }

    /// Writes the next bytes of the content.
    ///
    /// # Errors
    /// When these or earlier bytes cannot be stored.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.stream.put(bytes)
    }

    /// Ends the content and says where it lies.
    ///
    /// # Errors
    /// When the image has become too large for the format, or could not be stored.
    pub fn end(&mut self) -> Result<Extent, WriteError> {
        self.stream.align()?;
        let (first, end) = (self.file_start / BLOCK_BYTES, self.stream.position() / BLOCK_BYTES);
        let number = |block| u32::try_from(block).map_err(|_| WriteError::TooLarge { blocks: end });
        let blocks = number(end - first)?;
        Ok(if blocks == 0 { Extent::EMPTY } else { Extent { first_block: number(first)?, blocks } })
    }

    /// Writes a whole content and says where it lies.
    ///
    /// # Errors
    /// As the three calls that it stands for.
    pub fn content(&mut self, bytes: &[u8]) -> Result<Extent, WriteError> {
        self.begin()?;
        self.write(bytes)?;
        self.end()
    }

    /// Writes the metadata of `tree`, the superblocks and the hash tree. The bytes are in the file then, though
    /// not yet on its disk.
    ///
    /// # Errors
    /// When the tree names blocks that hold no content, the image is too large, or the file fails.
    pub fn finish(mut self, tree: Tree) -> Result<Layer, WriteError> {
        let first_block = erofs::write_metadata(tree, &mut self.stream)?;
        let (file, leaves, data_blocks) = self.stream.finish()?;
        let mut digest = [0; crate::verity::DIGEST_SIZE];
        crate::verity::hash_blocks(&first_block, &mut digest);
        leaves.put(0, &digest).map_err(WriteError::Spool)?;
        file.write_all_at(&first_block, 0).map_err(WriteError::Output)?;
        let superblock = Superblock { data_blocks }.to_block();
        file.write_all_at(&superblock, data_blocks * BLOCK_BYTES).map_err(WriteError::Output)?;
        let tree_offset = (data_blocks + 1) * BLOCK_BYTES;
        let hashes = HashTree::new(data_blocks);
        let root = hashes.write(&file, tree_offset, |offset, digests| leaves.read(offset, digests))?;
        Ok(Layer { root, data_blocks, tree_offset, length: tree_offset + hashes.size() })
    }
}

const _: () = assert!(BLOCK_SIZE as u64 == BLOCK_BYTES);
