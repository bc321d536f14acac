//! The guest's memory on the host: RAM, which devices may reach, and the window, which they may not.

use std::sync::Arc;

use boot_abi::RESET_PAGE_GPA;
use launch::layout::{PAGE_SIZE, WINDOW_BASE, WINDOW_SIZE, ram_ranges};
use launch::plan::Tee;
use vm_memory::mmap::MmapRegionError;
use vm_memory::{
    GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap, GuestMemoryRegion as _, GuestRegionMmap,
    MmapRegion,
};

use crate::hv::{HvError, Vm};

/// What the processor maps with one entry of a page directory, in bytes.
const HUGE_PAGE: u64 = 2 << 20;
const _: () = assert!(WINDOW_BASE.is_multiple_of(HUGE_PAGE) && WINDOW_SIZE.is_multiple_of(HUGE_PAGE));

/// Why there is no memory for the guest.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host has not enough address space or memory.
    #[error("cannot map {bytes} bytes of guest memory: {source}")]
    Map {
        /// Size asked for.
        bytes: u64,
        /// What the system said.
        source: MmapRegionError,
    },
    /// The ranges do not form guest memory.
    #[error("guest memory: {0}")]
    Layout(String),
}

fn region(base: u64, bytes: u64) -> Result<Arc<GuestRegionMmap>, MemoryError> {
    let size = usize::try_from(bytes).map_err(|_| MemoryError::Layout(format!("{bytes} bytes")))?;
    let mapping = MmapRegion::new(size).map_err(|source| MemoryError::Map { bytes, source })?;
    let region = GuestRegionMmap::new(mapping, GuestAddress(base));
    Ok(Arc::new(region.ok_or_else(|| MemoryError::Layout(format!("range at {base:#x} wraps")))?))
}

fn collect(regions: Vec<Arc<GuestRegionMmap>>) -> Result<GuestMemoryMmap, MemoryError> {
    GuestMemoryMmap::from_arc_regions(regions).map_err(|error| MemoryError::Layout(error.to_string()))
}

/// RAM of `memory_mib` MiB, not touched yet.
pub fn ram(memory_mib: u64) -> Result<GuestMemoryMmap, MemoryError> {
    let regions = ram_ranges(memory_mib).into_iter().map(|range| region(range.base, range.size));
    collect(regions.collect::<Result<_, _>>()?)
}

/// The window through which shared pages travel, with room for `bytes` at least. It is not part of the guest's RAM,
/// so that no device can be pointed at it.
///
/// It is a whole number of huge pages. The system then places it at a multiple of their size, as it does with RAM, and
/// the guest gets it in a few large pieces: in small ones every page of the kernel costs an exit of its own when the
/// stub copies it.
pub fn window(bytes: u64) -> Result<GuestMemoryMmap, MemoryError> {
    let wrong = || MemoryError::Layout(format!("a window of {bytes} bytes"));
    collect(vec![region(WINDOW_BASE, bytes.checked_next_multiple_of(HUGE_PAGE).ok_or_else(wrong)?)?])
}

/// What the guest has as its own: RAM, and under TDX the page in which virtual CPUs start, which no device may
/// reach.
pub fn private(ram: &GuestMemoryMmap, tee: Tee) -> Result<GuestMemoryMmap, MemoryError> {
    if tee != Tee::Tdx {
        return Ok(ram.clone());
    }
    let reset = region(RESET_PAGE_GPA, PAGE_SIZE)?;
    ram.insert_region(reset).map_err(|error| MemoryError::Layout(error.to_string()))
}

/// Gives all of `memory` to the guest as its own.
pub fn map_private(vm: &dyn Vm, memory: &GuestMemoryMmap) -> Result<(), HvError> {
    memory.iter().try_for_each(|region| {
        vm.map_private(region.start_addr().0, region.get_mmap())?;
        Ok(())
    })
}

/// Gives all of `memory` to the guest, to be shared with the host; returns the slots.
pub fn map_shared(vm: &dyn Vm, memory: &GuestMemoryMmap) -> Result<Vec<u32>, HvError> {
    memory.iter().map(|region| vm.map(region.start_addr().0, region.get_mmap())).collect()
}
