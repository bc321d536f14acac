//! Recorded TDX launches.

use launch::snp::PageType;
use launch::tdx::mrtd;

use super::*;

fn playing(adapt: impl FnOnce(&mut Played)) -> Recording {
    let mut played = Played::new(Platform::Tdx);
    adapt(&mut played);
    Arc::new(Recorder::new(played))
}

#[test]
fn the_module_measures_what_the_image_promises() {
    let image = image(Platform::Tdx);
    for vcpus in [1, 3] {
        let kernel = recorder(Platform::Tdx);
        launch(&kernel, &image, vcpus).unwrap();
        assert_eq!(kernel.part().digest(), mrtd(&image).0);
        let mut expected = HOST_DATA.0.to_vec();
        expected.resize(48, 0);
        assert_eq!(kernel.part().host_data, expected, "MRCONFIGID");
    }
}

#[test]
fn calls_come_in_the_order_that_the_module_wants() {
    let kernel = recorder(Platform::Tdx);
    launch(&kernel, &image(Platform::Tdx), 1).unwrap();
    let expected = [
        "/dev/kvm open",
        "/dev/kvm KVM_GET_SUPPORTED_CPUID",
        "/dev/kvm KVM_GET_VCPU_MMAP_SIZE",
        "/dev/kvm KVM_CREATE_VM",
        "KVM_CREATE_VM(5) KVM_ENABLE_CAP",
        "KVM_CREATE_VM(5) KVM_ENABLE_CAP",
        "KVM_CREATE_VM(5) KVM_ENABLE_CAP",
        "KVM_CREATE_VM(5) KVM_TDX_CAPABILITIES",
        "KVM_CREATE_VM(5) KVM_TDX_INIT_VM",
        "KVM_CREATE_VM(5) KVM_CREATE_GUEST_MEMFD",
        "KVM_CREATE_VM(5) KVM_SET_USER_MEMORY_REGION2",
        "KVM_CREATE_VM(5) KVM_CREATE_GUEST_MEMFD",
        "KVM_CREATE_VM(5) KVM_SET_USER_MEMORY_REGION2",
        "KVM_CREATE_VM(5) KVM_SET_USER_MEMORY_REGION2",
        "KVM_CREATE_VM(5) KVM_CREATE_VCPU",
        "KVM_CREATE_VCPU(0) KVM_SET_CPUID2",
        "KVM_CREATE_VCPU(0) KVM_TDX_INIT_VCPU",
        "KVM_CREATE_VCPU(0) mmap",
        "KVM_CREATE_VM(5) KVM_SET_MEMORY_ATTRIBUTES",
        "KVM_CREATE_VM(5) KVM_SET_MEMORY_ATTRIBUTES",
        "KVM_CREATE_VCPU(0) KVM_TDX_INIT_MEM_REGION",
        "KVM_CREATE_VCPU(0) KVM_TDX_INIT_MEM_REGION",
        "KVM_CREATE_VCPU(0) KVM_TDX_INIT_MEM_REGION",
        "KVM_CREATE_VCPU(0) KVM_TDX_INIT_MEM_REGION",
        "KVM_CREATE_VM(5) KVM_TDX_FINALIZE_VM",
    ];
    assert_eq!(outline(&kernel.log()), expected);
}

#[test]
fn the_domain_is_made_without_debug_and_bound_to_the_host_data() {
    let kernel = recorder(Platform::Tdx);
    launch(&kernel, &image(Platform::Tdx), 2).unwrap();
    let log = kernel.log();
    let init = only(&log, "KVM_TDX_INIT_VM");
    assert_eq!((init.number, u32_at(&init.argument, 0), u32_at(&init.argument, 4)), (0xC008_AEBA, 1, 0));
    let init = &init.nested[0].2;
    assert_eq!((u64_at(init, 0), u64_at(init, 8)), (1 << 28, 0xE7), "attributes, features");
    assert_eq!((&init[16..48], &init[48..256]), (&HOST_DATA.0[..], &[0; 208][..]));
    // Only what is configurable, and of that only the configurable bits: functions 1 and 0x80000008.
    assert_eq!((u32_at(init, 256), u32_at(init, 260), init.len()), (2, 0, 256 + 8 + 2 * 40));
    assert_eq!((u32_at(init, 264), u32_at(init, 264 + 12), u32_at(init, 264 + 20)), (1, 0x11, 0));
    assert_eq!((u32_at(init, 304), u32_at(init, 304 + 12)), (0x8000_0008, 48 << 16));
    let enabled = log.iter().filter(|entry| entry.name == "KVM_ENABLE_CAP");
    let enabled: Vec<_> =
        enabled.map(|entry| (u32_at(&entry.argument, 0), u64_at(&entry.argument, 8))).collect();
    assert_eq!(enabled, [(121, 24), (201, 1 << 12), (66, 2)]);
}

#[test]
fn shared_addresses_are_legal_for_the_virtual_cpus() {
    let kernel = recorder(Platform::Tdx);
    launch(&kernel, &image(Platform::Tdx), 1).unwrap();
    let log = kernel.log();
    let table = &only(&log, "KVM_SET_CPUID2").argument;
    let entries = table[8..].chunks(40);
    let sizes =
        entries.map(|entry| (u32_at(entry, 0), u32_at(entry, 12))).find(|(leaf, _)| *leaf == 0x8000_0008);
    assert_eq!(sizes, Some((0x8000_0008, 48 << 16 | 0x30 << 8 | 48)));
}

#[test]
fn neighbours_of_a_kind_travel_in_one_call() {
    let kernel = recorder(Platform::Tdx);
    launch(&kernel, &image(Platform::Tdx), 1).unwrap();
    let imports = kernel.log().into_iter().filter(|entry| entry.name == "KVM_TDX_INIT_MEM_REGION");
    let told: Vec<_> = imports
        .map(|entry| {
            (u32_at(&entry.argument, 4), u64_at(&entry.nested[0].2, 8), u64_at(&entry.nested[0].2, 16))
        })
        .collect();
    assert_eq!(told, [(1, 0x10_0000, 3), (0, 0x14_4000, 1), (1, 0x14_9000, 1), (1, RESET_PAGE, 1)]);
}

#[test]
fn an_interrupted_import_goes_on_where_it_was() {
    let image = image(Platform::Tdx);
    let kernel = playing(|played| played.pages_per_call = 1);
    launch(&kernel, &image, 1).unwrap();
    assert_eq!(kernel.part().digest(), mrtd(&image).0);
    let kernel = playing(|played| played.pages_per_call = 0);
    let message = launch(&kernel, &image, 1).err().unwrap().to_string();
    assert!(message.contains("KVM_TDX_INIT_MEM_REGION: Interrupted system call"), "{message}");
}

#[test]
fn every_failure_is_named_and_leaves_nothing_behind() {
    fails_cleanly_everywhere(Platform::Tdx);
}

#[test]
fn the_modules_refusals_are_told() {
    let kernel = playing(|played| played.refusal = Some(("KVM_TDX_FINALIZE_VM", 0xC000_0000_0000_0001)));
    let message = launch(&kernel, &image(Platform::Tdx), 1).err().unwrap().to_string();
    assert!(message.contains("KVM_TDX_FINALIZE_VM: "), "{message}");
    assert!(message.contains("TDX module: status 0xc000000000000001"), "{message}");
}

#[test]
fn host_data_other_than_the_domains_is_refused() {
    let kernel = recorder(Platform::Tdx);
    let mut launched = populate(make(&kernel, Platform::Tdx, 1).unwrap(), Platform::Tdx, 1).unwrap();
    let image = image(Platform::Tdx);
    let launch = Launch { image: &image, runs: &[], host_data: HostData([1; 32]), vcpus: 1 };
    let message = launched.vm.launch(&launch, &mut launched.vcpus).unwrap_err().to_string();
    assert!(message.contains("MRCONFIGID: expected a5a5"), "{message}");
    assert!(!kernel.part().finished);
}

#[test]
fn pages_that_only_sev_snp_has_are_refused() {
    let image = image(Platform::Tdx);
    for page_type in [PageType::Secrets, PageType::Cpuid, PageType::Vmsa, PageType::Zero] {
        let kernel = recorder(Platform::Tdx);
        let mut launched = populate(make(&kernel, Platform::Tdx, 1).unwrap(), Platform::Tdx, 1).unwrap();
        let runs = [Run { gpa: 0x1000, page_type, bytes: vec![0; 4096] }];
        let launch = Launch { image: &image, runs: &runs, host_data: HOST_DATA, vcpus: 1 };
        let message = launched.vm.launch(&launch, &mut launched.vcpus).unwrap_err().to_string();
        assert!(message.contains("TDX has no such pages"), "{message}");
    }
}
