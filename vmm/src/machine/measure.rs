//! The digest of a launch, from what has been loaded.
//!
//! For a guest in hardware it is a prediction: only the processor's own, in the guest's report, counts. For a
//! simulated one it is the measurement, and so is made of the bytes that lie in the guest's memory.

use launch::digest::LaunchDigest;
use launch::image::{Image, Start};
use launch::plan::Tee;
use launch::snp::{Backend, Chain, PageType, steps, vmsa};
use launch::tdx;
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::hv::Run;

/// What a launch is about to be measured as.
#[derive(Debug, Clone, Copy)]
pub struct Loaded<'a> {
    /// The image.
    pub image: &'a Image,
    /// Its private pages as they are imported; unused where it lies in RAM.
    pub runs: &'a [Run],
    /// The guest's RAM.
    pub ram: &'a GuestMemoryMmap,
    /// Who imports.
    pub backend: Backend,
    /// Number of virtual CPUs.
    pub vcpus: u32,
}

/// The launch digest under `tee`; none where nothing measures.
///
/// # Errors
/// When RAM cannot be read back.
pub fn digest(tee: Tee, loaded: &Loaded<'_>) -> Result<Option<LaunchDigest>, GuestMemoryError> {
    Ok(match tee {
        Tee::None => None,
        Tee::Sim => Some(with_save_areas(in_ram(loaded)?, loaded)),
        Tee::Snp => Some(with_save_areas(in_runs(loaded), loaded)),
        Tee::Tdx => Some(tdx::mrtd(loaded.image)),
    })
}

fn in_ram(loaded: &Loaded<'_>) -> Result<Chain, GuestMemoryError> {
    let mut chain = Chain::default();
    let mut page = [0; 4096];
    for step in steps(loaded.image, loaded.backend, &[]) {
        loaded.ram.read_slice(&mut page, GuestAddress(step.gpa))?;
        chain.extend(step.page_type, step.gpa, &page);
    }
    Ok(chain)
}

fn in_runs(loaded: &Loaded<'_>) -> Chain {
    let mut chain = Chain::default();
    for run in loaded.runs {
        for (gpa, page) in (run.gpa..).step_by(4096).zip(run.bytes.chunks(4096)) {
            chain.extend(run.page_type, gpa, page);
        }
    }
    chain
}

/// Adds the save areas that the hypervisor makes at the end of a launch, where it does.
fn with_save_areas(mut chain: Chain, loaded: &Loaded<'_>) -> LaunchDigest {
    if let (Backend::Kvm, Start::Snp { vmsa, .. }) = (loaded.backend, &loaded.image.start) {
        chain.extend(PageType::Vmsa, vmsa::KVM_GPA, &vmsa::page(vmsa));
        let reset = vmsa::page(&vmsa::reset(vmsa::RESET_RDX));
        (1..loaded.vcpus).for_each(|_| chain.extend(PageType::Vmsa, vmsa::KVM_GPA, &reset));
    }
    chain.digest()
}

#[cfg(test)]
mod tests {
    use launch::image::{Page, PageKind, Platform};
    use launch::snp::digests;

    use super::*;
    use crate::machine::memory;

    fn image() -> Image {
        let page = |gpa, kind, fill| Page { gpa, kind, data: vec![fill; 4096].into() };
        let pages = vec![
            page(0x3000, PageKind::Measured, 3),
            page(0x2000, PageKind::Measured, 2),
            page(0x5000, PageKind::Cpuid, 0),
            page(0x4000, PageKind::Unmeasured, 4),
        ];
        let start = Start::Snp { gpa: 0x7000, vmsa: Box::new(vmsa::base()) };
        Image {
            platform: Platform::Snp,
            pages,
            parameters: Vec::new(),
            start,
            guest_policy: None,
            id_block: None,
        }
    }

    #[test]
    fn a_simulated_launch_measures_what_lies_in_memory() {
        let (image, ram) = (image(), memory::ram(64).unwrap());
        for page in &image.pages {
            ram.write_slice(&page.data, GuestAddress(page.gpa)).unwrap();
        }
        let expected = digests(&image, Backend::Kvm, 3, vmsa::RESET_RDX);
        for (vcpus, expected) in (1..).zip(expected) {
            let loaded = Loaded { image: &image, runs: &[], ram: &ram, backend: Backend::Kvm, vcpus };
            assert_eq!(digest(Tee::Sim, &loaded).unwrap(), Some(expected));
            ram.write_obj(9u8, GuestAddress(0x2FFF)).unwrap();
            assert_ne!(digest(Tee::Sim, &loaded).unwrap(), Some(expected));
            ram.write_obj(2u8, GuestAddress(0x2FFF)).unwrap();
        }
    }

    #[test]
    fn runs_measure_like_pages() {
        let (image, ram) = (image(), memory::ram(64).unwrap());
        let run = |gpa, page_type, fill| Run { gpa, page_type, bytes: vec![fill; 4096] };
        let runs = [
            run(0x3000, PageType::Normal, 3),
            run(0x2000, PageType::Normal, 2),
            run(0x5000, PageType::Cpuid, 7),
            run(0x4000, PageType::Unmeasured, 7),
        ];
        let loaded = Loaded { image: &image, runs: &runs, ram: &ram, backend: Backend::Kvm, vcpus: 2 };
        let expected = digests(&image, Backend::Kvm, 2, vmsa::RESET_RDX)[1];
        assert_eq!(digest(Tee::Snp, &loaded).unwrap(), Some(expected));
        assert_eq!(digest(Tee::None, &loaded).unwrap(), None);
    }
}
