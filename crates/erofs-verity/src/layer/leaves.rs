//! The digests of the data blocks, until the hash tree's place is known.
//!
//! The tree lies behind the data, whose length is known at the end only. Digests that come first stay in
//! memory; those of a larger layer go to a temporary file that no name leads to, each at its own place, so that
//! they may arrive in any order.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use crate::verity::DIGEST_SIZE;

/// Bytes of digests that stay in memory: those of 256 MiB of data.
const IN_MEMORY: usize = 2 << 20;

/// Digests by block.
pub(super) struct Leaves {
    directory: PathBuf,
    stored: Mutex<Stored>,
}

#[derive(Default)]
struct Stored {
    memory: Vec<u8>,
    /// Holds what lies behind [`IN_MEMORY`], at its place; what would lie before is a hole.
    spool: Option<File>,
}

impl Leaves {
    /// An empty store that makes its temporary file, should it need one, in `directory`.
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory, stored: Mutex::default() }
    }

    /// Keeps the digests of the blocks from `first_block` on. They may replace others.
    pub(super) fn put(&self, first_block: u64, digests: &[u8]) -> io::Result<()> {
        let offset = first_block * DIGEST_SIZE as u64;
        let mut stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        let mut behind = (offset, digests);
        if let Some(room) = usize::try_from(offset).ok().and_then(|offset| IN_MEMORY.checked_sub(offset)) {
            let start = IN_MEMORY - room;
            let (here, there) = digests.split_at(digests.len().min(room));
            let end = start + here.len();
            if stored.memory.len() < end {
                stored.memory.resize(end, 0);
            }
            stored.memory[start..end].copy_from_slice(here);
            behind = (end as u64, there);
        }
        let (offset, digests) = behind;
        if digests.is_empty() {
            return Ok(());
        }
        let spool = match &mut stored.spool {
            Some(file) => file,
            none => none.insert(tempfile::tempfile_in(&self.directory)?),
        };
        spool.write_all_at(digests, offset)
    }

    /// Reads digests from byte `offset` of all digests on.
    pub(super) fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(stored.memory.len());
        let here = out.len().min(stored.memory.len() - start);
        let (first, rest) = out.split_at_mut(here);
        first.copy_from_slice(&stored.memory[start..start + here]);
        match &stored.spool {
            _ if rest.is_empty() => Ok(()),
            Some(spool) => spool.read_exact_at(rest, offset + here as u64),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_come_back_across_the_border_in_any_order() {
        let leaves = Leaves::new(std::env::temp_dir());
        let border = (IN_MEMORY / DIGEST_SIZE) as u64;
        leaves.put(border + 1, &[3; DIGEST_SIZE]).unwrap();
        leaves.put(border - 1, &[[1; DIGEST_SIZE], [2; DIGEST_SIZE]].concat()).unwrap();
        let mut found = [0; 3 * DIGEST_SIZE];
        leaves.read((border - 1) * DIGEST_SIZE as u64, &mut found).unwrap();
        assert_eq!(found, *[[1; DIGEST_SIZE], [2; DIGEST_SIZE], [3; DIGEST_SIZE]].concat());
        leaves.put(0, &[9; DIGEST_SIZE]).unwrap();
        leaves.read(0, &mut found[..DIGEST_SIZE]).unwrap();
        assert_eq!(found[..DIGEST_SIZE], [9; DIGEST_SIZE]);
    }

    #[test]
    fn a_temporary_file_that_cannot_be_made_is_an_error() {
        let leaves = Leaves::new("/nonexistent".into());
        leaves.put(0, &[0; IN_MEMORY]).unwrap();
        assert!(leaves.put((IN_MEMORY / DIGEST_SIZE) as u64, &[0; DIGEST_SIZE]).is_err());
    }
}
