//! The CPUID page of a launch: what the guest may believe of its processor.
//!
//! The image lists the leaves that its guest wants. The secure processor refuses values that the hardware does
//! not have, and the guest checks the rest: the page's content is not part of the launch digest.

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

const LEAF_XSAVE: u32 = 0xD;

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

/// Fills the leaves that `page` lists.
///
/// # Errors
/// When it lists none, or more than a page holds, or the hypervisor refuses a leaf.
pub fn fill(
    page: &[u8],
    mut values: impl FnMut(Leaf) -> Result<[U32; 4], HvError>,
) -> Result<abi::CpuidPage, HvError> {
    let refused = |found: String| HvError::Refused {
        what: "CPUID page of the image",
        expected: format!("1 to {} leaves", abi::CPUID_ENTRIES),
        found,
    };
    let wanted = abi::CpuidPage::read_from_bytes(page);
    let wanted = wanted.map_err(|_| refused(format!("a page of {} bytes", page.len())))?;
    let count = usize::try_from(wanted.count.get()).ok().filter(|count| *count > 0);
    let listed = count.and_then(|count| wanted.entries.get(..count));
    let listed = listed.ok_or_else(|| refused(wanted.count.to_string()))?;
    let mut page: abi::CpuidPage = abi::zeroed();
    page.count = wanted.count;
    for (entry, wanted) in page.entries.iter_mut().zip(listed) {
        let leaf = Leaf { eax: wanted.eax_in.get(), ecx: wanted.ecx_in.get(), xcr0: wanted.xcr0_in.get() };
        (entry.eax_in, entry.ecx_in, entry.xcr0_in) = (wanted.eax_in, wanted.ecx_in, wanted.xcr0_in);
        entry.values = without_supervisor_states(leaf, values(leaf)?);
    }
    Ok(page)
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
    fn listed_leaves_are_filled_and_no_others() {
        let mut wanted: abi::CpuidPage = abi::zeroed();
        wanted.count = 2.into();
        wanted.entries[0].eax_in = 0xD.into();
        wanted.entries[0].ecx_in = 1.into();
        wanted.entries[0].xcr0_in = 1.into();
        wanted.entries[1].eax_in = 7.into();
        wanted.entries[1].values = [9.into(); 4];
        let mut asked = Vec::new();
        let page = fill(wanted.as_bytes(), |leaf| {
            asked.push(leaf);
            Ok([5.into(); 4])
        });
        let page = page.unwrap();
        assert_eq!(asked, [Leaf { eax: 0xD, ecx: 1, xcr0: 1 }, Leaf { eax: 7, ecx: 0, xcr0: 0 }]);
        assert_eq!(
            (page.count.get(), page.entries[0].xcr0_in.get(), page.entries[1].eax_in.get()),
            (2, 1, 7)
        );
        assert_eq!(page.entries[0].values.map(U32::get), [5, 5, 0, 0], "supervisor states are not offered");
        assert_eq!(page.entries[1].values.map(U32::get), [5; 4]);
        assert_eq!(page.entries[2].values.map(U32::get), [0; 4]);
    }

    #[test]
    fn a_list_that_is_empty_or_too_long_is_refused() {
        for count in [0, 65, u32::MAX] {
            let mut wanted: abi::CpuidPage = abi::zeroed();
            wanted.count = count.into();
            let error = fill(wanted.as_bytes(), |_| Ok([0.into(); 4])).unwrap_err().to_string();
            assert_eq!(error, format!("CPUID page of the image: expected 1 to 64 leaves, found {count}"));
        }
        assert!(fill(&[1; 100], |_| Ok([0.into(); 4])).is_err());
    }
}
