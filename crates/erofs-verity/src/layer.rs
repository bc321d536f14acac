//! A layer file: erofs image, verity superblock, hash tree, in one pass.
//!
//! | bytes | what |
//! |---|---|
//! | `0 .. data_blocks * 4096` | erofs image |
//! | `.. tree_offset` | verity superblock, one block |
//! | `.. length` | hash tree, top level first |

use std::io::{self, Write};

use crate::erofs::{Image, WriteError};
use crate::source::Content;
use crate::tree::Tree;
use crate::verity::{HashTreeBuilder, OnCorruption, RootDigest, Superblock, VerityTarget};
use crate::{BLOCK_BYTES, BLOCK_SIZE};

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
    /// Writes the layer of `tree` to `out`, front to back.
    ///
    /// # Errors
    /// When the image is too large, a content cannot be read or is not as long as declared, or `out` fails.
    pub fn write<C: Content>(tree: &Tree<C>, mut out: impl Write) -> Result<Self, WriteError> {
        let mut hashed = Hashed { out: &mut out, hashes: HashTreeBuilder::default() };
        Image::new(tree)?.write_to(&mut hashed)?;
        let hashes = hashed.hashes.finish();
        let data_blocks = hashes.data_blocks();
        let tree_offset = data_blocks * BLOCK_BYTES + BLOCK_BYTES;
        out.write_all(&Superblock { data_blocks }.to_block())
            .and_then(|()| hashes.write_to(&mut out))
            .and_then(|()| out.flush())
            .map_err(WriteError::Output)?;
        Ok(Self { root: hashes.root(), data_blocks, tree_offset, length: tree_offset + hashes.size() })
    }

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

/// Passes bytes on and hashes them.
struct Hashed<W> {
    out: W,
    hashes: HashTreeBuilder,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hashes.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

const _: () = assert!(BLOCK_SIZE as u64 == BLOCK_BYTES);
