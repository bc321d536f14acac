//! The launch, call by call.

use ::launch::snp;

use super::*;
use crate::hv::id_block::{self, IdBlock};
use crate::hv::seam::recorder::Entry;

fn recorder() -> Arc<Recorder<Hypervisor>> {
    Arc::new(Recorder::new(Hypervisor::default()))
}

/// An entry in one line: who, what, and the first bytes that tell calls of one kind apart.
fn line(entry: &Entry) -> String {
    let first = |bytes: &[u8]| u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let detail = match entry.name {
        "MSHV_ROOT_HVCALL" => {
            let input = &entry.nested[0].2;
            match u16::from_le_bytes(entry.argument[..2].try_into().unwrap()) {
                0x44 => format!("get {:#x}", first(&input[8..])),
                0x45 => format!("set {:#x} = {:#x}", first(&input[8..]), first(&input[16..])),
                0x51 => format!("register {:#x} = {:#x}", first(&input[16..]), first(&input[32..])),
                0xF4 => "cpuid".into(),
                other => format!("{other:#x}"),
            }
        }
        "MSHV_IMPORT_ISOLATED_PAGES" => {
            let pages: Vec<_> = entry.argument[16..].chunks(8).map(first).collect();
            format!("{} {pages:x?}", entry.argument[0])
        }
        "MSHV_SET_GUEST_MEMORY" => format!("{:#x} {}", first(&entry.argument[8..]), entry.argument[24]),
        "MSHV_CREATE_VP" => format!("{}", entry.argument[0]),
        _ => String::new(),
    };
    format!("{}: {} {detail}", entry.on, entry.name).trim_end().to_owned()
}

#[test]
fn the_launch_is_these_calls_in_this_order() {
    let kernel = recorder();
    let _vm = launch(&kernel, &image()).unwrap();
    let mut lines: Vec<_> = kernel.log().iter().map(line).collect();
    lines.dedup();
    let expected = "\
/dev/mshv: open
/dev/mshv: MSHV_ROOT_HVCALL get 0x6000a
/dev/mshv: MSHV_ROOT_HVCALL get 0x6000b
/dev/mshv: MSHV_CREATE_PARTITION
MSHV_CREATE_PARTITION: MSHV_ROOT_HVCALL set 0x10001 = 0x6400ffb
MSHV_CREATE_PARTITION: MSHV_INITIALIZE_PARTITION
MSHV_CREATE_PARTITION: MSHV_ROOT_HVCALL set 0x50014 = 0x30000
MSHV_CREATE_PARTITION: MSHV_ROOT_HVCALL set 0x50022 = 0x3000000fb
MSHV_CREATE_PARTITION: MSHV_ROOT_HVCALL set 0x50017 = 0x1
MSHV_CREATE_PARTITION: MSHV_ROOT_HVCALL set 0x30003 = 0x1
MSHV_CREATE_PARTITION: MSHV_CREATE_VP 0
MSHV_CREATE_VP: mmap
MSHV_CREATE_PARTITION: MSHV_CREATE_VP 1
MSHV_CREATE_VP: mmap
MSHV_CREATE_PARTITION: MSHV_ROOT_HVCALL cpuid
MSHV_CREATE_PARTITION: MSHV_ROOT_HVCALL set 0x5000c = 0x3
MSHV_CREATE_PARTITION: MSHV_SET_GUEST_MEMORY 0x100 3
MSHV_CREATE_PARTITION: MSHV_IMPORT_ISOLATED_PAGES 0 [100, 101, 102]
MSHV_CREATE_PARTITION: MSHV_IMPORT_ISOLATED_PAGES 0 [142]
MSHV_CREATE_PARTITION: MSHV_IMPORT_ISOLATED_PAGES 3 [144]
MSHV_CREATE_PARTITION: MSHV_IMPORT_ISOLATED_PAGES 5 [145]
MSHV_CREATE_PARTITION: MSHV_IMPORT_ISOLATED_PAGES 4 [146]
MSHV_CREATE_PARTITION: MSHV_IMPORT_ISOLATED_PAGES 1 [147]
MSHV_CREATE_PARTITION: MSHV_COMPLETE_ISOLATED_IMPORT
MSHV_CREATE_VP: MSHV_ROOT_HVCALL register 0x90040 = 0x147001
MSHV_CREATE_PARTITION: MSHV_ROOT_HVCALL set 0x30003 = 0x0";
    assert_eq!(lines, expected.lines().collect::<Vec<_>>());
}

fn entry(log: &[Entry], name: &str) -> Entry {
    log.iter().find(|entry| entry.name == name).unwrap().clone()
}

#[test]
fn structures_have_their_bytes_where_they_belong() {
    let kernel = recorder();
    let _vm = launch(&kernel, &image()).unwrap();
    let log = kernel.log();

    let create = entry(&log, "MSHV_CREATE_PARTITION");
    let mut expected = vec![0; 64];
    expected[0] = 0xF;
    expected[8] = 1;
    expected[16] = 2;
    // What the host has (here each property says its own number) stays, reserved bits do not.
    expected[24..32].copy_from_slice(&(!0x0006_000A_u64 | 1 << 63).to_le_bytes());
    expected[32..40].copy_from_slice(&(!0x0006_000B_u64 | 3 << 61).to_le_bytes());
    expected[56..64].copy_from_slice(&(!0x81F_u64).to_le_bytes());
    assert_eq!((create.number, create.argument), (0x4010_B800, expected));

    let finish = entry(&log, "MSHV_COMPLETE_ISOLATED_IMPORT");
    let mut expected = vec![0; 3334];
    expected[88..96].copy_from_slice(&POLICY.to_le_bytes());
    expected[3300..3332].copy_from_slice(&HOST_DATA.0);
    assert_eq!((finish.number, finish.argument), (0x4D06_B8F4, expected));

    let import = entry(&log, "MSHV_IMPORT_ISOLATED_PAGES");
    let pages = [3, 0x100, 0x101, 0x102].map(u64::to_le_bytes).concat();
    assert_eq!((import.number, import.argument), (0x4010_B80A, [vec![0; 8], pages].concat()));

    let memory = entry(&log, "MSHV_SET_GUEST_MEMORY");
    let words = [RAM_BYTES as u64, 0x100, 0, 3].map(u64::to_le_bytes).concat();
    assert_eq!((memory.number, memory.argument), (0x4020_B802, words));

    let map = entry(&log, "mmap");
    assert_eq!((map.value, map.argument), (4096, 0x2000_u64.to_le_bytes().to_vec()));
    let control = log.iter().rfind(|entry| entry.on == "MSHV_CREATE_VP").unwrap();
    let hypercall = [vec![0x51, 0, 1, 0, 48, 0, 0, 0], vec![0; 24]].concat();
    assert_eq!((control.number, &control.argument), (0xC020_B807, &hypercall));
    let register = [0, 0, 0x9_0040, 0, VMSA_GPA | 1, 0].map(u64::to_le_bytes).concat();
    assert_eq!(control.nested, [(None, 16, register)]);
}

#[test]
fn the_secure_processor_measures_what_was_predicted() {
    let (kernel, image) = (recorder(), image());
    let _vm = launch(&kernel, &image).unwrap();
    let predicted = snp::digests(&image, Backend::Mshv, 2, vmsa::RESET_RDX);
    assert_eq!(kernel.part().digest, Some(predicted[1]));
    assert_eq!(predicted[0], predicted[1], "the number of virtual processors is not measured here");
    let on_kvm = snp::digests(&image, Backend::Kvm, 1, vmsa::RESET_RDX);
    assert_ne!(predicted[0], on_kvm[0]);
}

#[test]
fn the_cpuid_page_is_filled_before_the_host_loses_it() {
    let kernel = recorder();
    let _vm = launch(&kernel, &image()).unwrap();
    let part = kernel.part();
    let page = abi::CpuidPage::ref_from_bytes(&part.pages[&0x145]).unwrap();
    assert_eq!(page.count.get(), 2);
    assert!(page.entries[..2].iter().all(|entry| entry.values[0] == entry.eax_in));
    assert_eq!(part.pages[&0x102], vec![3; 4096]);
}

#[test]
fn an_id_block_is_passed_on() {
    for author in [false, true] {
        let mut image = image();
        let directive = id_block::tests::directive(author);
        let expected = IdBlock::new(&directive, POLICY).unwrap();
        image.id_block = Some(Box::new(directive));
        let kernel = recorder();
        let _vm = launch(&kernel, &image).unwrap();
        let finish = entry(&kernel.log(), "MSHV_COMPLETE_ISOLATED_IMPORT").argument;
        assert_eq!(finish[..96], expected.block);
        assert_eq!(finish[96..3300], expected.auth[..3204]);
        assert!(expected.auth[3204..].iter().all(|byte| *byte == 0), "nothing is cut off");
        assert_eq!(finish[3300..], [&HOST_DATA.0[..], &[1, u8::from(author)]].concat());
    }
}

#[test]
fn each_failing_call_is_named_and_nothing_is_left_behind() {
    let complete = {
        let kernel = recorder();
        let _vm = launch(&kernel, &image()).unwrap();
        kernel.log()
    };
    for (index, failing) in complete.iter().enumerate() {
        let kernel = Arc::new(Recorder::failing(Hypervisor::default(), index, libc::ENXIO));
        let error = launch(&kernel, &image()).unwrap_err().to_string();
        let name = match failing.name {
            "open" => "cannot open /dev/mshv",
            "MSHV_ROOT_HVCALL" => "HVCALL_",
            name => name,
        };
        assert!(error.starts_with(name), "call {index} ({}): {error}", failing.name);
        assert!(error.contains("No such device or address"), "{error}");
        assert_eq!(kernel.log().len(), index + 1, "calls went on after call {index} failed");
        assert_eq!(kernel.open_descriptors(), 0, "after call {index}");
    }
}

#[test]
fn a_refusal_of_the_hypervisors_is_put_in_words() {
    let refused = |code, of, status| {
        let part = Hypervisor { refuse: Some((code, of, status)), ..Hypervisor::default() };
        launch(&Arc::new(Recorder::new(part)), &image()).unwrap_err().to_string()
    };
    assert_eq!(
        refused(abi::HVCALL_SET_PARTITION_PROPERTY, abi::ISOLATION_POLICY.code, 10),
        "HVCALL_SET_PARTITION_PROPERTY (isolation policy): \
         the hypervisor said property value out of range (0xa)"
    );
    assert_eq!(
        refused(abi::HVCALL_SET_VP_REGISTERS, abi::REGISTER_SEV_CONTROL, 0x50),
        "HVCALL_SET_VP_REGISTERS (SEV control): the hypervisor said invalid register value (0x50)"
    );
}

#[test]
fn what_cannot_be_launched_is_refused_before_anything_is_irrevocable() {
    type Spoil = fn(&mut Image, &mut Vec<Run>);
    let cases: [(&str, Spoil); 8] = [
        ("SEV-SNP save area", |image, _| image.start = Start::Reset),
        ("guest policy 0x30000", |image, _| image.guest_policy = Some(0x7_0000)),
        ("order of their addresses", |_, runs| runs.swap(0, 1)),
        ("order of their addresses", |_, runs| runs[0].gpa = 0x14_1000),
        ("whole pages", |_, runs| runs[0].bytes.truncate(100)),
        ("one save area", |_, runs| drop(runs.pop())),
        ("one save area", |_, runs| runs[0].page_type = PageType::Vmsa),
        ("a place in memory", |_, runs| runs.insert(0, Run { gpa: 0xF_F000, ..runs[1].clone() })),
    ];
    for (expected, spoil) in cases {
        let (kernel, mut image) = (recorder(), image());
        let mut runs = runs(&image);
        spoil(&mut image, &mut runs);
        let vm = MshvVm::create(Arc::clone(&kernel) as _, 1, POLICY).unwrap();
        vm.map_private(RAM_GPA, Arc::new(MmapRegion::new(RAM_BYTES).unwrap())).unwrap();
        let mut vcpus = vec![vm.create_vcpu(0).unwrap()];
        let launch = Launch { image: &image, runs: &runs, host_data: HOST_DATA, vcpus: 1 };
        let error = vm.launch(&launch, &mut vcpus).unwrap_err().to_string();
        assert!(error.contains(expected), "expected {expected:?}, found {error:?}");
        assert!(!kernel.part().secure && kernel.part().pages.is_empty());
        let again = vm.launch(&launch, &mut vcpus).unwrap_err().to_string();
        assert!(again.contains("one whose launch failed"), "{again}");
    }
}

#[test]
fn memory_is_taken_back_as_it_was_given() {
    let kernel = recorder();
    let vm = launch(&kernel, &image()).unwrap();
    vm.unmap(0).unwrap();
    vm.unmap(0).unwrap();
    let log = kernel.log();
    let regions: Vec<_> = log.iter().filter(|entry| entry.name == "MSHV_SET_GUEST_MEMORY").collect();
    let [given, taken] = &regions[..] else { panic!("expected two calls, found {}", regions.len()) };
    assert_eq!((given.argument[24], taken.argument[24]), (3, 4));
    assert_eq!((&given.argument[..24], &given.nested), (&taken.argument[..24], &taken.nested));
}

#[test]
fn memory_that_cannot_be_given_is_refused() {
    let kernel = recorder();
    let region = || Arc::new(MmapRegion::new(0x1000).unwrap());
    let vm = MshvVm::create(Arc::clone(&kernel) as _, 1, POLICY).unwrap();
    vm.map_private(RAM_GPA, region()).unwrap();
    assert!(vm.map_private(RAM_GPA, region()).unwrap_err().to_string().contains("overlap no others"));
    let shared = vm.map(WINDOW_GPA, region()).unwrap_err().to_string();
    assert!(shared.contains("layout `measured`"), "{shared}");
    let running = launch(&recorder(), &image()).unwrap();
    let late = running.map_private(0x40_0000, region()).unwrap_err().to_string();
    assert!(late.contains("never launched, found one that runs"), "{late}");
}

#[test]
fn interrupts_are_messages_to_a_processor() {
    let kernel = recorder();
    let vm = launch(&kernel, &image()).unwrap();
    vm.send_msi(0xFEE0_1004, 0xC130).unwrap();
    let input = kernel.log().last().unwrap().nested[0].2.clone();
    assert_eq!(input, [0, 1 | 1 << 32 | 1 << 33, 1, 0x30].map(u64::to_le_bytes).concat());
    assert!(vm.send_msi(0xFED0_1000, 0x30).is_err());
    assert!(vm.send_msi(0xFEE0_1000, 0x530).unwrap_err().to_string().contains("mode 5"));
}
