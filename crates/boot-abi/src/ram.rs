//! The memory map that the loader claims, checked.
//!
//! The loader is the host, so the map is hostile: the stub runs only when the claimed RAM is in order,
//! free of overlaps, away from the device hole, and covers what the stub itself needs. The same code runs
//! in the stub and in tests on the host.

use core::fmt;

use crate::{LoadedRange, MEMORY_MAP_ENTRIES, MemoryMapEntry, RESET_PAGE_GPA};

/// The device hole: window, devices, I/O APIC, local APIC. Never RAM.
const HOLE: core::ops::Range<u64> = 0xC000_0000..0x1_0000_0000;
/// End of what the stub's page tables map one to one.
pub const MAPPED_END: u64 = 511 << 30;
const PAGE: u64 = 4096;

/// Most separate runs of RAM that are accepted. A machine has two, around the hole.
pub const MAX_RANGES: usize = 8;

/// A run of RAM, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Range {
    /// First byte.
    pub base: u64,
    /// Past the last byte.
    pub end: u64,
}

/// Checked RAM, in address order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ram {
    ranges: [Range; MAX_RANGES],
    count: usize,
}

/// Why a memory map is refused. Numbers are entry indices or addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RamError {
    /// The map is not ended within its page.
    Unterminated,
    /// More runs than a machine has.
    TooMany,
    /// There is no RAM at all.
    Empty,
    /// Not ordinary RAM, or a flag is set.
    Kind(usize),
    /// Past what can be addressed, or wrapping around.
    Beyond(usize),
    /// Not behind its predecessor.
    Order(usize),
    /// In the device hole.
    Hole(usize),
    /// This address has to be RAM and is not.
    Missing(u64),
    /// The launch loaded this address, and it is not RAM.
    Loaded(u64),
}

impl fmt::Display for RamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Unterminated => f.write_str("memory map: expected a last entry of 0 pages, found none"),
            Self::TooMany => f.write_str("memory map: expected at most 8 ranges, found more"),
            Self::Empty => f.write_str("memory map: expected RAM, found none"),
            Self::Kind(entry) => write!(f, "memory map: entry {entry} is not plain RAM"),
            Self::Beyond(entry) => write!(f, "memory map: entry {entry} reaches past 511 GiB"),
            Self::Order(entry) => write!(f, "memory map: entry {entry} overlaps or precedes the one before"),
            Self::Hole(entry) => write!(f, "memory map: entry {entry} lies in the device hole"),
            Self::Loaded(gpa) => {
                write!(f, "memory map: expected RAM at {gpa:#x}, which the launch loaded, found none")
            }
            Self::Missing(gpa) => write!(f, "memory map: expected RAM at {gpa:#x}, found none"),
        }
    }
}

impl Ram {
    /// Checks the loader's map, which ends at its first entry of no pages. `needed_end`: RAM must reach from
    /// 0 to here, without a gap.
    ///
    /// # Errors
    /// When anything about the map is not as a machine of ours would have it.
    pub fn check(map: &[MemoryMapEntry; MEMORY_MAP_ENTRIES], needed_end: u64) -> Result<Self, RamError> {
        let mut ram = Self { ranges: [Range::default(); MAX_RANGES], count: 0 };
        let mut previous_end = 0;
        let used = map.iter().position(|entry| entry.pages == 0).ok_or(RamError::Unterminated)?;
        for (index, entry) in map.iter().take(used).enumerate() {
            let range = check_entry(index, entry)?;
            if range.base < previous_end {
                return Err(RamError::Order(index));
            }
            previous_end = range.end;
            let slot = ram.ranges.get_mut(index).ok_or(RamError::TooMany)?;
            *slot = range;
            ram.count = index + 1;
        }
        ram.reaches(needed_end)?;
        Ok(ram)
    }

    /// Checks that RAM reaches from 0 to `needed_end` without a gap.
    ///
    /// # Errors
    /// [`RamError::Missing`] with the first address that is not RAM.
    pub fn reaches(&self, needed_end: u64) -> Result<(), RamError> {
        let first = self.ranges().first().ok_or(RamError::Empty)?;
        if first.base != 0 {
            return Err(RamError::Missing(0));
        }
        if first.end < needed_end { Err(RamError::Missing(first.end)) } else { Ok(()) }
    }

    /// Checks that what the launch loaded is RAM. The page at [`RESET_PAGE_GPA`] is the one that never is.
    ///
    /// # Errors
    /// [`RamError::Loaded`] with an address that is not RAM.
    pub fn holds(&self, loaded: &[LoadedRange]) -> Result<(), RamError> {
        let used = loaded.iter().filter(|range| range.base < range.end && range.base != RESET_PAGE_GPA);
        for wanted in used {
            let holder = self.ranges().iter().find(|ram| (ram.base..ram.end).contains(&wanted.base));
            let holder = holder.ok_or(RamError::Loaded(wanted.base))?;
            if holder.end < wanted.end {
                return Err(RamError::Loaded(holder.end));
            }
        }
        Ok(())
    }

    /// The runs of RAM, in address order.
    #[must_use]
    pub fn ranges(&self) -> &[Range] {
        self.ranges.get(..self.count).unwrap_or(&[])
    }
}

fn check_entry(index: usize, entry: &MemoryMapEntry) -> Result<Range, RamError> {
    if entry.kind != MemoryMapEntry::RAM || entry.flags != 0 || entry.reserved != 0 {
        return Err(RamError::Kind(index));
    }
    let bytes = |pages: u64| pages.checked_mul(PAGE).filter(|&bytes| bytes <= MAPPED_END);
    let base = bytes(entry.first_page).ok_or(RamError::Beyond(index))?;
    let size = bytes(entry.pages).ok_or(RamError::Beyond(index))?;
    let end = base.checked_add(size).filter(|&end| end <= MAPPED_END).ok_or(RamError::Beyond(index))?;
    if base < HOLE.end && end > HOLE.start {
        return Err(RamError::Hole(index));
    }
    Ok(Range { base, end })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEEDED: u64 = 0x200_0000;

    fn map(entries: &[(u64, u64)]) -> [MemoryMapEntry; MEMORY_MAP_ENTRIES] {
        let none = MemoryMapEntry { first_page: 0, pages: 0, kind: 0, flags: 0, reserved: 0 };
        let mut map = [none; MEMORY_MAP_ENTRIES];
        for (slot, &(first_page, pages)) in map.iter_mut().zip(entries) {
            *slot = MemoryMapEntry { first_page, pages, ..none };
        }
        map
    }

    #[test]
    fn machines_of_ours_pass() {
        let small = Ram::check(&map(&[(0, 0x8000)]), NEEDED).unwrap();
        assert_eq!(small.ranges(), [Range { base: 0, end: 0x800_0000 }]);
        let big = Ram::check(&map(&[(0, 0xC_0000), (0x10_0000, 0x4_0000)]), NEEDED).unwrap();
        assert_eq!(big.ranges().len(), 2);
    }

    #[test]
    fn hostile_maps_are_refused() {
        let cases: [(&[(u64, u64)], RamError); 9] = [
            (&[], RamError::Empty),
            (&[(1, 0x8000)], RamError::Missing(0)),
            (&[(0, 0x1000)], RamError::Missing(0x100_0000)),
            (&[(0, 0x8000), (0x7fff, 1)], RamError::Order(1)),
            (&[(0, 0x8000), (0, 0x8000)], RamError::Order(1)),
            (&[(0, 0xC_0001)], RamError::Hole(0)),
            (&[(0, 0x8000), (0xF_0000, 1)], RamError::Hole(1)),
            (&[(0, 0x8000), (u64::MAX, 2)], RamError::Beyond(1)),
            (&[(0, u64::MAX)], RamError::Beyond(0)),
        ];
        for (entries, refusal) in cases {
            assert_eq!(Ram::check(&map(entries), NEEDED), Err(refusal), "{entries:?}");
        }
    }

    #[test]
    fn what_was_loaded_must_be_ram() {
        let ram = Ram::check(&map(&[(0, 0x8000)]), NEEDED).unwrap();
        let range = |base, end| LoadedRange { base, end };
        let reset_page = range(RESET_PAGE_GPA, RESET_PAGE_GPA + 4096);
        assert_eq!(ram.holds(&[range(0x10_0000, 0x14_7000), range(0, 0), reset_page]), Ok(()));
        assert_eq!(ram.holds(&[range(0x7FF_F000, 0x800_1000)]), Err(RamError::Loaded(0x800_0000)));
        assert_eq!(ram.holds(&[range(0x800_0000, 0x800_1000)]), Err(RamError::Loaded(0x800_0000)));
    }

    #[test]
    fn the_last_gibibyte_is_the_alias_and_never_ram() {
        let gib = 1 << 18;
        let end = MAPPED_END / PAGE;
        assert!(Ram::check(&map(&[(0, 0x8000), (4 * gib, end - 4 * gib)]), NEEDED).is_ok());
        let over = Ram::check(&map(&[(0, 0x8000), (4 * gib, end - 4 * gib + 1)]), NEEDED);
        assert_eq!(over, Err(RamError::Beyond(1)));
    }

    #[test]
    fn endless_and_overlong_maps_are_refused() {
        let endless =
            [MemoryMapEntry { first_page: 0, pages: 1, kind: 0, flags: 0, reserved: 0 }; MEMORY_MAP_ENTRIES];
        assert_eq!(Ram::check(&endless, NEEDED), Err(RamError::Unterminated));
        let mut many = [(0, 0x8000); MAX_RANGES + 1];
        for (index, entry) in (0u64..).zip(many.iter_mut()).skip(1) {
            *entry = (0x8000 + 2 * index, 1);
        }
        assert_eq!(Ram::check(&map(&many), NEEDED), Err(RamError::TooMany));
    }

    #[test]
    fn other_kinds_and_flags_are_refused() {
        for (kind, flags, reserved) in [(1, 0, 0), (0, 1, 0), (0, 0, 1)] {
            let mut bad = map(&[(0, 0x8000)]);
            bad[0] = MemoryMapEntry { kind, flags, reserved, ..bad[0] };
            assert_eq!(Ram::check(&bad, NEEDED), Err(RamError::Kind(0)));
        }
    }
}
