//! Recorded SEV-SNP launches.

use launch::snp::{PageType, digests};

use super::*;
use crate::hv::id_block;

fn refused(kernel: &Recording, image: &Image) -> String {
    launch(kernel, image, 1).err().expect("a refusal").to_string()
}

fn playing(adapt: impl FnOnce(&mut Played)) -> Recording {
    let mut played = Played::new(Platform::Snp);
    adapt(&mut played);
    Arc::new(Recorder::new(played))
}

#[test]
fn the_processor_measures_what_the_image_promises() {
    let image = image(Platform::Snp);
    let promised = digests(&image, Backend::Kvm, 4, vmsa::RESET_RDX);
    for vcpus in [1, 2, 4] {
        let kernel = recorder(Platform::Snp);
        let launched = launch(&kernel, &image, vcpus).unwrap();
        assert_eq!(launched.vcpus.len(), vcpus as usize);
        let played = kernel.part();
        assert_eq!(played.digest(), promised[vcpus as usize - 1].0, "{vcpus} virtual CPUs");
        assert_eq!((&played.host_data[..], played.policy), (&HOST_DATA.0[..], Some(POLICY)));
    }
}

#[test]
fn calls_come_in_the_order_that_the_processor_wants() {
    let kernel = recorder(Platform::Snp);
    launch(&kernel, &image(Platform::Snp), 2).unwrap();
    let update = "KVM_CREATE_VM(4) KVM_SEV_SNP_LAUNCH_UPDATE";
    let mut expected = vec![
        "/dev/kvm open",
        "/dev/kvm KVM_GET_SUPPORTED_CPUID",
        "/dev/kvm KVM_GET_VCPU_MMAP_SIZE",
        "/dev/kvm KVM_CREATE_VM",
        "KVM_CREATE_VM(4) KVM_ENABLE_CAP",
        "KVM_CREATE_VM(4) KVM_ENABLE_CAP",
        "/dev/sev open",
        "KVM_CREATE_VM(4) KVM_SEV_INIT2",
        "KVM_CREATE_VM(4) KVM_CREATE_GUEST_MEMFD",
        "KVM_CREATE_VM(4) KVM_SET_USER_MEMORY_REGION2",
        "KVM_CREATE_VM(4) KVM_SET_USER_MEMORY_REGION2",
        "KVM_CREATE_VM(4) KVM_CREATE_VCPU",
        "KVM_CREATE_VCPU(0) KVM_SET_CPUID2",
        "KVM_CREATE_VCPU(0) KVM_SET_MSRS",
        "KVM_CREATE_VCPU(0) mmap",
        "KVM_CREATE_VM(4) KVM_CREATE_VCPU",
        "KVM_CREATE_VCPU(1) KVM_SET_CPUID2",
        "KVM_CREATE_VCPU(1) KVM_SET_MSRS",
        "KVM_CREATE_VCPU(1) mmap",
        "KVM_CREATE_VM(4) KVM_SEV_SNP_LAUNCH_START",
        "KVM_CREATE_VM(4) KVM_SET_MEMORY_ATTRIBUTES",
    ];
    expected.extend([update; 5]);
    expected.extend([
        "KVM_CREATE_VCPU(0) KVM_GET_SREGS",
        "KVM_CREATE_VCPU(0) KVM_SET_SREGS",
        "KVM_CREATE_VCPU(0) KVM_SET_REGS",
        "KVM_CREATE_VCPU(1) KVM_GET_SREGS",
        "KVM_CREATE_VCPU(1) KVM_SET_SREGS",
        "KVM_CREATE_VCPU(1) KVM_SET_REGS",
        "KVM_CREATE_VM(4) KVM_SEV_SNP_LAUNCH_FINISH",
    ]);
    assert_eq!(outline(&kernel.log()), expected);
}

/// Numbers of ioctls as the kernel's headers have them, not as this program computes them.
#[test]
fn ioctls_have_the_kernels_numbers() {
    let kernel = recorder(Platform::Snp);
    let launched = launch(&kernel, &image(Platform::Snp), 1).unwrap();
    launched.vm.send_msi(0xFEE0_0000, 0x21).unwrap();
    launched.vm.signal_on_write(0xD000_0050, 1, &vmm_sys_util::eventfd::EventFd::new(0).unwrap()).unwrap();
    let numbers = [
        ("KVM_CREATE_VM", 0xAE01),
        ("KVM_CHECK_EXTENSION", 0xAE03),
        ("KVM_GET_VCPU_MMAP_SIZE", 0xAE04),
        ("KVM_GET_SUPPORTED_CPUID", 0xC008_AE05),
        ("KVM_CREATE_VCPU", 0xAE41),
        ("KVM_SET_USER_MEMORY_REGION2", 0x40A0_AE49),
        ("KVM_IOEVENTFD", 0x4040_AE79),
        ("KVM_SET_REGS", 0x4090_AE82),
        ("KVM_GET_SREGS", 0x8138_AE83),
        ("KVM_SET_SREGS", 0x4138_AE84),
        ("KVM_SET_MSRS", 0x4008_AE89),
        ("KVM_SET_CPUID2", 0x4008_AE90),
        ("KVM_ENABLE_CAP", 0x4068_AEA3),
        ("KVM_SIGNAL_MSI", 0x4020_AEA5),
        ("KVM_SET_MEMORY_ATTRIBUTES", 0x4020_AED2),
        ("KVM_CREATE_GUEST_MEMFD", 0xC040_AED4),
        ("KVM_SEV_INIT2", 0xC008_AEBA),
        ("KVM_SEV_SNP_LAUNCH_START", 0xC008_AEBA),
        ("KVM_SEV_SNP_LAUNCH_UPDATE", 0xC008_AEBA),
        ("KVM_SEV_SNP_LAUNCH_FINISH", 0xC008_AEBA),
    ];
    for entry in kernel.log().iter().filter(|entry| entry.number != 0) {
        let known = numbers.iter().find(|(name, _)| *name == entry.name);
        assert_eq!(known, Some(&(entry.name, entry.number)));
    }
    let asked = |name| kernel.log().iter().any(|entry| entry.name == name);
    assert!(numbers.iter().all(|(name, _)| asked(*name)));
}

#[test]
fn commands_have_their_bytes_where_the_kernel_reads_them() {
    let kernel = recorder(Platform::Snp);
    launch(&kernel, &image(Platform::Snp), 1).unwrap();
    let log = kernel.log();
    let init = &only(&log, "KVM_SEV_INIT2").nested[0].2;
    let mut expected = [0; 48];
    expected[12] = 2;
    assert_eq!(init[..], expected);

    let start = &only(&log, "KVM_SEV_SNP_LAUNCH_START").nested[0].2;
    let mut expected = [0; 64];
    expected[..8].copy_from_slice(&POLICY.to_le_bytes());
    assert_eq!(start[..], expected);

    let finish = only(&log, "KVM_SEV_SNP_LAUNCH_FINISH");
    let mut expected = [0; 88];
    expected[19..51].copy_from_slice(&HOST_DATA.0);
    assert_eq!(finish.nested, [(None, 8, expected.to_vec())]);
    assert_eq!((u32_at(&finish.argument, 0), u64_at(&finish.argument, 4)), (102, 0));
}

#[test]
fn neighbours_of_a_kind_travel_in_one_call() {
    let kernel = recorder(Platform::Snp);
    launch(&kernel, &image(Platform::Snp), 1).unwrap();
    let updates = kernel.log().into_iter().filter(|entry| entry.name == "KVM_SEV_SNP_LAUNCH_UPDATE");
    let told = updates.map(|entry| {
        let update = &entry.nested[0].2;
        assert_eq!(entry.nested[1].2.len() as u64, u64_at(update, 16));
        assert!(update[25..].iter().all(|byte| *byte == 0), "flags and padding");
        (u64_at(update, 0), u64_at(update, 16), update[24])
    });
    let told: Vec<_> = told.collect();
    let expected =
        [(0x100, 0x3000, 1), (0x144, 0x1000, 4), (0x145, 0x1000, 6), (0x146, 0x1000, 5), (0x148, 0x1000, 1)];
    assert_eq!(told, expected);
}

#[test]
fn ram_is_private_and_the_window_is_not() {
    let kernel = recorder(Platform::Snp);
    launch(&kernel, &image(Platform::Snp), 1).unwrap();
    let log = kernel.log();
    let create = only(&log, "KVM_CREATE_GUEST_MEMFD");
    assert_eq!((u64_at(&create.argument, 0), u64_at(&create.argument, 8)), (RAM_BYTES as u64, 0));
    let regions: Vec<_> = log.iter().filter(|entry| entry.name == "KVM_SET_USER_MEMORY_REGION2").collect();
    let told = |entry: &Entry| {
        let of = &entry.argument;
        assert_eq!((u64_at(of, 24), entry.nested[0].1), (0, 24), "the seam fills in the pointer");
        (u32_at(of, 0), u32_at(of, 4), u64_at(of, 8), u64_at(of, 16), u64_at(of, 32))
    };
    assert_eq!(told(regions[0]), (0, 4, 0, RAM_BYTES as u64, 0));
    assert_ne!(u32_at(&regions[0].argument, 40), 0, "the private memory's descriptor");
    assert_eq!(told(regions[1]), (1, 0, 0xC000_0000, 0x1000, 0));
    assert_eq!(u32_at(&regions[1].argument, 40), 0);
    let attributes = &only(&log, "KVM_SET_MEMORY_ATTRIBUTES").argument;
    let told: Vec<_> = [0, 8, 16, 24].map(|offset| u64_at(attributes, offset)).into();
    assert_eq!(told, [0, RAM_BYTES as u64, 8, 0]);
}

#[test]
fn capabilities_are_turned_on_with_their_arguments() {
    let kernel = recorder(Platform::Snp);
    launch(&kernel, &image(Platform::Snp), 1).unwrap();
    let enabled = kernel.log().into_iter().filter(|entry| entry.name == "KVM_ENABLE_CAP");
    let enabled: Vec<_> =
        enabled.map(|entry| (u32_at(&entry.argument, 0), u64_at(&entry.argument, 8))).collect();
    assert_eq!(enabled, [(121, 24), (201, 1 << 12)]);
}

#[test]
fn a_missing_capability_is_named() {
    for (number, name) in [
        (36, "KVM_CAP_IOEVENTFD"),
        (121, "KVM_CAP_SPLIT_IRQCHIP"),
        (201, "KVM_CAP_EXIT_HYPERCALL"),
        (233, "KVM_CAP_MEMORY_ATTRIBUTES"),
        (234, "KVM_CAP_GUEST_MEMFD"),
        (235, "KVM_CAP_VM_TYPES"),
    ] {
        let kernel = playing(|played| played.missing = Some(number));
        assert!(refused(&kernel, &image(Platform::Snp)).contains(name), "{name}");
        assert_eq!(kernel.open_descriptors(), 0);
    }
}

#[test]
fn every_failure_is_named_and_leaves_nothing_behind() {
    fails_cleanly_everywhere(Platform::Snp);
}

#[test]
fn the_firmwares_refusals_are_told_in_words() {
    let kernel = playing(|played| played.refusal = Some(("KVM_SEV_SNP_LAUNCH_START", 7)));
    let message = refused(&kernel, &image(Platform::Snp));
    let expected = "KVM_SEV_SNP_LAUNCH_START: Input/output error (os error 5) (secure processor: the guest's \
                    policy does not allow this (status 0x7))";
    assert_eq!(message, expected);
    let kernel = playing(|played| played.refusal = Some(("KVM_SEV_SNP_LAUNCH_FINISH", 0xB)));
    assert!(refused(&kernel, &image(Platform::Snp)).contains("not the one that the ID block names"));
}

#[test]
fn imports_go_on_until_all_is_imported() {
    let image = image(Platform::Snp);
    let kernel = playing(|played| {
        played.pages_per_call = 1;
        played.interruptions = 3;
    });
    launch(&kernel, &image, 1).unwrap();
    let updates = kernel.log().iter().filter(|entry| entry.name == "KVM_SEV_SNP_LAUNCH_UPDATE").count();
    assert_eq!(updates, 3 + 7);
    assert_eq!(kernel.part().digest(), digests(&image, Backend::Kvm, 1, 0)[0].0);
}

#[test]
fn an_import_that_does_nothing_is_an_error() {
    let kernel = playing(|played| played.pages_per_call = 0);
    assert!(refused(&kernel, &image(Platform::Snp)).contains("no page was imported"));
    let kernel = playing(|played| played.interruptions = u32::MAX);
    assert!(refused(&kernel, &image(Platform::Snp)).contains("KVM_SEV_SNP_LAUNCH_UPDATE"));
}

#[test]
fn the_firmwares_cpuid_page_is_taken_once() {
    let correct: fn(&mut [u8]) = |page| page[16 + 48 + 24] ^= 1;
    let image = image(Platform::Snp);
    let kernel = playing(|played| played.corrections = [correct].into());
    launch(&kernel, &image, 1).unwrap();
    assert_eq!(kernel.part().digest(), digests(&image, Backend::Kvm, 1, 0)[0].0);
    let pages = kernel.log().into_iter().filter(|entry| entry.name == "KVM_SEV_SNP_LAUNCH_UPDATE");
    let pages: Vec<_> =
        pages.filter(|entry| entry.nested[0].2[24] == 6).map(|entry| entry.nested[1].2.clone()).collect();
    let [sent, corrected] = &pages[..] else { panic!("{} pages", pages.len()) };
    let differs: Vec<_> = (0..4096).filter(|at| sent[*at] != corrected[*at]).collect();
    assert_eq!(differs, [16 + 48 + 24]);

    let kernel = playing(|played| played.corrections = [correct, correct].into());
    assert!(refused(&kernel, &image).contains("a parameter is invalid (status 0x16)"));
    let kernel = playing(|played| played.corrections = [(|page| page[16] ^= 2) as fn(&mut [u8])].into());
    assert!(refused(&kernel, &image).contains("CPUID page that the firmware proposes: expected function"));
}

#[test]
fn the_guest_is_told_of_the_processor_but_not_of_paravirtual_memory() {
    let kernel = recorder(Platform::Snp);
    launch(&kernel, &image(Platform::Snp), 1).unwrap();
    let log = kernel.log();
    let update =
        log.iter().find(|entry| entry.nested.first().is_some_and(|of| of.2.len() == 64 && of.2[24] == 6));
    let page = &update.unwrap().nested[1].2;
    let functions: Vec<_> =
        (0..u32_at(page, 0) as usize).map(|at| page[16 + 48 * at..][..48].to_vec()).collect();
    let leaf = |wanted: u32| functions.iter().find(|of| u32_at(of, 0) == wanted).unwrap();
    assert_eq!(functions.len(), 8, "the function of zeros is left out");
    assert_eq!(u32_at(leaf(0x4000_0001), 24), 1 << 1 | 1 << 3 | 1 << 24);
    assert_eq!(u32_at(leaf(0x8000_001F), 28) & 0x3F, 51);
    let page: &[u8; 4096] = page[..].try_into().unwrap();
    boot_stub::snp::cpuid::check(page).expect("the boot stub takes the page");
}

#[test]
fn too_many_processor_features_are_refused_and_not_cut() {
    let kernel = playing(|played| played.more_functions = 57);
    assert!(refused(&kernel, &image(Platform::Snp)).contains("expected at most 64 functions, found 65"));
    let kernel = playing(|played| played.more_functions = 56);
    launch(&kernel, &image(Platform::Snp), 1).unwrap();
}

#[test]
fn another_encryption_bit_than_the_images_is_refused() {
    let kernel = playing(|played| played.c_bit = 47);
    assert!(refused(&kernel, &image(Platform::Snp)).contains("encryption bit: expected bit 51, found 47"));
}

#[test]
fn an_id_block_is_handed_over_with_the_policy() {
    let mut image = image(Platform::Snp);
    image.id_block = Some(Box::new(id_block::tests::directive(true)));
    let kernel = recorder(Platform::Snp);
    launch(&kernel, &image, 1).unwrap();
    let log = kernel.log();
    let finish = only(&log, "KVM_SEV_SNP_LAUNCH_FINISH");
    let [(None, 8, structure), (Some(0), 0, block), (Some(0), 8, auth)] = &finish.nested[..] else {
        panic!("{:?}", finish.nested.len())
    };
    assert_eq!((structure.len(), block.len(), auth.len()), (88, 96, 4096));
    assert_eq!((structure[16], structure[17], structure[18]), (1, 1, 0));
    assert_eq!((u64_at(block, 88), auth[0x40]), (POLICY, 0x41));
}

#[test]
fn images_that_cannot_be_launched_are_refused() {
    type Break = fn(&mut Image);
    let cases: [(Break, &str); 3] = [
        (|image| image.guest_policy = None, "expected an SEV-SNP guest policy, found none"),
        (|image| image.start = Start::Reset, "expected an SEV-SNP save area, found none"),
        (
            |image| {
                let Start::Snp { vmsa, .. } = &mut image.start else { return };
                vmsa.vmpl = 1;
            },
            "save area: the image asks for something at offset 0xca that KVM cannot set",
        ),
    ];
    for (break_it, message) in cases {
        let mut image = image(Platform::Snp);
        break_it(&mut image);
        let found = refused(&recorder(Platform::Snp), &image);
        assert!(found.contains(message), "{found}");
    }
}

#[test]
fn runs_that_cannot_be_imported_are_refused() {
    let run = |gpa, page_type, bytes| Run { gpa, page_type, bytes: vec![0; bytes] };
    let cases = [
        (run(0x1000, PageType::Normal, 100), "expected whole aligned pages, found 100 bytes"),
        (run(0x1000, PageType::Normal, 0), "expected whole aligned pages, found 0 bytes"),
        (run(0x1234, PageType::Normal, 4096), "expected whole aligned pages"),
        (run(0xC000_0000, PageType::Normal, 4096), "expected a range inside RAM, found 0xc0000000"),
        (run(RAM_BYTES as u64 - 4096, PageType::Normal, 8192), "expected a range inside RAM"),
        (run(u64::MAX - 4095, PageType::Normal, 4096), "expected a range inside RAM"),
        (run(0x1000, PageType::Cpuid, 8192), "CPUID page: expected 4096 bytes, found 8192"),
        (run(0x1000, PageType::Vmsa, 4096), "KVM makes save areas itself"),
    ];
    for (run, message) in cases {
        let kernel = recorder(Platform::Snp);
        let mut launched = populate(make(&kernel, Platform::Snp, 1).unwrap(), Platform::Snp, 1).unwrap();
        let image = image(Platform::Snp);
        let launch = Launch { image: &image, runs: &[run], host_data: HOST_DATA, vcpus: 1 };
        let found = launched.vm.launch(&launch, &mut launched.vcpus).unwrap_err().to_string();
        assert!(found.contains(message), "{found}");
        assert!(!kernel.part().finished);
    }
}

#[test]
fn there_is_one_launch_of_all_virtual_cpus() {
    let image = image(Platform::Snp);
    let runs = runs(&image);
    let kernel = recorder(Platform::Snp);
    let mut launched = populate(make(&kernel, Platform::Snp, 2).unwrap(), Platform::Snp, 2).unwrap();
    let mut try_launch = |vcpus, given: usize| {
        let launch = Launch { image: &image, runs: &runs, host_data: HOST_DATA, vcpus };
        launched.vm.launch(&launch, &mut launched.vcpus[..given]).map_err(|error| error.to_string())
    };
    assert!(try_launch(3, 2).unwrap_err().contains("virtual CPUs: expected 3, found 2 made"));
    assert!(try_launch(2, 1).unwrap_err().contains("virtual CPUs: expected 2"));
    assert_eq!(try_launch(2, 2), Ok(()));
    assert!(try_launch(2, 2).unwrap_err().contains("expected one launch, found a second"));
}
