//! The hash tree, built while the data streams by.
//!
//! Each data block's digest goes into a leaf block, 128 of them to a block; each leaf block's digest into the
//! level above; until a level has one block, whose digest is the root. On the device the levels follow one
//! another from the top down. Hash blocks are padded with zeros.
//!
//! Only the leaf digests are kept while data passes (32 bytes for 4096, so 8 MiB for a gigabyte); the other
//! levels are made of them at the end. Batches of blocks are hashed on all processors.

use std::io::{self, Write};
use std::thread;

use sha2::{Digest, Sha256};

use super::{DIGEST_SIZE, RootDigest, SALT};
use crate::BLOCK_SIZE;

/// Data that is collected before it is hashed, in bytes.
const BATCH: usize = 4 << 20;
/// Least data that is worth a thread, in bytes.
const PER_THREAD: usize = 256 << 10;
/// Digests in a hash block.
const FANOUT: usize = BLOCK_SIZE / DIGEST_SIZE;

/// Takes a device's data in pieces of any size and keeps the leaf level.
pub struct HashTreeBuilder {
    pending: Vec<u8>,
    leaves: Vec<u8>,
    threads: usize,
}

impl Default for HashTreeBuilder {
    fn default() -> Self {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        Self { pending: Vec::new(), leaves: Vec::new(), threads }
    }
}

impl HashTreeBuilder {
    /// Takes the next bytes of the data.
    pub fn update(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            let (now, later) = data.split_at(data.len().min(BATCH - self.pending.len()));
            self.pending.extend_from_slice(now);
            data = later;
            if self.pending.len() == BATCH {
                self.hash_pending();
            }
        }
    }

    /// Ends the data, which is padded with zeros to a whole block, and makes the upper levels.
    #[must_use]
    pub fn finish(mut self) -> HashTree {
        self.pending.resize(self.pending.len().next_multiple_of(BLOCK_SIZE), 0);
        self.hash_pending();
        let data_blocks = (self.leaves.len() / DIGEST_SIZE) as u64;
        let mut digests = self.leaves;
        let mut levels = Vec::new();
        while digests.len() > DIGEST_SIZE {
            digests.resize(digests.len().next_multiple_of(BLOCK_SIZE), 0);
            let above = hash_blocks(&digests, self.threads);
            levels.push(std::mem::replace(&mut digests, above));
        }
        levels.reverse();
        let mut root = [0; DIGEST_SIZE];
        root[..digests.len()].copy_from_slice(&digests);
        HashTree { root: RootDigest(root), data_blocks, levels }
    }

    fn hash_pending(&mut self) {
        self.leaves.extend_from_slice(&hash_blocks(&self.pending, self.threads));
        self.pending.clear();
    }
}

/// A finished hash tree.
pub struct HashTree {
    root: RootDigest,
    data_blocks: u64,
    /// Top level first, each a whole number of blocks.
    levels: Vec<Vec<u8>>,
}

impl HashTree {
    /// The root digest; all zero over no data at all, which the kernel refuses to map.
    #[must_use]
    pub fn root(&self) -> RootDigest {
        self.root
    }

    /// Number of data blocks under the tree.
    #[must_use]
    pub fn data_blocks(&self) -> u64 {
        self.data_blocks
    }

    /// Bytes of the tree on the device; 0 over a single data block, whose digest is the root.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.levels.iter().map(|level| level.len() as u64).sum()
    }

    /// Writes the tree as it lies on the device.
    ///
    /// # Errors
    /// When `out` fails.
    pub fn write_to(&self, mut out: impl Write) -> io::Result<()> {
        self.levels.iter().try_for_each(|level| out.write_all(level))
    }
}

/// Digests of whole blocks, one behind the other.
fn hash_blocks(data: &[u8], threads: usize) -> Vec<u8> {
    let mut digests = vec![0; data.len() / BLOCK_SIZE * DIGEST_SIZE];
    let threads = threads.min(data.len() / PER_THREAD).max(1);
    let share = (data.len() / BLOCK_SIZE).div_ceil(threads).max(1);
    let shares = || data.chunks(share * BLOCK_SIZE);
    let mut places = digests.chunks_mut(share * DIGEST_SIZE);
    thread::scope(|scope| {
        let own = shares().next().zip(places.next());
        for (data, place) in shares().skip(1).zip(places) {
            scope.spawn(move || hash_share(data, place));
        }
        if let Some((data, place)) = own {
            hash_share(data, place);
        }
    });
    digests
}

fn hash_share(data: &[u8], digests: &mut [u8]) {
    for (block, digest) in data.chunks_exact(BLOCK_SIZE).zip(digests.chunks_exact_mut(DIGEST_SIZE)) {
        digest.copy_from_slice(&Sha256::new().chain_update(SALT).chain_update(block).finalize());
    }
}

const _: () = assert!(FANOUT == 128 && BATCH.is_multiple_of(BLOCK_SIZE));
