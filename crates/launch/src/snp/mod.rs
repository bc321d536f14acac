//! The launch of an SEV-SNP guest: which pages, in which order, and the digest that the secure processor makes
//! of them.
//!
//! Each page extends a SHA-384 chain by one 112-byte `PAGE_INFO` record (AMD SEV-SNP firmware ABI
//! specification, section 8.17.2, table 67). The same [`steps`] drive a launch and the computation of its
//! digest, so the two cannot disagree.

mod chain;
pub mod vmsa;

pub use chain::{Chain, PageType};

use crate::digest::{LaunchDigest, page_digest};
use crate::image::{Image, PageKind, Start};

/// Who loads the image: the same file has a digest for each, because they import pages in different orders
/// and make save areas differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// Pages in the order of the file. KVM makes and measures the virtual CPUs' save areas when the launch is
    /// finished, the first virtual CPU's first.
    Kvm,
    /// Pages in the order of their addresses. The first virtual CPU's save area is one of them, at the
    /// address that the file gives; the other virtual CPUs have none at launch.
    Mshv,
}

/// One private page that a loader imports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step<'a> {
    /// Guest-physical address.
    pub gpa: u64,
    /// How the page is imported.
    pub page_type: PageType,
    /// Content: 4096 bytes, or none for zeros or for what the loader or the processor fills in.
    pub data: &'a [u8],
}

/// The image's private pages in the order in which `backend` imports them. With [`Backend::Mshv`], `vmsa` is
/// the content of the first save area's page ([`vmsa::page`] of the image's).
#[must_use]
pub fn steps<'a>(image: &'a Image, backend: Backend, vmsa: &'a [u8]) -> Vec<Step<'a>> {
    let page_type = |kind| match kind {
        PageKind::Measured => Some(PageType::Normal),
        PageKind::Unmeasured => Some(PageType::Unmeasured),
        PageKind::Secrets => Some(PageType::Secrets),
        PageKind::Cpuid => Some(PageType::Cpuid),
        PageKind::Shared => None,
    };
    let step = |page: &'a crate::image::Page| {
        Some(Step { gpa: page.gpa, page_type: page_type(page.kind)?, data: &page.data })
    };
    let mut steps: Vec<Step<'a>> = image.pages.iter().filter_map(step).collect();
    if backend == Backend::Mshv {
        if let Start::Snp { gpa, .. } = image.start {
            steps.push(Step { gpa, page_type: PageType::Vmsa, data: vmsa });
        }
        steps.sort_by_key(|step| step.gpa);
    }
    steps
}

/// Launch digests of `image` with 1 to `max_vcpus` virtual CPUs, in that order. `reset_rdx` is what the
/// other virtual CPUs' RDX holds at reset ([`vmsa::RESET_RDX`] under our own VMM).
#[must_use]
pub fn digests(image: &Image, backend: Backend, max_vcpus: u32, reset_rdx: u64) -> Vec<LaunchDigest> {
    let first = match &image.start {
        Start::Snp { vmsa, .. } => Some(vmsa::page(vmsa)),
        Start::Native(_) | Start::Reset => None,
    };
    let mut chain = Chain::default();
    for step in steps(image, backend, first.as_ref().map_or(&[], |page| page)) {
        chain.extend(step.page_type, step.gpa, step.data);
    }
    match (backend, first) {
        (Backend::Kvm, Some(first)) => {
            let others = page_digest(&vmsa::page(&vmsa::reset(reset_rdx)));
            let save_areas = std::iter::once(page_digest(&first)).chain(std::iter::repeat(others));
            let digests = save_areas.map(|contents| {
                chain.extend_contents(PageType::Vmsa, vmsa::KVM_GPA, contents);
                chain.digest()
            });
            digests.take(usize::try_from(max_vcpus).unwrap_or(0)).collect()
        }
        _ => vec![chain.digest(); usize::try_from(max_vcpus).unwrap_or(0)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Page, Platform};

    fn of(pages: &[(u64, PageKind, u8)]) -> LaunchDigest {
        let pages = pages.iter().map(|&(gpa, kind, fill)| Page { gpa, kind, data: vec![fill; 4096].into() });
        let image = Image {
            platform: Platform::Snp,
            pages: pages.collect(),
            parameters: Vec::new(),
            start: Start::Reset,
            guest_policy: None,
            id_block: None,
        };
        digests(&image, Backend::Kvm, 1, 0)[0]
    }

    #[test]
    fn content_place_kind_and_order_count() {
        use PageKind::{Measured, Shared, Unmeasured};
        let base = of(&[(0x1000, Measured, 1), (0x2000, Measured, 2)]);
        let variants = [
            of(&[(0x1000, Measured, 9), (0x2000, Measured, 2)]),
            of(&[(0x3000, Measured, 1), (0x2000, Measured, 2)]),
            of(&[(0x1000, Unmeasured, 1), (0x2000, Measured, 2)]),
            of(&[(0x2000, Measured, 2), (0x1000, Measured, 1)]),
            of(&[(0x1000, Measured, 1)]),
        ];
        assert!(variants.iter().all(|variant| *variant != base));
        assert_eq!(of(&[(0x1000, Measured, 1), (0x2000, Measured, 2), (0x3000, Shared, 3)]), base);
        assert_eq!(of(&[(0x1000, Unmeasured, 1)]), of(&[(0x1000, Unmeasured, 2)]));
    }
}
