//! Verifying a layer file: every block of data against the hash tree, the tree against the root digest.
//!
//! The file is read once, front to back in each level; memory is a piece of the data and a block of the tree.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::verity::{DIGEST_SIZE, HashTree, RootDigest, Superblock, SuperblockError, hash_blocks};
use crate::{BLOCK_BYTES, BLOCK_SIZE};

/// Digests in a block of the tree.
const FANOUT: u64 = 128;
/// Blocks beyond which byte positions in a layer are not positions in a file.
const MAX_DATA_BLOCKS: u64 = 1 << 50;

/// Why a file is not the layer that it should be.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    /// It is shorter or longer.
    #[error("length: expected {expected} bytes, found {found}")]
    Length {
        /// Bytes of data, superblock and tree.
        expected: u64,
        /// Bytes in the file.
        found: u64,
    },
    /// Its verity superblock describes another form of hash tree.
    #[error("superblock: {0}")]
    Superblock(#[from] SuperblockError),
    /// Its verity superblock is not where data of this length end.
    #[error("superblock: expected {expected} data blocks, found {found}")]
    DataBlocks {
        /// Blocks in front of the superblock.
        expected: u64,
        /// Blocks that it names.
        found: u64,
    },
    /// A block differs.
    #[error("block {block} ({what}) does not match {above}")]
    Block {
        /// Number of the block in the file.
        block: u64,
        /// What it is part of.
        what: &'static str,
        /// What it is compared with.
        above: &'static str,
    },
}

/// Bytes of a layer with this many data blocks; `None` beyond what a file can have.
#[must_use]
pub fn length(data_blocks: u64) -> Option<u64> {
    let data = (data_blocks <= MAX_DATA_BLOCKS).then(|| data_blocks * BLOCK_BYTES)?;
    Some(data + BLOCK_BYTES + HashTree::new(data_blocks).size())
}

/// Verifies a layer: `data_blocks` blocks of data, a superblock, the hash tree of `root`, and nothing else.
///
/// # Errors
/// With the first thing that is not so.
pub fn verify(file: &File, data_blocks: u64, root: RootDigest) -> Result<(), VerifyError> {
    let found = file.metadata()?.len();
    let expected = length(data_blocks).unwrap_or(u64::MAX);
    if found != expected || data_blocks == 0 {
        return Err(VerifyError::Length { expected, found });
    }
    let mut block = [0; BLOCK_SIZE];
    file.read_exact_at(&mut block, data_blocks * BLOCK_BYTES)?;
    let superblock = Superblock::parse(&block)?;
    if superblock.data_blocks != data_blocks {
        return Err(VerifyError::DataBlocks { expected: data_blocks, found: superblock.data_blocks });
    }
    let mut below = Level { start: 0, blocks: data_blocks, what: "data" };
    // The levels lie top first, so that the one above begins as many blocks further to the front as it has.
    let mut end = found / BLOCK_BYTES;
    while below.blocks > 1 {
        let blocks = below.blocks.div_ceil(FANOUT);
        let level = Level { start: end - blocks, blocks, what: "hash tree" };
        below.compare(file, &level)?;
        end = level.start;
        below = level;
    }
    file.read_exact_at(&mut block, below.start * BLOCK_BYTES)?;
    let mut digest = [0; DIGEST_SIZE];
    hash_blocks(&block, &mut digest);
    if RootDigest(digest) != root {
        return Err(VerifyError::Block { block: below.start, what: below.what, above: "the root hash" });
    }
    Ok(())
}

/// Blocks of one level, by their number in the file.
struct Level {
    start: u64,
    blocks: u64,
    what: &'static str,
}

impl Level {
    /// Compares the digests of these blocks with those that the level above holds.
    fn compare(&self, file: &File, above: &Self) -> Result<(), VerifyError> {
        let mut data = vec![0; BLOCK_SIZE / DIGEST_SIZE * BLOCK_SIZE];
        let mut stored = [0; BLOCK_SIZE];
        for index in 0..above.blocks {
            let first = index * FANOUT;
            let blocks = FANOUT.min(self.blocks - first);
            let piece = usize::try_from(blocks * BLOCK_BYTES).unwrap_or(data.len());
            file.read_exact_at(&mut data[..piece], (self.start + first) * BLOCK_BYTES)?;
            file.read_exact_at(&mut stored, (above.start + index) * BLOCK_BYTES)?;
            let mut computed = [0; BLOCK_SIZE];
            hash_blocks(&data[..piece], &mut computed[..piece / BLOCK_SIZE * DIGEST_SIZE]);
            if computed != stored {
                let digests = computed.chunks(DIGEST_SIZE).zip(stored.chunks(DIGEST_SIZE));
                let same = digests.take_while(|(computed, stored)| computed == stored).count() as u64;
                // What differs may be the padding behind the last digest.
                let block = self.start + first + same.min(blocks - 1);
                return Err(VerifyError::Block { block, what: self.what, above: "the hash tree" });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::{Layer, LayerWriter, Settings};
    use crate::tree::{Metadata, Tree};

    /// A layer with as much content as a hash tree of two levels has blocks.
    fn layer(file: &File) -> Layer {
        let mut writer = LayerWriter::new(file, &Settings::default()).unwrap();
        writer.content(&[7; 150 * BLOCK_SIZE]).unwrap();
        writer.finish(Tree::new(Metadata::default()).unwrap()).unwrap()
    }

    fn flip(file: &File, at: u64) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    }

    #[test]
    fn what_the_writer_writes_is_what_is_verified() {
        let file = tempfile::tempfile().unwrap();
        let layer = layer(&file);
        assert_eq!(length(layer.data_blocks), Some(layer.length));
        verify(&file, layer.data_blocks, layer.root).unwrap();
        let other = verify(&file, layer.data_blocks, RootDigest([0; 32])).unwrap_err().to_string();
        assert!(other.contains("does not match the root hash"), "{other}");
    }

    #[test]
    fn one_bit_anywhere_is_found() {
        let file = tempfile::tempfile().unwrap();
        let Layer { root, data_blocks, tree_offset, length } = layer(&file);
        let superblock = tree_offset - BLOCK_BYTES;
        let cases = [
            (0, "block 0 (data)"),
            (superblock - 1, "(data)"),
            (superblock, "superblock: "),
            (superblock + 88, "superblock: "),
            (tree_offset, "(hash tree) does not match"),
            (tree_offset + BLOCK_BYTES, "block 0 (data)"),
            (length - 1, "(data) does not match the hash tree"),
        ];
        for (at, expected) in cases {
            flip(&file, at);
            let error = verify(&file, data_blocks, root).unwrap_err().to_string();
            assert!(error.contains(expected), "byte {at}: {error}");
            flip(&file, at);
        }
        verify(&file, data_blocks, root).unwrap();
    }

    #[test]
    fn other_lengths_are_refused() {
        let file = tempfile::tempfile().unwrap();
        let Layer { root, data_blocks, length, .. } = layer(&file);
        for blocks in [0, data_blocks - 1, data_blocks + 1, u64::MAX, u64::MAX / BLOCK_BYTES] {
            assert!(matches!(verify(&file, blocks, root), Err(VerifyError::Length { .. })), "{blocks}");
        }
        for bytes in [length - 1, length + 1] {
            file.set_len(bytes).unwrap();
            assert!(matches!(verify(&file, data_blocks, root), Err(VerifyError::Length { .. })), "{bytes}");
        }
    }
}
