//! The guest's memory as this backend keeps it: what is mapped where, and which pages the host may touch.
//!
//! A partition's pages leave the host's reach when they are mapped, so content has to be there before. Later
//! the guest shares pages, and the host acquires access to them; it releases it when the guest takes them
//! back. One bit a page remembers what the host holds: whatever a guest does, that is all it can make the host
//! keep.

use std::sync::Arc;

use vm_memory::{Bytes as _, MmapRegion, VolatileMemory as _};

use super::abi::PAGE;

/// Bits of a word of the map.
const WORD: u64 = 64;

/// One run of guest memory.
#[derive(Debug)]
pub struct Slot {
    /// Guest-physical address.
    pub gpa: u64,
    /// What is behind it.
    pub memory: Arc<MmapRegion>,
    /// Whether the hypervisor knows of it.
    pub mapped: bool,
    /// Pages that the host has acquired access to, one bit each.
    held: Vec<u64>,
}

impl Slot {
    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.memory.size() as u64
    }

    /// Offset of `gpa`, when `length` bytes from there on are inside.
    fn offset(&self, gpa: u64, length: u64) -> Option<u64> {
        let offset = gpa.checked_sub(self.gpa)?;
        (offset.checked_add(length)? <= self.bytes()).then_some(offset)
    }

    fn is_held(&self, page: u64) -> bool {
        bit(page).is_some_and(|(word, bit)| self.held.get(word).is_some_and(|held| held & bit != 0))
    }

    fn set_held(&mut self, page: u64, held: bool) {
        let Some((word, bit)) = bit(page) else { return };
        let Some(word) = self.held.get_mut(word) else { return };
        *word = if held { *word | bit } else { *word & !bit };
    }
}

/// Word and mask of a page's bit.
fn bit(page: u64) -> Option<(usize, u64)> {
    Some((usize::try_from(page / WORD).ok()?, 1 << (page % WORD)))
}

/// All of a guest's memory.
#[derive(Debug, Default)]
pub struct Memory {
    slots: Vec<Option<Slot>>,
}

impl Memory {
    /// Adds memory that the hypervisor does not know of yet. Returns its slot, or none where it would overlap
    /// what is there, wrap, or not consist of whole pages.
    pub fn add(&mut self, gpa: u64, memory: Arc<MmapRegion>) -> Option<u32> {
        let bytes = memory.size() as u64;
        let end = gpa.checked_add(bytes)?;
        let whole = bytes > 0 && gpa.is_multiple_of(PAGE) && bytes.is_multiple_of(PAGE);
        let overlaps = |slot: &Slot| gpa < slot.gpa + slot.bytes() && slot.gpa < end;
        if !whole || self.present().any(overlaps) {
            return None;
        }
        let index = u32::try_from(self.slots.len()).ok()?;
        let words = usize::try_from((bytes / PAGE).div_ceil(WORD)).ok()?;
        self.slots.push(Some(Slot { gpa, memory, mapped: false, held: vec![0; words] }));
        Some(index)
    }

    /// A slot, when there is one of that number.
    pub fn slot_mut(&mut self, index: u32) -> Option<&mut Slot> {
        self.slots.get_mut(usize::try_from(index).ok()?)?.as_mut()
    }

    /// Forgets a slot.
    pub fn remove(&mut self, index: u32) {
        if let Some(slot) = usize::try_from(index).ok().and_then(|index| self.slots.get_mut(index)) {
            *slot = None;
        }
    }

    fn present(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter().flatten()
    }

    /// All slots, in the order in which they were added.
    pub fn present_mut(&mut self) -> impl Iterator<Item = &mut Slot> {
        self.slots.iter_mut().flatten()
    }

    /// The slot that all of a range lies in, and the range's offset there.
    fn find(&self, gpa: u64, length: u64) -> Option<(usize, u64)> {
        let mut slots = self.slots.iter().enumerate();
        slots.find_map(|(index, slot)| Some((index, slot.as_ref()?.offset(gpa, length)?)))
    }

    /// Whether there is a whole page of memory at `gpa`.
    pub fn is_page(&self, gpa: u64) -> bool {
        gpa.is_multiple_of(PAGE) && self.is_memory(gpa, PAGE)
    }

    /// Whether there is a whole page of memory at `gpa` that the host has no access to.
    pub fn is_private_page(&self, gpa: u64) -> bool {
        self.is_page(gpa) && !self.is_held(gpa)
    }

    /// Whether all of a range is in one piece of memory.
    pub fn is_memory(&self, gpa: u64, length: u64) -> bool {
        self.find(gpa, length).is_some()
    }

    /// Whether the host has access to the page at `gpa`.
    pub fn is_held(&self, gpa: u64) -> bool {
        let held = |(index, offset)| Some(self.slots.get::<usize>(index)?.as_ref()?.is_held(offset / PAGE));
        self.find(gpa, 1).and_then(held).unwrap_or(false)
    }

    /// Remembers that the host has got or lost access to a page.
    pub fn set_held(&mut self, gpa: u64, held: bool) {
        let Some((index, offset)) = self.find(gpa, 1) else { return };
        if let Some(slot) = self.slots.get_mut(index).and_then(Option::as_mut) {
            slot.set_held(offset / PAGE, held);
        }
    }

    /// Writes to memory, which must be one the host has access to. False where it is not memory.
    pub fn write(&self, gpa: u64, bytes: &[u8]) -> bool {
        let Some((index, offset)) = self.find(gpa, bytes.len() as u64) else { return false };
        let Some(slot) = self.slots.get(index).and_then(Option::as_ref) else { return false };
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        slot.memory.as_volatile_slice().write_slice(bytes, at).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> Memory {
        let mut memory = Memory::default();
        let region = || Arc::new(MmapRegion::new(0x80_000).unwrap());
        assert_eq!(memory.add(0x10_0000, region()), Some(0));
        assert_eq!(memory.add(0xC000_0000, region()), Some(1));
        memory
    }

    #[test]
    fn overlapping_odd_and_wrapping_ranges_are_refused() {
        let mut memory = memory();
        for gpa in [0x10_0000, 0x17_F000, 0x8_1000, 0x10_0800, u64::MAX - 0xFFF, 0xFFFF_FFFF_FFF8_0000] {
            let region = Arc::new(MmapRegion::new(0x80_000).unwrap());
            assert_eq!(memory.add(gpa, region), None, "{gpa:#x}");
        }
        memory.remove(0);
        let region = Arc::new(MmapRegion::new(0x80_000).unwrap());
        assert_eq!(memory.add(0x10_0000, region), Some(2));
    }

    #[test]
    fn access_is_remembered_page_by_page() {
        let mut memory = memory();
        memory.set_held(0x17_E000, true);
        assert!(memory.is_held(0x17_E000) && memory.is_held(0x17_EFFF) && !memory.is_held(0x17_F000));
        assert!(!memory.is_private_page(0x17_E000) && memory.is_private_page(0x17_F000));
        memory.set_held(0x17_E000, false);
        assert!(!memory.is_held(0x17_E000) && memory.is_private_page(0x17_E000));
    }

    #[test]
    fn ranges_outside_of_memory_are_nothing() {
        let mut memory = memory();
        for (gpa, length) in [(0xF_F000, 0x1000), (0x17_F000, 0x1001), (u64::MAX, 2), (0x10_0000, u64::MAX)] {
            assert!(!memory.is_memory(gpa, length), "{gpa:#x}");
        }
        memory.set_held(0x18_0000, true);
        assert!(!memory.is_held(0x18_0000) && !memory.write(0x17_FFFF, &[0; 2]));
        assert!(memory.is_page(0xC007_F000) && !memory.is_page(0xC007_F800) && !memory.is_page(0xC008_0000));
    }
}
