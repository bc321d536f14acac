//! Verifying a layer file: every block of data against the hash tree, the tree against the root hash.
//!
//! The file is read once, front to back in each level; memory is one piece of data and one of the tree.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use erofs_verity::BLOCK_SIZE;
use erofs_verity::verity::{DIGEST_SIZE, HashTree, RootDigest, Superblock, hash_blocks};

/// Bytes in a block.
pub const BLOCK_BYTES: u64 = 4096;
/// Digests in a block of the tree.
const FANOUT: u64 = 128;

/// Why a file is not the layer that it should be.
#[derive(Debug, thiserror::Error)]
pub enum VerityError {
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    /// It is shorter or longer.
    #[error("expected {expected} bytes, found {found}")]
    Length {
        /// Bytes of data, superblock and tree.
        expected: u64,
        /// Bytes in the file.
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
pub fn layer_length(data_blocks: u64) -> Option<u64> {
    // More blocks than that do not have byte positions, and none of the sums below overflows.
    let data = data_blocks.checked_mul(BLOCK_BYTES).filter(|&bytes| bytes < 1 << 62)?;
    Some(data + BLOCK_BYTES + HashTree::new(data_blocks).size())
}

/// Verifies a layer: `data_blocks` blocks of data, a superblock, the hash tree of `root`, and nothing else.
///
/// # Errors
/// With the first block that differs.
pub fn verify(file: &File, data_blocks: u64, root: RootDigest) -> Result<(), VerityError> {
    let found = file.metadata()?.len();
    let expected = layer_length(data_blocks).unwrap_or(u64::MAX);
    if found != expected || data_blocks == 0 {
        return Err(VerityError::Length { expected, found });
    }
    let mut superblock = vec![0; BLOCK_SIZE];
    file.read_exact_at(&mut superblock, data_blocks * BLOCK_BYTES)?;
    if superblock != (Superblock { data_blocks }).to_block() {
        let (what, above) = ("verity superblock", "the one form that is made");
        return Err(VerityError::Block { block: data_blocks, what, above });
    }
    let mut below = Level { start: 0, blocks: data_blocks, what: "data" };
    // The levels lie top first: each begins where the one below it would end, going backwards from the end.
    let mut end = found / BLOCK_BYTES;
    while below.blocks > 1 {
        let blocks = below.blocks.div_ceil(FANOUT);
        let level = Level { start: end - blocks, blocks, what: "hash tree" };
        below.compare(file, &level)?;
        end = level.start;
        below = level;
    }
    let mut top = vec![0; BLOCK_SIZE];
    file.read_exact_at(&mut top, below.start * BLOCK_BYTES)?;
    let mut digest = [0; DIGEST_SIZE];
    hash_blocks(&top, &mut digest);
    if RootDigest(digest) != root {
        return Err(VerityError::Block { block: below.start, what: below.what, above: "the root hash" });
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
    fn compare(&self, file: &File, above: &Self) -> Result<(), VerityError> {
        let mut data = vec![0; BLOCK_SIZE * BLOCK_SIZE / DIGEST_SIZE];
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
                let differs = digests.take_while(|(computed, stored)| computed == stored).count() as u64;
                let block = self.start + first + differs.min(blocks - 1);
                return Err(VerityError::Block { block, what: self.what, above: "the hash tree" });
            }
        }
        Ok(())
    }
}
