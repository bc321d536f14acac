//! Images as the builder makes them: their save area is one that KVM makes, and their digest is what the
//! processor computes.

use igvm_builder::Layout;
use launch::snp::digests;

use super::*;
use crate::hv::built;

#[test]
fn images_of_both_layouts_are_launched_as_predicted() {
    for layout in [Layout::Window, Layout::Measured] {
        let image = built::snp(layout);
        let kernel = recorder(Platform::Snp);
        let vm = make(&kernel, Platform::Snp, 2).unwrap();
        vm.map_private(0, Arc::new(MmapRegion::new(32 << 20).unwrap())).unwrap();
        let mut vcpus = vec![vm.create_vcpu(0).unwrap(), vm.create_vcpu(1).unwrap()];
        let runs = runs(&image);
        vm.launch(&Launch { image: &image, runs: &runs, host_data: HOST_DATA, vcpus: 2 }, &mut vcpus)
            .unwrap();
        let predicted = digests(&image, Backend::Kvm, 2, vmsa::RESET_RDX);
        assert_eq!(kernel.part().digest(), predicted[1].0);
        let log = kernel.log();
        let updates = log.iter().filter(|entry| entry.name == "KVM_SEV_SNP_LAUNCH_UPDATE");
        assert_eq!(updates.count(), runs.len(), "neighbours of one kind go in one call");
    }
}
