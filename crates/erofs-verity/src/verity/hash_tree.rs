//! The hash tree over data whose leaf digests are known.
//!
//! Each data block's digest goes into a leaf block, 128 of them to a block; each leaf block's digest into the
//! level above; until a level has one block, whose digest is the root. On the device the levels follow one
//! another from the top down. Hash blocks are padded with zeros.
//!
//! No level is held in memory: its digests are written to their place as those of the level below are read.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::{DIGEST_SIZE, RootDigest, hash_blocks};
use crate::layer::WriteError;
use crate::{BLOCK_BYTES, BLOCK_SIZE};

/// Digests in a hash block.
const FANOUT: u64 = 128;
/// Bytes of digests that are read, padded, written and hashed at a time.
const PIECE: usize = 256 << 10;

/// Where the levels of a hash tree lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HashTree {
    data_blocks: u64,
    /// Blocks in each level, the leaves' first; none over a single data block, whose digest is the root.
    levels: Vec<u64>,
}

impl HashTree {
    /// The tree over `data_blocks` blocks of 4096 bytes.
    #[must_use]
    pub fn new(data_blocks: u64) -> Self {
        let below = |&blocks: &u64| (blocks > 1).then(|| blocks.div_ceil(FANOUT));
        Self { data_blocks, levels: std::iter::successors(below(&data_blocks), below).collect() }
    }

    /// Bytes of the tree on the device; 0 over a single data block.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.levels.iter().sum::<u64>() * BLOCK_BYTES
    }

    /// Byte offset in the tree at which a level begins.
    fn start(&self, level: usize) -> u64 {
        self.levels[level + 1..].iter().sum::<u64>() * BLOCK_BYTES
    }

    /// Writes the tree to `file` from byte `offset` on, and returns the root digest. `leaves` reads the data
    /// blocks' digests, which lie one behind the other, from a byte position on. `file` is open for reading
    /// too: the levels above the leaves are made of what was written.
    ///
    /// # Errors
    /// When `leaves` or the file fails.
    pub(crate) fn write(
        &self,
        file: &File,
        offset: u64,
        leaves: impl Fn(u64, &mut [u8]) -> io::Result<()>,
    ) -> Result<RootDigest, WriteError> {
        let mut root = [0; DIGEST_SIZE];
        if self.levels.is_empty() && self.data_blocks > 0 {
            leaves(0, &mut root).map_err(WriteError::Spool)?;
        }
        let mut buffer = vec![0; PIECE];
        let mut digests = vec![0; PIECE / BLOCK_SIZE * DIGEST_SIZE];
        let mut count = self.data_blocks;
        for (level, &blocks) in self.levels.iter().enumerate() {
            let start = offset + self.start(level);
            let length = count * DIGEST_SIZE as u64;
            for position in (0..blocks * BLOCK_BYTES).step_by(PIECE) {
                let piece = part(&mut buffer, blocks * BLOCK_BYTES - position);
                piece.fill(0);
                let known = part(piece, length - position);
                match level {
                    0 => leaves(position, known).map_err(WriteError::Spool)?,
                    _ => file.read_exact_at(known, start + position).map_err(WriteError::Output)?,
                }
                file.write_all_at(piece, start + position).map_err(WriteError::Output)?;
                let digests = &mut digests[..piece.len() / BLOCK_SIZE * DIGEST_SIZE];
                hash_blocks(piece, digests);
                if blocks == 1 {
                    root.copy_from_slice(digests);
                } else {
                    let above = offset + self.start(level + 1) + position / FANOUT;
                    file.write_all_at(digests, above).map_err(WriteError::Output)?;
                }
            }
            count = blocks;
        }
        Ok(RootDigest(root))
    }
}

/// The first bytes of `buffer`, `length` of them or all.
fn part(buffer: &mut [u8], length: u64) -> &mut [u8] {
    let length = usize::try_from(length).unwrap_or(usize::MAX).min(buffer.len());
    &mut buffer[..length]
}

const _: () = assert!(FANOUT == (BLOCK_SIZE / DIGEST_SIZE) as u64 && PIECE.is_multiple_of(BLOCK_SIZE));
