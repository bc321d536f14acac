//! Places an image in the guest's memory, and fills in what it asks the loader for.
//!
//! The image is hostile too: every page must lie in RAM or in the window, and none may be loaded twice, so
//! that what runs is what was measured.

use std::collections::BTreeSet;

use igvm_defs::{IGVM_VHS_MEMORY_MAP_ENTRY, MemoryMapEntryType};
use launch::image::{Image, Page, PageKind, Parameter, ParameterArea};
use launch::layout::{PAGE_SIZE, WINDOW_BASE, WINDOW_SIZE, ram_ranges};
use launch::plan::LaunchPlan;
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap};
use zerocopy::IntoBytes as _;

use super::memory::{self, MemoryError};

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

/// Places `image` into `ram`; the window that its shared pages make comes back.
///
/// # Errors
/// When a page or parameter does not fit, or two overlap.
pub fn place(
    image: &Image,
    plan: &LaunchPlan,
    ram: &GuestMemoryMmap,
) -> Result<Option<GuestMemoryMmap>, LoadError> {
    let shared = image.pages.iter().filter(|page| page.kind == PageKind::Shared);
    let ends = shared.map(window_end).collect::<Result<Vec<_>, _>>()?;
    let window = ends.into_iter().max().map(memory::window).transpose()?;
    let mut taken = BTreeSet::new();
    for page in &image.pages {
        claim(&mut taken, page.gpa)?;
        let (target, expected) = match page.kind {
            PageKind::Shared => (window.as_ref(), "a place in the shared window"),
            PageKind::Measured | PageKind::Unmeasured | PageKind::Secrets | PageKind::Cpuid => {
                (Some(ram), "a place in RAM")
            }
        };
        let outside = || LoadError::Outside { kind: page.kind, gpa: page.gpa, expected };
        let target = target.filter(|memory| whole_page(memory, page.gpa)).ok_or_else(outside)?;
        // Fresh memory is zero: a page without data is there already.
        target.write_slice(&page.data, GuestAddress(page.gpa)).map_err(|_| outside())?;
    }
    for area in &image.parameters {
        fill(area, plan, ram)?;
    }
    Ok(window)
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

/// Fills in a parameter area, whose pages are among the image's and so already placed.
fn fill(area: &ParameterArea, plan: &LaunchPlan, ram: &GuestMemoryMmap) -> Result<(), LoadError> {
    let kind = PageKind::Unmeasured;
    for (offset, parameter) in &area.parameters {
        let value = match parameter {
            Parameter::VpCount => plan.vcpus.to_le_bytes().to_vec(),
            Parameter::MemoryMap => memory_map(plan.memory_mib),
        };
        let room = area.bytes.saturating_sub(u64::from(*offset));
        if u64::try_from(value.len()).is_ok_and(|needed| needed > room) {
            return Err(LoadError::Parameter { gpa: area.gpa, offset: *offset, needed: value.len() });
        }
        let at = GuestAddress(area.gpa.saturating_add(u64::from(*offset)));
        let outside = |_| LoadError::Outside { kind, gpa: area.gpa, expected: "a place in RAM" };
        ram.write_slice(&value, at).map_err(outside)?;
    }
    Ok(())
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
mod tests {
    use launch::image::{Platform, Start};
    use launch::plan::Tee;
    use zerocopy::FromZeros as _;

    use super::*;

    fn plan() -> LaunchPlan {
        LaunchPlan {
            image: "/i".into(),
            rootfs: "/r".into(),
            vcpus: 3,
            memory_mib: 64,
            tee: Tee::None,
            host_data: launch::plan::HostData::default(),
            hypervisor: launch::plan::Hypervisor::Auto,
            vsock: "/v".into(),
            console: None,
        }
    }

    fn page(gpa: u64, kind: PageKind) -> Page {
        Page { gpa, kind, data: vec![0x5A; 4096] }
    }

    fn try_pages(pages: Vec<Page>, parameters: Vec<ParameterArea>) -> Result<GuestMemoryMmap, LoadError> {
        let ram = memory::ram(64).unwrap();
        let image = Image {
            platform: Platform::Native,
            pages,
            parameters,
            start: Start::Native(Box::new(igvm_defs::IgvmNativeVpContextX64::new_zeroed())),
            guest_policy: None,
            id_block: None,
        };
        place(&image, &plan(), &ram).map(|_| ram)
    }

    #[test]
    fn pages_and_parameters_land_where_they_should() {
        let area = ParameterArea {
            gpa: 0x5000,
            bytes: 4096,
            parameters: vec![(0, Parameter::VpCount), (64, Parameter::MemoryMap)],
        };
        let parameters = Page { gpa: 0x5000, kind: PageKind::Unmeasured, data: Vec::new() };
        let pages = vec![page(0x2000, PageKind::Measured), page(WINDOW_BASE, PageKind::Shared), parameters];
        let ram = try_pages(pages, vec![area]).unwrap();
        assert_eq!(ram.read_obj::<u8>(GuestAddress(0x2FFF)).unwrap(), 0x5A);
        assert_eq!(ram.read_obj::<u32>(GuestAddress(0x5000)).unwrap(), 3);
        assert_eq!(ram.read_obj::<u64>(GuestAddress(0x5048)).unwrap(), 64 * 256);
        assert_eq!(ram.read_obj::<u64>(GuestAddress(0x5060)).unwrap(), 0);
    }

    #[test]
    fn misplaced_pages_are_refused() {
        let cases = [
            vec![page(64 << 20, PageKind::Measured)],
            vec![page(0x2001, PageKind::Measured)],
            vec![page(u64::MAX - 4095, PageKind::Measured)],
            vec![page(0x1000, PageKind::Shared)],
            vec![page(WINDOW_BASE + WINDOW_SIZE, PageKind::Shared)],
            vec![page(WINDOW_BASE, PageKind::Measured)],
            vec![page(0x1000, PageKind::Measured), page(0x1000, PageKind::Unmeasured)],
        ];
        for pages in cases {
            let shown = format!("{:#x?}", pages.iter().map(|page| page.gpa).collect::<Vec<_>>());
            assert!(try_pages(pages, Vec::new()).is_err(), "{shown}");
        }
    }

    #[test]
    fn parameters_that_do_not_fit_are_refused() {
        let area = |gpa, parameters| vec![ParameterArea { gpa, bytes: 4096, parameters }];
        assert!(try_pages(Vec::new(), area(0x5000, vec![(4093, Parameter::VpCount)])).is_err());
        assert!(try_pages(Vec::new(), area(64 << 20, vec![(0, Parameter::VpCount)])).is_err());
    }
}
