//! The walk over the memory that the launch did not put in place: each page once, in the largest units.
//!
//! A page that is accepted twice is a hole: the host could have swapped what lies under it in between. So what
//! is left out here is never accepted, and what is not left out is accepted exactly once.

use boot_abi::LoadedRange;
use boot_abi::ram::Range;

/// The units in which processors take memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageSize {
    /// 4 KiB.
    Small,
    /// 2 MiB, aligned.
    Large,
}

impl PageSize {
    /// Bytes in one.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Small => 4096,
            Self::Large => 2 << 20,
        }
    }
}

/// One unit of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Its guest-physical address, a multiple of its size.
    pub gpa: u64,
    /// Its size.
    pub size: PageSize,
}

impl Step {
    /// The 4 KiB pages in it.
    pub fn small_pages(self) -> impl Iterator<Item = u64> {
        (self.gpa..self.gpa + self.size.bytes()).step_by(4096)
    }
}

/// RAM in address order, less some ranges.
#[derive(Debug, Clone)]
pub struct Steps<'a> {
    ram: &'a [Range],
    except: &'a [LoadedRange],
    at: u64,
}

impl<'a> Steps<'a> {
    /// All of `ram`, which is in address order and apart, but for the ranges `except`, in any order. All are
    /// page-aligned.
    #[must_use]
    pub const fn new(ram: &'a [Range], except: &'a [LoadedRange]) -> Self {
        Self { ram, except, at: 0 }
    }
}

impl Iterator for Steps<'_> {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        loop {
            let range = self.ram.iter().find(|range| range.end > self.at)?;
            let gpa = self.at.max(range.base);
            if let Some(kept) = self.except.iter().find(|kept| (kept.base..kept.end).contains(&gpa)) {
                self.at = kept.end;
                continue;
            }
            let borders = self.except.iter().map(|kept| kept.base).filter(|base| *base > gpa);
            let end = borders.fold(range.end, u64::min);
            let large = PageSize::Large.bytes();
            let size = if gpa.is_multiple_of(large) && end - gpa >= large {
                PageSize::Large
            } else {
                PageSize::Small
            };
            self.at = gpa + size.bytes();
            return Some(Step { gpa, size });
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    const PAGE: u64 = 4096;

    fn range(base: u64, end: u64) -> Range {
        Range { base, end }
    }

    fn kept(base: u64, end: u64) -> LoadedRange {
        LoadedRange { base, end }
    }

    #[test]
    fn large_where_aligned_and_whole() {
        let ram = [range(0, 0x80_0000)];
        let except = [kept(0x10_0000, 0x10_8000), LoadedRange::default(), kept(0x5F_F000, 0x60_0000)];
        let steps: Vec<_> = Steps::new(&ram, &except).collect();
        let large: Vec<_> =
            steps.iter().filter(|step| step.size == PageSize::Large).map(|step| step.gpa).collect();
        assert_eq!(large, [0x20_0000, 0x60_0000]);
        assert_eq!(steps.len(), 2 + 2 * 512 - 8 - 1);
    }

    #[test]
    fn a_range_that_is_wholly_left_out_gives_nothing() {
        let ram = [range(0, 0x4000), range(0x10_0000, 0x10_1000)];
        assert_eq!(Steps::new(&ram, &[kept(0, 0x20_0000)]).next(), None);
        assert_eq!(Steps::new(&[], &[]).next(), None);
    }

    /// Borders of alternating kept and free runs, some of them 2 MiB wide and aligned.
    fn borders() -> impl Strategy<Value = Vec<u64>> {
        let border = prop_oneof![0u64..2048, (0u64..4).prop_map(|index| index * 512)];
        prop::collection::vec(border, 8).prop_map(|mut borders| {
            borders.sort_unstable();
            borders
        })
    }

    proptest! {
        #[test]
        fn every_page_is_met_once_or_left_out(ram in borders(), except in borders(), turn in 0usize..4) {
            let ranges: Vec<_> = ram
                .chunks(2)
                .filter(|pair| pair[0] < pair[1])
                .map(|pair| range(pair[0] * PAGE, pair[1] * PAGE))
                .collect();
            let mut left_out: Vec<_> =
                except.chunks(2).map(|pair| kept(pair[0] * PAGE, pair[1] * PAGE)).collect();
            left_out.rotate_left(turn);
            let mut met = vec![0; 2048];
            for step in Steps::new(&ranges, &left_out) {
                prop_assert_eq!(step.gpa % step.size.bytes(), 0);
                for gpa in step.small_pages() {
                    met[usize::try_from(gpa / PAGE).unwrap()] += 1;
                }
            }
            for (page, times) in (0u64..).zip(met) {
                let gpa = page * PAGE;
                let is_ram = ranges.iter().any(|range| (range.base..range.end).contains(&gpa));
                let is_kept = left_out.iter().any(|range| (range.base..range.end).contains(&gpa));
                prop_assert_eq!(times, u32::from(is_ram && !is_kept), "page {:#x}", gpa);
            }
        }
    }
}
