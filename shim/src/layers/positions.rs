//! Which bytes of the layers disk are taken: pure arithmetic, first fit.
//!
//! The disk ends with what is attached last on it, so low positions are preferred: what is freed is used again
//! before the disk grows. No two ranges overlap, and all begin and end on a block boundary.

use std::collections::BTreeMap;

use agent_protocol::storage::BLOCK_SIZE;

/// Bytes that the layers disk may have at most, 16 TiB: what the agent's protocol can name.
pub const DISK_BYTES: u64 = 1 << 44;

/// The taken ranges: first byte to the byte after the last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Positions {
    taken: BTreeMap<u64, u64>,
}

impl Positions {
    /// Takes the first gap of `length` bytes and says where it begins. `None` when no gap is large enough.
    /// Lengths are taken in whole blocks, at least one.
    pub fn take(&mut self, length: u64) -> Option<u64> {
        let length = length.max(1).checked_next_multiple_of(BLOCK_SIZE)?;
        let mut at = 0;
        for (begin, end) in &self.taken {
            if begin - at >= length {
                break;
            }
            at = *end;
        }
        let end = at.checked_add(length).filter(|end| *end <= DISK_BYTES)?;
        self.taken.insert(at, end);
        Some(at)
    }

    /// Frees the range that begins at `at`; whether there was one.
    pub fn free(&mut self, at: u64) -> bool {
        self.taken.remove(&at).is_some()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BLOCK: u64 = BLOCK_SIZE;

    #[test]
    fn the_first_gap_that_fits_is_used_before_the_disk_grows() {
        let mut positions = Positions::default();
        assert_eq!(
            [1, 2, 3].map(|blocks| positions.take(blocks * BLOCK)),
            [0, 1, 3].map(|at| Some(at * BLOCK))
        );
        assert!(positions.free(BLOCK));
        assert_eq!(positions.take(3 * BLOCK), Some(6 * BLOCK), "too large for the gap");
        assert_eq!(positions.take(BLOCK), Some(BLOCK));
        assert_eq!(positions.take(BLOCK), Some(2 * BLOCK));
        assert_eq!(positions.take(1), Some(9 * BLOCK), "the gap is full");
        assert_eq!(positions.take(1), Some(10 * BLOCK), "a byte takes a block");
    }

    #[test]
    fn the_disk_has_an_end() {
        let mut positions = Positions::default();
        assert_eq!(positions.take(DISK_BYTES - BLOCK), Some(0));
        assert_eq!(positions.take(2 * BLOCK), None);
        assert_eq!(positions.take(BLOCK), Some(DISK_BYTES - BLOCK));
        assert_eq!(positions.take(1), None);
        assert_eq!(positions.take(u64::MAX), None);
        assert!(positions.free(0) && !positions.free(0));
        assert_eq!(positions.take(1), Some(0));
    }

    proptest! {
        /// Whatever is taken and freed, ranges never overlap, are aligned, and no earlier gap would have done.
        #[test]
        fn ranges_never_overlap(steps in prop::collection::vec((1_u64..9, prop::option::of(0_usize..40)), 1..200)) {
            let mut positions = Positions::default();
            let mut live: Vec<(u64, u64)> = Vec::new();
            for (blocks, freed) in steps {
                if let Some(index) = freed.filter(|_| !live.is_empty()) {
                    let (at, _) = live.swap_remove(index % live.len());
                    prop_assert!(positions.free(at));
                    continue;
                }
                let length = blocks * BLOCK;
                let at = positions.take(length).unwrap();
                prop_assert!(at.is_multiple_of(BLOCK));
                let fits = |at: u64| live.iter().all(|(begin, end)| at + length <= *begin || *end <= at);
                prop_assert!(fits(at));
                let earlier = (0..at / BLOCK).map(|block| block * BLOCK).find(|at| fits(*at));
                prop_assert_eq!(earlier, None);
                live.push((at, at + length));
            }
        }
    }
}
