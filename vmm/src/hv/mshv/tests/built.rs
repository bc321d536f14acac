//! Images as the builder makes them.

use ::launch::snp;
use igvm_builder::Layout;

use super::*;
use crate::hv::built::snp as built;

#[test]
fn an_image_of_the_measured_layout_is_launched_as_predicted() {
    let image = built(Layout::Measured);
    let kernel = Arc::new(Recorder::new(Hypervisor::default()));
    let vm = MshvVm::create(Arc::clone(&kernel) as _, 1, POLICY).unwrap();
    vm.map_private(0, Arc::new(MmapRegion::new(32 << 20).unwrap())).unwrap();
    let mut vcpus = vec![vm.create_vcpu(0).unwrap()];
    let runs = runs(&image);
    vm.launch(&Launch { image: &image, runs: &runs, host_data: HOST_DATA, vcpus: 1 }, &mut vcpus).unwrap();
    let predicted = snp::digests(&image, Backend::Mshv, 1, vmsa::RESET_RDX);
    assert_eq!(kernel.part().digest, Some(predicted[0]));
    let log = kernel.log();
    let imports = log.iter().filter(|entry| entry.name == "MSHV_IMPORT_ISOLATED_PAGES");
    assert_eq!(imports.count(), runs.len(), "neighbours of one kind go in one call");
    let cpuid = &kernel.part().pages[&(boot_abi::CPUID_GPA / 4096)];
    assert!(abi::CpuidPage::ref_from_bytes(cpuid).unwrap().count.get() > 20);
}

#[test]
fn an_image_with_shared_pages_is_refused() {
    let image = built(Layout::Window);
    let shared = image.pages.iter().find(|page| page.kind == PageKind::Shared).unwrap();
    let vm = MshvVm::create(Arc::new(Recorder::new(Hypervisor::default())), 1, POLICY).unwrap();
    let error = vm.map(shared.gpa, Arc::new(MmapRegion::new(0xA000).unwrap())).unwrap_err().to_string();
    assert_eq!(
        error,
        "image on MSHV: expected one without shared pages (layout `measured`), \
         found 0xa000 bytes of shared pages at 0xc0000000"
    );
}
