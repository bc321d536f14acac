//! Places an image: shared pages in the window, private ones in RAM or in runs that a secure processor imports;
//! and fills in what the image asks the loader for.
//!
//! The image is hostile too: every page must lie in RAM or in the window, and none may be loaded twice, so
//! that what runs is what was measured.

use std::collections::{BTreeMap, BTreeSet};

use igvm_defs::{IGVM_VHS_MEMORY_MAP_ENTRY, MemoryMapEntryType};
use launch::image::{Image, Page, PageKind, Parameter, ParameterArea, Start};
use launch::layout::{PAGE_SIZE, WINDOW_BASE, WINDOW_SIZE, ram_ranges};
use launch::plan::LaunchPlan;
use launch::snp::{self, Backend};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap};
use zerocopy::IntoBytes as _;

use super::memory::{self, MemoryError};
use crate::hv::Run;

/// Why an image cannot be placed.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A page lies where this machine has no memory of its kind.
    #[error("image: {kind} page at {gpa:#x}: expected {expected}")]
    Outside {
        /// Kind of page.
        kind: PageKind,
        /// Where it wants to be.
        gpa: u64,
        /// Where it may be.
        expected: &'static str,
    },
    /// Two pages want the same place.
    #[error("image: page at {0:#x} is loaded twice")]
    Twice(u64),
    /// A parameter does not fit its area.
    #[error("image: parameter area at {gpa:#x}: expected room for {needed} bytes at offset {offset}")]
    Parameter {
        /// The area.
        gpa: u64,
        /// Where the parameter goes.
        offset: u32,
        /// Its size.
        needed: usize,
    },
    /// Memory for the window.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// An image whose pages all have a place in a machine.
#[derive(Debug)]
pub struct Placement<'a> {
    image: &'a Image,
    private: &'a GuestMemoryMmap,
    /// What the loader fills in, page by page.
    filled: BTreeMap<u64, Vec<u8>>,
    /// Memory of the shared pages, with their content; none when there are none.
    pub window: Option<GuestMemoryMmap>,
}

impl<'a> Placement<'a> {
    /// Finds a place for each page, `private` for all but the shared ones, and writes the shared ones to theirs.
    ///
    /// # Errors
    /// When a page or parameter does not fit, or two overlap.
    pub fn new(image: &'a Image, plan: &LaunchPlan, private: &'a GuestMemoryMmap) -> Result<Self, LoadError> {
        let shared = || image.pages.iter().filter(|page| page.kind == PageKind::Shared);
        let ends = shared().map(window_end).collect::<Result<Vec<_>, _>>()?;
        let window = ends.into_iter().max().map(memory::window).transpose()?;
        let mut taken = BTreeSet::new();
        for page in &image.pages {
            claim(&mut taken, page.gpa)?;
            let (target, expected) = match page.kind {
                PageKind::Shared => (window.as_ref(), "a place in the shared window"),
                PageKind::Measured | PageKind::Unmeasured | PageKind::Secrets | PageKind::Cpuid => {
                    (Some(private), "a place in RAM")
                }
            };
            let outside = || LoadError::Outside { kind: page.kind, gpa: page.gpa, expected };
            target.filter(|memory| whole_page(memory, page.gpa)).ok_or_else(outside)?;
        }
        if let Start::Snp { gpa, .. } = image.start {
            claim(&mut taken, gpa)?;
            let outside =
                LoadError::Outside { kind: PageKind::Measured, gpa, expected: "a save area in RAM" };
            whole_page(private, gpa).then_some(()).ok_or(outside)?;
        }
        if let Some(window) = &window {
            shared().try_for_each(|page| write(window, page, &page.data))?;
        }
        Ok(Self { image, private, filled: fill(image, plan)?, window })
    }

    /// Writes the private pages to where the guest will see them, in clear.
    ///
    /// # Errors
    /// None in practice: each page has been found a place.
    pub fn write_private(&self) -> Result<(), LoadError> {
        let private = self.image.pages.iter().filter(|page| page.kind != PageKind::Shared);
        // Fresh memory is zero: a page without data is there already.
        private.into_iter().try_for_each(|page| {
            write(self.private, page, self.filled.get(&page.gpa).map_or(&*page.data, Vec::as_slice))
        })
    }

    /// The private pages in the order in which `backend` imports them, neighbours of one kind together.
    #[must_use]
    pub fn runs(&self, backend: Backend) -> Vec<Run> {
        let vmsa = match &self.image.start {
            Start::Snp { vmsa, .. } => snp::vmsa::page(vmsa).to_vec(),
            Start::Native(_) | Start::Reset => Vec::new(),
        };
        let mut runs: Vec<Run> = Vec::new();
        let mut end = None;
        for step in snp::steps(self.image, backend, &vmsa) {
            let page = self.filled.get(&step.gpa).map_or(step.data, Vec::as_slice);
            let page = if page.is_empty() { &ZEROS } else { page };
            match runs.last_mut().filter(|run| run.page_type == step.page_type && end == Some(step.gpa)) {
                Some(run) => run.bytes.extend_from_slice(page),
                None => {
                    runs.push(Run { gpa: step.gpa, page_type: step.page_type, bytes: page.to_vec() });
                }
            }
            end = step.gpa.checked_add(PAGE_SIZE);
        }
        runs
    }
}

const ZEROS: [u8; 4096] = [0; 4096];

fn write(memory: &GuestMemoryMmap, page: &Page, data: &[u8]) -> Result<(), LoadError> {
    let outside = |_| LoadError::Outside { kind: page.kind, gpa: page.gpa, expected: "a place in memory" };
    memory.write_slice(data, GuestAddress(page.gpa)).map_err(outside)
}

/// Bytes of window up to the end of a shared page.
fn window_end(page: &Page) -> Result<u64, LoadError> {
    let offset = page.gpa.checked_sub(WINDOW_BASE).filter(|offset| *offset < WINDOW_SIZE);
    let expected = "a place in the shared window";
    offset.map(|offset| offset + PAGE_SIZE).ok_or(LoadError::Outside {
        kind: page.kind,
        gpa: page.gpa,
        expected,
    })
}

fn claim(taken: &mut BTreeSet<u64>, gpa: u64) -> Result<(), LoadError> {
    if taken.insert(gpa) { Ok(()) } else { Err(LoadError::Twice(gpa)) }
}

fn whole_page(memory: &GuestMemoryMmap, gpa: u64) -> bool {
    gpa.is_multiple_of(PAGE_SIZE) && memory.check_range(GuestAddress(gpa), 4096)
}

/// The parameter areas' pages, which are among the image's, with what the loader has to say.
fn fill(image: &Image, plan: &LaunchPlan) -> Result<BTreeMap<u64, Vec<u8>>, LoadError> {
    let mut pages = BTreeMap::new();
    for area in &image.parameters {
        let mut bytes = vec![0; usize::try_from(area.bytes).unwrap_or(0)];
        for (offset, parameter) in &area.parameters {
            put(&mut bytes, area, *offset, &value(*parameter, plan))?;
        }
        let places = (0..area.bytes).step_by(ZEROS.len()).map(|offset| area.gpa.saturating_add(offset));
        pages.extend(places.zip(bytes.chunks(ZEROS.len()).map(<[u8]>::to_vec)));
    }
    Ok(pages)
}

fn put(bytes: &mut [u8], area: &ParameterArea, offset: u32, value: &[u8]) -> Result<(), LoadError> {
    let room = usize::try_from(offset).ok().and_then(|from| bytes.get_mut(from..)?.get_mut(..value.len()));
    let needed = value.len();
    room.ok_or(LoadError::Parameter { gpa: area.gpa, offset, needed })?.copy_from_slice(value);
    Ok(())
}

fn value(parameter: Parameter, plan: &LaunchPlan) -> Vec<u8> {
    match parameter {
        Parameter::VpCount => plan.vcpus.to_le_bytes().to_vec(),
        Parameter::MemoryMap => memory_map(plan.memory_mib),
    }
}

/// The machine's RAM as IGVM describes it, with the entry of no pages that ends it.
fn memory_map(memory_mib: u64) -> Vec<u8> {
    let entry = |first: u64, pages: u64| IGVM_VHS_MEMORY_MAP_ENTRY {
        starting_gpa_page_number: first,
        number_of_pages: pages,
        entry_type: MemoryMapEntryType::MEMORY,
        flags: 0,
        reserved: 0,
    };
    let ranges = ram_ranges(memory_mib).into_iter();
    let entries = ranges.map(|range| entry(range.base / PAGE_SIZE, range.size / PAGE_SIZE));
    entries.chain([entry(0, 0)]).flat_map(|entry| entry.as_bytes().to_vec()).collect()
}

#[cfg(test)]
mod tests;
