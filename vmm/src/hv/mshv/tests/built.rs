//! An image as the builder makes it, from a made-up kernel and stub.

use ::launch::plan::Tee;
use ::launch::snp;
use boot_abi::{KERNEL_GPA, STUB_GPA};
use igvm_builder::{Layout, Recipe, build};

use super::*;

/// A bzImage, as far as the builder reads one.
fn kernel() -> Vec<u8> {
    let mut file = vec![0x90; 40_000];
    file[0x1F1] = 3;
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x236] = 1;
    file[0x258..0x260].copy_from_slice(&KERNEL_GPA.to_le_bytes());
    file
}

/// An ELF file of one segment, at the stub's address.
fn stub() -> Vec<u8> {
    let mut file = vec![0; 0x1000];
    file[..6].copy_from_slice(b"\x7fELF\x02\x01");
    let words =
        [(24, STUB_GPA), (32, 64), (56, 1), (64, 1), (72, 0x1000), (80, STUB_GPA), (96, 5000), (104, 5000)];
    for (offset, value) in words {
        file[offset..offset + 8].copy_from_slice(&u64::to_le_bytes(value));
    }
    file.extend([0xF4; 5000]);
    file
}

fn built(layout: Layout) -> Image {
    let recipe = Recipe { command_line: "quiet".into(), tees: vec![Tee::Snp], layout, ..Recipe::default() };
    let file = build(&kernel(), &stub(), &recipe).unwrap().file;
    Image::decode(&file, Platform::Snp).unwrap()
}

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
