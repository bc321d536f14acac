//! The CPUID page of a launch: what the guest may believe of its processor.
//!
//! The secure processor refuses values that the hardware does not have, and the guest checks the rest: the page
//! is not part of the launch digest. A file may list the leaves that it wants; else it gets those that Linux
//! reads.

use std::os::fd::BorrowedFd;

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::abi;
use super::partition::{self, Call};
use crate::hv::HvError;
use crate::hv::seam::Kernel;

/// A leaf that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaf {
    /// Leaf.
    pub eax: u32,
    /// Subleaf.
    pub ecx: u32,
    /// XCR0 that the sizes of leaf 0xD are for.
    pub xcr0: u64,
}

const fn leaf(eax: u32, ecx: u32) -> Leaf {
    // Linux takes the sizes of leaf 0xD for x87 alone and adds up the components by itself.
    Leaf { eax, ecx, xcr0: if eax == LEAF_XSAVE && ecx < 2 { 1 } else { 0 } }
}

const LEAF_FEATURES: u32 = 0x1;
const LEAF_XSAVE: u32 = 0xD;

/// What Linux reads. Leaves of 0x40000000 on are the hypervisor's, and not the secure processor's to check.
const LEAVES: [Leaf; 30] = [
    leaf(0x0, 0),
    leaf(LEAF_FEATURES, 0),
    leaf(0x5, 0),
    leaf(0x6, 0),
    leaf(0x7, 0),
    leaf(0x7, 1),
    leaf(0xB, 0),
    leaf(0xB, 1),
    leaf(LEAF_XSAVE, 0),
    leaf(LEAF_XSAVE, 1),
    leaf(LEAF_XSAVE, 2),
    leaf(0x8000_0000, 0),
    leaf(0x8000_0001, 0),
    leaf(0x8000_0002, 0),
    leaf(0x8000_0003, 0),
    leaf(0x8000_0004, 0),
    leaf(0x8000_0005, 0),
    leaf(0x8000_0006, 0),
    leaf(0x8000_0007, 0),
    leaf(0x8000_0008, 0),
    leaf(0x8000_000A, 0),
    leaf(0x8000_0019, 0),
    leaf(0x8000_001A, 0),
    leaf(0x8000_001D, 0),
    leaf(0x8000_001D, 1),
    leaf(0x8000_001D, 2),
    leaf(0x8000_001D, 3),
    leaf(0x8000_001E, 0),
    leaf(LEAF_SEV, 0),
    leaf(0x8000_0021, 0),
];
const LEAF_SEV: u32 = 0x8000_001F;
const _: () = assert!(LEAVES.len() <= abi::CPUID_ENTRIES);

/// What the hypervisor shows virtual processor `vp` for a leaf: EAX to EDX.
pub fn query(kernel: &dyn Kernel, fd: BorrowedFd<'_>, vp: u32, leaf: Leaf) -> Result<[U32; 4], HvError> {
    let mut input: abi::CpuidQuery = abi::zeroed();
    input.vp = vp.into();
    input.flags = abi::CPUID_WITH_REGISTERED_VALUES.into();
    input.eax = leaf.eax.into();
    input.ecx = leaf.ecx.into();
    input.xcr0 = leaf.xcr0.into();
    let mut output = [0; 16];
    let call = Call::list_of_one(abi::HVCALL_GET_VP_CPUID_VALUES, "HVCALL_GET_VP_CPUID_VALUES");
    partition::hypercall(kernel, fd, call, &mut input, &mut output)?;
    Ok(partition::registers(&output))
}

/// Fills a CPUID page: the leaves that `page` lists, or those that Linux reads where it lists none.
///
/// # Errors
/// When it lists more than a page holds, or the hypervisor refuses a leaf.
pub fn fill(
    page: &[u8],
    mut values: impl FnMut(Leaf) -> Result<[U32; 4], HvError>,
) -> Result<abi::CpuidPage, HvError> {
    let listed = listed(page)?;
    let leaves = if listed.is_empty() { &LEAVES[..] } else { &listed };
    let mut page: abi::CpuidPage = abi::zeroed();
    for (entry, leaf) in page.entries.iter_mut().zip(leaves) {
        entry.eax_in = leaf.eax.into();
        entry.ecx_in = leaf.ecx.into();
        entry.xcr0_in = leaf.xcr0.into();
        entry.values = without_supervisor_states(*leaf, values(*leaf)?);
    }
    page.count = U32::new(u32::try_from(leaves.len()).unwrap_or(0));
    Ok(page)
}

fn listed(page: &[u8]) -> Result<Vec<Leaf>, HvError> {
    let Ok(page) = abi::CpuidPage::ref_from_bytes(page) else { return Ok(Vec::new()) };
    let count = page.count.get();
    let entries = usize::try_from(count).ok().and_then(|count| page.entries.get(..count));
    let entries = entries.ok_or_else(|| HvError::Refused {
        what: "CPUID page of the image",
        expected: format!("at most {} leaves", abi::CPUID_ENTRIES),
        found: count.to_string(),
    })?;
    let wanted = |entry: &abi::CpuidEntry| Leaf {
        eax: entry.eax_in.get(),
        ecx: entry.ecx_in.get(),
        xcr0: entry.xcr0_in.get(),
    };
    Ok(entries.iter().map(wanted).collect())
}

/// Supervisor states would need leaves that the page does not have: they are not offered.
fn without_supervisor_states(leaf: Leaf, mut values: [U32; 4]) -> [U32; 4] {
    if (leaf.eax, leaf.ecx) == (LEAF_XSAVE, 1) {
        values[2] = 0.into();
        values[3] = 0.into();
    }
    values
}

/// The page's bytes.
pub fn bytes(page: &abi::CpuidPage) -> Vec<u8> {
    page.as_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_page_is_filled_with_what_linux_reads() {
        let page = fill(&[0; 4096], |leaf| Ok([leaf.eax.into(), 1.into(), 2.into(), 3.into()])).unwrap();
        assert_eq!(page.count.get(), 30);
        assert_eq!(page.entries[1].values.map(U32::get), [1, 1, 2, 3]);
        assert_eq!((page.entries[8].xcr0_in.get(), page.entries[10].xcr0_in.get()), (1, 0));
        assert_eq!(page.entries[9].values.map(U32::get), [0xD, 1, 0, 0]);
        assert_eq!(page.entries[30].eax_in.get(), 0);
    }

    #[test]
    fn listed_leaves_are_filled_and_no_others() {
        let mut wanted: abi::CpuidPage = abi::zeroed();
        wanted.count = 2.into();
        wanted.entries[1].eax_in = 7.into();
        wanted.entries[1].values = [9.into(); 4];
        let page = fill(wanted.as_bytes(), |_| Ok([5.into(); 4])).unwrap();
        assert_eq!((page.count.get(), page.entries[1].eax_in.get()), (2, 7));
        assert_eq!(page.entries[1].values.map(U32::get), [5; 4]);
    }

    #[test]
    fn a_list_that_does_not_fit_is_refused() {
        let mut wanted: abi::CpuidPage = abi::zeroed();
        wanted.count = 65.into();
        let error = fill(wanted.as_bytes(), |_| Ok([0.into(); 4])).unwrap_err().to_string();
        assert_eq!(error, "CPUID page of the image: expected at most 64 leaves, found 65");
    }
}
