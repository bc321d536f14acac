//! What guests ask for, and what they get: every request is hostile until it is shown to be harmless.

use ::launch::image::Start;
use proptest::prelude::*;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::vcpu::MshvVcpu;
use super::*;
use crate::hv::Exit;

const GHCB_GPA: u64 = 0x14_A000;
const RAX: usize = 0x1F8;
const RBX: usize = 0x318;
const EXIT_INFO1: usize = 0x398;
const EXIT_INFO2: usize = 0x3A0;
const SCRATCH: usize = 0x3A8;
const VALID: usize = 0x3F0;
const BUFFER: usize = 0x800;

/// A virtual processor of a launched machine, with its GHCB registered and all fields of it marked valid.
struct Guest {
    kernel: Arc<Recorder<Hypervisor>>,
    vm: MshvVm,
    vcpu: MshvVcpu,
}

impl Guest {
    fn new() -> Self {
        Self::with(1)
    }

    /// Virtual processor `id` of three.
    fn with(id: u32) -> Self {
        let kernel = Arc::new(Recorder::new(Hypervisor::default()));
        let vm = MshvVm::create(Arc::clone(&kernel) as _, 3, POLICY).unwrap();
        vm.map_private(RAM_GPA, Arc::new(MmapRegion::new(RAM_BYTES).unwrap())).unwrap();
        let image = image();
        let mut vcpus = vec![vm.create_vcpu(0).unwrap()];
        let runs = runs(&image);
        vm.launch(&Launch { image: &image, runs: &runs, host_data: HOST_DATA, vcpus: 3 }, &mut vcpus)
            .unwrap();
        let mut guest = Self { vcpu: vm.vcpu(id).unwrap(), kernel, vm };
        guest.msr(GHCB_GPA | 0x12);
        assert_eq!(guest.registers(), [(0x9_0041, GHCB_GPA | 1), (0x9_0019, GHCB_GPA | 0x13)]);
        guest.page(VALID, u64::MAX);
        guest.page(VALID + 8, u64::MAX);
        guest
    }

    fn page(&mut self, offset: usize, value: u64) {
        self.vcpu.ghcb_page().write(offset, &value.to_le_bytes()).unwrap();
    }

    fn read(&mut self, offset: usize) -> u64 {
        let mut bytes = [0; 8];
        self.vcpu.ghcb_page().read(offset, &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }

    fn come_back_with(&mut self, kind: u32, payload: &[u8]) -> Result<Exit<'_>, HvError> {
        let mut message: abi::Message = abi::zeroed();
        message.kind = kind.into();
        message.payload[..payload.len()].copy_from_slice(payload);
        self.kernel.part().messages.push_back(Ok(message));
        self.vcpu.run()
    }

    fn msr(&mut self, value: u64) -> Exit<'_> {
        let mut intercept: abi::VmgexitIntercept = abi::zeroed();
        intercept.ghcb_msr = value.into();
        self.come_back_with(abi::HVMSG_X64_SEV_VMGEXIT_INTERCEPT, intercept.as_bytes()).unwrap()
    }

    /// Asks by the GHCB.
    fn ask(&mut self, exit_code: u64, info1: u64, info2: u64) -> Exit<'_> {
        let intercept = vmgexit(exit_code, info1, info2);
        self.come_back_with(abi::HVMSG_X64_SEV_VMGEXIT_INTERCEPT, intercept.as_bytes()).unwrap()
    }

    /// Asks, and is answered without a device: 0, or the reason of the refusal.
    fn outcome(&mut self, exit_code: u64, info1: u64, info2: u64) -> u64 {
        let exit = self.ask(exit_code, info1, info2);
        assert!(matches!(exit, Exit::Again), "{exit:?}");
        match self.read(EXIT_INFO1) {
            0 => 0,
            2 => self.read(EXIT_INFO2),
            other => panic!("answer {other:#x}"),
        }
    }

    /// Registers that were set since the launch, with their values.
    fn registers(&self) -> Vec<(u32, u64)> {
        let log = self.kernel.log();
        let own =
            log.iter().filter(|entry| entry.on == "MSHV_CREATE_VP" && entry.argument.first() == Some(&0x51));
        let pairs = own.map(|entry| {
            let register = abi::Register::ref_from_bytes(&entry.nested[0].2).unwrap();
            (register.name.get(), register.value.get())
        });
        pairs.skip(1).collect()
    }

    fn last_argument(&self, name: &str) -> Option<Vec<u64>> {
        let log = self.kernel.log();
        let entry = log.iter().rfind(|entry| entry.name == name)?;
        Some(entry.argument.chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect())
    }

    /// The guest lets the host read and write (3), or takes back (0), the pages of some ranges.
    fn attributes(&mut self, visibility: u32, ranges: &[u64]) -> Exit<'_> {
        let mut intercept: abi::AttributeIntercept = abi::zeroed();
        intercept.flags = (u32::try_from(ranges.len()).unwrap() | visibility << 6).into();
        ranges.iter().zip(&mut intercept.ranges).for_each(|(range, to)| *to = (*range).into());
        self.come_back_with(abi::HVMSG_GPA_ATTRIBUTE_INTERCEPT, intercept.as_bytes()).unwrap()
    }
}

fn vmgexit(exit_code: u64, info1: u64, info2: u64) -> abi::VmgexitIntercept {
    let mut intercept: abi::VmgexitIntercept = abi::zeroed();
    intercept.ghcb_msr = GHCB_GPA.into();
    intercept.flags = 1.into();
    intercept.version = 2.into();
    intercept.exit_code = exit_code.into();
    intercept.info1 = info1.into();
    intercept.info2 = info2.into();
    intercept.scratch = (GHCB_GPA + BUFFER as u64).into();
    intercept
}

#[test]
fn ports_are_written_and_read() {
    let mut guest = Guest::new();
    guest.page(RAX, 0x1122_3344);
    assert!(matches!(guest.ask(0x7B, 0x600 << 16 | 1 << 4, 0), Exit::PortOut(0x600, [0x44])));
    assert!(matches!(
        guest.ask(0x7B, 0x600 << 16 | 4 << 4, 0),
        Exit::PortOut(0x600, [0x44, 0x33, 0x22, 0x11])
    ));
    assert_eq!(guest.read(EXIT_INFO1), 0);
    guest.page(RAX, u64::MAX);
    match guest.ask(0x7B, 0x604 << 16 | 2 << 4 | 1, 0) {
        Exit::PortIn(0x604, data) => data.copy_from_slice(&[0x34, 0x12]),
        other => panic!("{other:?}"),
    }
    assert_eq!(guest.read(RAX), u64::MAX, "nothing is answered before the device has");
    assert!(matches!(guest.come_back_with(abi::HVMSG_X64_APIC_EOI, &[]), Ok(Exit::Again)));
    assert_eq!((guest.read(RAX), guest.read(EXIT_INFO1)), (0xFFFF_1234, 0));
}

#[test]
fn devices_are_written_and_read() {
    let mut guest = Guest::new();
    guest.page(BUFFER, 0x8877_6655_4433_2211);
    assert!(matches!(
        guest.ask(0x8000_0002, 0xD000_0050, 4),
        Exit::MmioWrite(0xD000_0050, [0x11, 0x22, 0x33, 0x44])
    ));
    match guest.ask(0x8000_0001, 0xD000_0000, 8) {
        Exit::MmioRead(0xD000_0000, data) => data.copy_from_slice(&[9; 8]),
        other => panic!("{other:?}"),
    }
    assert!(matches!(guest.come_back_with(abi::HVMSG_X64_APIC_EOI, &[]), Ok(Exit::Again)));
    assert_eq!((guest.read(BUFFER), guest.read(EXIT_INFO1)), (0x0909_0909_0909_0909, 0));
}

#[test]
fn a_write_that_somebody_waits_for_wakes_him_and_no_device() {
    let mut guest = Guest::new();
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    guest.vm.signal_on_write(0xD000_0050, 1, &event).unwrap();
    guest.page(BUFFER, 1);
    assert_eq!(guest.outcome(0x8000_0002, 0xD000_0050, 4), 0);
    assert_eq!(event.read().unwrap(), 1);
    assert!(matches!(guest.ask(0x8000_0002, 0xD000_0050, 2), Exit::MmioWrite(..)));
    guest.page(BUFFER, 2);
    assert!(matches!(guest.ask(0x8000_0002, 0xD000_0050, 4), Exit::MmioWrite(..)));
    assert!(event.read().is_err());
}

#[test]
fn requests_that_break_the_rules_are_refused_and_the_guest_goes_on() {
    const SCRATCH_AREA: u64 = 3;
    const INPUT: u64 = 5;
    const EVENT: u64 = 6;
    let mut guest = Guest::new();
    let port = |bits: u64| 0x600 << 16 | bits;
    let cases = [
        (0x7B, port(1 << 4 | 1 << 2), 0, INPUT),
        (0x7B, port(1 << 4 | 1 << 3), 0, INPUT),
        (0x7B, port(3 << 4), 0, INPUT),
        (0x7B, port(0), 0, INPUT),
        (0x7B, 1 << 32 | port(1 << 4), 0, INPUT),
        (0x8000_0001, 0xD000_0000, 3, INPUT),
        (0x8000_0001, 0xD000_0000, 0, INPUT),
        (0x8000_0001, 0xD000_0000, 16, INPUT),
        (0x8000_0002, 0xD000_0000, u64::MAX, INPUT),
        (0x8000_0002, u64::MAX, 4, INPUT),
        (0x8000_0014, 4, 0, INPUT),
        (0x8000_0014, 1, 0x800, INPUT),
        (0x8000_0014, 1, 0xC000_0000, INPUT),
        (0x72, 0, 0, EVENT),
        (0x8000_0003, 0, 0, EVENT),
        (0x8000_0004, 0, 0, EVENT),
        (0x8000_0010, 0, 0, EVENT),
        (0x8000_0018, 0, 0, EVENT),
        (u64::MAX, 0, 0, EVENT),
        (1 << 32 | 0x7B, port(1 << 4), 0, EVENT),
    ];
    for (exit_code, info1, info2, reason) in cases {
        assert_eq!(guest.outcome(exit_code, info1, info2), reason, "{exit_code:#x} {info1:#x} {info2:#x}");
    }
    let mut elsewhere = vmgexit(0x8000_0001, 0xD000_0000, 4);
    elsewhere.scratch = GHCB_GPA.into();
    let exit = guest.come_back_with(abi::HVMSG_X64_SEV_VMGEXIT_INTERCEPT, elsewhere.as_bytes()).unwrap();
    assert!(matches!(exit, Exit::Again));
    assert_eq!((guest.read(EXIT_INFO1), guest.read(EXIT_INFO2)), (2, SCRATCH_AREA));
}

#[test]
fn a_page_in_another_format_is_refused() {
    for (usage, version) in [(1, 2), (0, 0), (0, 3)] {
        let mut guest = Guest::new();
        let mut intercept = vmgexit(0x7B, 0x600 << 16 | 1 << 4, 0);
        intercept.usage = usage.into();
        intercept.version = version.into();
        let exit = guest.come_back_with(abi::HVMSG_X64_SEV_VMGEXIT_INTERCEPT, intercept.as_bytes()).unwrap();
        assert!(matches!(exit, Exit::Again));
        assert_eq!((guest.read(EXIT_INFO1), guest.read(EXIT_INFO2)), (2, 2));
    }
}

#[test]
fn fields_that_are_not_marked_valid_are_missing() {
    let cases: [(usize, u64, u64, u64); 8] = [
        (0x390, 0x7B, 0x600 << 16 | 1 << 4, 0),
        (EXIT_INFO1, 0x7B, 0x600 << 16 | 1 << 4, 0),
        (EXIT_INFO2, 0x7B, 0x600 << 16 | 1 << 4, 0),
        (RAX, 0x7B, 0x600 << 16 | 1 << 4, 0),
        (SCRATCH, 0x8000_0001, 0xD000_0000, 4),
        (RAX, 0x8000_0012, 0x15_0000, 0x15_1000),
        (RBX, 0x8000_0012, 0x15_0000, 0x15_1000),
        (RAX, 0x8000_0013, 2 << 32 | 1, 0x15_0000),
    ];
    for (field, exit_code, info1, info2) in cases {
        let mut guest = Guest::new();
        let bitmap = VALID + if field < 0x200 { 0 } else { 8 };
        guest.page(bitmap, !(1 << (field / 8 % 64)));
        assert_eq!(guest.outcome(exit_code, info1, info2), 4, "field {field:#x} of {exit_code:#x}");
    }
}

#[test]
fn an_unregistered_page_ends_the_machine() {
    let mut guest = Guest::new();
    let mut intercept = vmgexit(0x7B, 0x600 << 16 | 1 << 4, 0);
    intercept.ghcb_msr = (GHCB_GPA + 0x1000).into();
    let exit = guest.come_back_with(abi::HVMSG_X64_SEV_VMGEXIT_INTERCEPT, intercept.as_bytes()).unwrap();
    assert!(matches!(exit, Exit::Failed(why) if why.contains("0x14b000 that it has not registered")));
    let mut intercept = vmgexit(0x7B, 0x600 << 16 | 1 << 4, 0);
    intercept.flags = 0.into();
    let exit = guest.come_back_with(abi::HVMSG_X64_SEV_VMGEXIT_INTERCEPT, intercept.as_bytes()).unwrap();
    assert!(matches!(exit, Exit::Failed(_)));
}

#[test]
fn the_msr_protocol_is_answered() {
    let mut guest = Guest::new();
    for (request, answer) in [
        (0x002, 2 << 48 | 1 << 32 | 51 << 24 | 0x001),
        (0x010, 0xFFFF_FFFF_FFFF_F011),
        (0x080, 3 << 12 | 0x081),
    ] {
        assert!(matches!(guest.msr(request), Exit::Again));
        assert_eq!(guest.registers().last(), Some(&(0x9_0019, answer)), "{request:#x}");
    }
    assert!(matches!(guest.msr(0x1_0100), Exit::Terminated(why) if why.contains("reason set 0, code 0x1")));
    let exit = guest.msr(0x2_1100);
    assert!(matches!(&exit, Exit::Terminated(why) if why.contains("reason set 1, code 0x2")), "{exit:?}");
    assert!(matches!(guest.msr(0x004), Exit::Failed(why) if why.contains("GHCB MSR 0x4")));
    assert!(matches!(guest.msr(0x014), Exit::Failed(_)));
}

#[test]
fn a_page_that_is_no_ram_is_not_registered() {
    let mut guest = Guest::new();
    for gpa in [0xF_F000, WINDOW_GPA, 0xFFFF_FFFF_FFFF_F000] {
        assert!(matches!(guest.msr(gpa | 0x12), Exit::Again));
        assert_eq!(guest.registers().last(), Some(&(0x9_0019, 0xFFFF_FFFF_FFFF_F013)), "{gpa:#x}");
    }
    guest.kernel.part().refuse = Some((abi::HVCALL_SET_VP_REGISTERS, abi::REGISTER_SEV_GHCB_GPA, 5));
    let mut intercept: abi::VmgexitIntercept = abi::zeroed();
    intercept.ghcb_msr = (0x15_0000 | 0x12).into();
    let error = guest.come_back_with(abi::HVMSG_X64_SEV_VMGEXIT_INTERCEPT, intercept.as_bytes());
    assert!(error.unwrap_err().to_string().contains("GHCB address"));
}

#[test]
fn another_page_may_be_registered_later() {
    let mut guest = Guest::new();
    guest.msr(0x15_0012);
    let registers = guest.registers();
    let expected = [(0x9_0041, GHCB_GPA), (0x9_0041, 0x15_0001), (0x9_0019, 0x15_0013)];
    assert_eq!(registers[2..], expected);
}

#[test]
fn messages_reach_the_secure_processor() {
    let mut guest = Guest::new();
    assert_eq!(guest.outcome(0x8000_0011, 0x15_0000, 0x15_1000), 0);
    assert_eq!(guest.last_argument("MSHV_ISSUE_PSP_GUEST_REQUEST"), Some(vec![0x15_0000, 0x15_1000]));
    assert_eq!(guest.read(EXIT_INFO2), 0);
    guest.kernel.part().busy = true;
    assert_eq!(guest.outcome(0x8000_0011, 0x15_0000, 0x15_1000), 0);
    assert_eq!(guest.read(EXIT_INFO2), 1 << 63, "a general error of the host's");
}

#[test]
fn messages_outside_of_memory_reach_nobody() {
    let mut guest = Guest::new();
    for (request, response) in [
        (0x15_0000, 0x15_0000),
        (0x15_0800, 0x15_1000),
        (0x15_0000, 0x20_0000),
        (0xF_F000, 0x15_0000),
        (WINDOW_GPA, 0x15_0000),
        (0x15_0000, u64::MAX - 0xFFF),
    ] {
        assert_eq!(guest.outcome(0x8000_0011, request, response), 5, "{request:#x} {response:#x}");
    }
    assert_eq!(guest.last_argument("MSHV_ISSUE_PSP_GUEST_REQUEST"), None);
}

#[test]
fn the_list_of_certificates_is_empty() {
    let mut guest = Guest::new();
    guest.page(RAX, 0x15_2000);
    guest.page(RBX, 4);
    assert_eq!(guest.outcome(0x8000_0012, 0x15_0000, 0x15_1000), 0);
    assert_eq!(guest.last_argument("MSHV_MODIFY_GPA_HOST_ACCESS"), Some(vec![7, 1, 0x15_2000]));
    assert!(guest.last_argument("MSHV_ISSUE_PSP_GUEST_REQUEST").is_some());
    for (certificates, pages) in [(0x15_0000, 1), (0x15_2800, 1), (0x20_0000, 1), (0x15_3000, 17)] {
        guest.page(RAX, certificates);
        guest.page(RBX, pages);
        assert_eq!(guest.outcome(0x8000_0012, 0x15_0000, 0x15_1000), 5, "{certificates:#x} {pages}");
    }
    guest.kernel.part().not_shared = true;
    guest.page(RAX, 0x15_4000);
    guest.page(RBX, 1);
    assert_eq!(guest.outcome(0x8000_0012, 0x15_0000, 0x15_1000), 5, "a page that is not shared");
    guest.page(RBX, 0);
    assert_eq!(guest.outcome(0x8000_0012, 0x15_0000, 0x15_1000), 0, "no room, and none needed");
}

#[test]
fn other_virtual_processors_start_where_the_guest_says() {
    let mut guest = Guest::with(0);
    guest.page(RAX, 1);
    assert_eq!(guest.outcome(0x8000_0013, 2 << 32 | 1, 0x15_0000), 0);
    assert_eq!(guest.last_argument("MSHV_SEV_SNP_AP_CREATE"), Some(vec![2, 0x15_0000]));
}

#[test]
fn a_start_that_harms_anybody_is_refused() {
    let mut guest = Guest::new();
    guest.page(RAX, 1);
    assert!(matches!(guest.attributes(3, &[0x16_0000]), Exit::Again));
    let create = |apic_id: u64| apic_id << 32 | 1;
    let cases = [
        (create(0), 0x15_0000),
        (create(1), 0x15_0000),
        (create(3), 0x15_0000),
        (create(0xFFFF_FFFF), 0x15_0000),
        (2 << 32, 0x15_0000),
        (2 << 32 | 2, 0x15_0000),
        (2 << 32 | 1 << 16 | 1, 0x15_0000),
        (create(2), 0x15_0800),
        (create(2), 0x20_0000),
        (create(2), 0x16_0000),
        (create(2), WINDOW_GPA),
        (create(2), 0xF_F000),
    ];
    for (info1, vmsa) in cases {
        assert_eq!(guest.outcome(0x8000_0013, info1, vmsa), 5, "{info1:#x} {vmsa:#x}");
    }
    guest.page(RAX, 1 | 1 << 3);
    assert_eq!(guest.outcome(0x8000_0013, create(2), 0x15_0000), 5, "other features");
    assert_eq!(guest.last_argument("MSHV_SEV_SNP_AP_CREATE"), None);
}

#[test]
fn a_doorbell_is_set_asked_for_and_taken_back() {
    let mut guest = Guest::new();
    assert_eq!((guest.outcome(0x8000_0014, 0, 0), guest.read(EXIT_INFO2)), (0, u64::MAX));
    assert_eq!(guest.outcome(0x8000_0014, 1, 0x15_0000), 0);
    assert_eq!(guest.registers().last(), Some(&(0x9_0042, 0x15_0001)));
    assert_eq!((guest.outcome(0x8000_0014, 2, 0), guest.read(EXIT_INFO2)), (0, 0x15_0000));
    assert_eq!(guest.outcome(0x8000_0014, 3, 0), 0);
    assert_eq!(guest.registers().last(), Some(&(0x9_0042, 0)));
    assert_eq!((guest.outcome(0x8000_0014, 2, 0), guest.read(EXIT_INFO2)), (0, 0));
}

#[test]
fn features_and_the_end_may_be_asked_for_by_page() {
    let mut guest = Guest::new();
    assert_eq!((guest.outcome(0x8000_FFFD, 0, 0), guest.read(EXIT_INFO2)), (0, 3));
    assert!(
        matches!(guest.ask(0x8000_FFFE, 0x31, 0), Exit::Terminated(why) if why.contains("set 1, code 0x3"))
    );
}

#[test]
fn shared_pages_are_acquired_and_released() {
    let mut guest = Guest::new();
    assert!(matches!(guest.attributes(3, &[0x15_0000 | 1, 0x18_0000]), Exit::Again));
    let log = guest.kernel.log();
    let calls = log.iter().filter(|entry| entry.name == "MSHV_MODIFY_GPA_HOST_ACCESS");
    let words = |bytes: &[u8]| -> Vec<u64> {
        bytes.chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect()
    };
    let calls: Vec<_> = calls.map(|entry| words(&entry.argument)).collect();
    assert_eq!(calls, [vec![7, 2, 0x15_0000, 0x15_1000], vec![7, 1, 0x18_0000]]);
    // What the host has is not asked for again; what it has not, devices may still ask for.
    guest.vm.acquire(0x15_0FFF, 2).unwrap();
    guest.vm.acquire(0x15_1000, 0x1001).unwrap();
    assert_eq!(guest.last_argument("MSHV_MODIFY_GPA_HOST_ACCESS"), Some(vec![7, 1, 0x15_2000]));
    assert!(matches!(guest.attributes(0, &[0x15_0000 | 1]), Exit::Again));
    assert_eq!(guest.last_argument("MSHV_MODIFY_GPA_HOST_ACCESS"), Some(vec![0, 2, 0x15_0000, 0x15_1000]));
    guest.kernel.part().not_shared = true;
    assert!(guest.vm.acquire(0x15_0000, 1).is_err());
    assert!(guest.vm.acquire(0x1F_FFFF, 2).unwrap_err().to_string().contains("a range inside memory"));
}

#[test]
fn many_pages_are_changed_in_groups() {
    const LARGE_2M: u64 = 1 << 11;
    let kernel = Arc::new(Recorder::new(Hypervisor::default()));
    let vm = MshvVm::create(Arc::clone(&kernel) as _, 1, POLICY).unwrap();
    vm.map_private(0, Arc::new(MmapRegion::new(4 << 20).unwrap())).unwrap();
    let image = image();
    let runs = runs(&image);
    let launch = Launch { image: &image, runs: &runs, host_data: HOST_DATA, vcpus: 1 };
    let mut vcpus = vec![vm.create_vcpu(0).unwrap()];
    vm.launch(&launch, &mut vcpus).unwrap();
    let mut guest = Guest { vcpu: vm.vcpu(0).unwrap(), kernel, vm };
    assert!(matches!(guest.attributes(3, &[2 << 20 | LARGE_2M]), Exit::Again));
    let log = guest.kernel.log();
    let calls: Vec<_> = log.iter().filter(|entry| entry.name == "MSHV_MODIFY_GPA_HOST_ACCESS").collect();
    assert_eq!(calls.iter().map(|call| call.argument.len()).collect::<Vec<_>>(), [16 + 256 * 8; 2]);
    assert_eq!(calls[1].argument[16..24], (3_u64 << 20).to_le_bytes());
    assert!(
        matches!(guest.attributes(3, &[2 << 20 | LARGE_2M | 1]), Exit::Failed(_)),
        "past the end of memory"
    );
    assert!(matches!(guest.attributes(3, &[1 << 20 | LARGE_2M | 1 << 12]), Exit::Failed(_)));
}

#[test]
fn impossible_changes_of_pages_end_the_machine() {
    for (flags, range) in [
        (3 << 6, 0x15_0000),
        (3 << 6 | 30, 0x15_0000),
        (1 << 6 | 1, 0x15_0000),
        (2 << 6 | 1, 0x15_0000),
        (3 << 6 | 1 << 5 | 1, 0x15_0000),
        (3 << 6 | 1 << 8 | 1, 0x15_0000),
        (3 << 6 | 1, 0x20_0000),
        (3 << 6 | 1, 0x1F_F001),
        (1, 0xFFFF_FFFF_FFFF_F7FF),
        (1, u64::MAX),
    ] {
        let mut guest = Guest::new();
        let mut intercept: abi::AttributeIntercept = abi::zeroed();
        intercept.flags = flags.into();
        intercept.ranges = [range.into(); 29];
        let exit = guest.come_back_with(abi::HVMSG_GPA_ATTRIBUTE_INTERCEPT, intercept.as_bytes()).unwrap();
        assert!(matches!(exit, Exit::Failed(_)), "{flags:#x} {range:#x}: {exit:?}");
        assert_eq!(guest.last_argument("MSHV_MODIFY_GPA_HOST_ACCESS"), None);
    }
}

#[test]
fn the_rest_is_said_in_words() {
    let mut guest = Guest::new();
    let mut intercept: abi::MemoryIntercept = abi::zeroed();
    intercept.gpa = 0x12_3456_7000.into();
    for (kind, words) in [
        (abi::HVMSG_UNMAPPED_GPA, "memory that is not there, at 0x1234567000"),
        (abi::HVMSG_GPA_INTERCEPT, "does not permit, at 0x1234567000"),
        (abi::HVMSG_UNACCEPTED_GPA, "has not accepted, at 0x1234567000"),
        (0x8001_0007, "never asks for: 0x80010007"),
    ] {
        let exit = guest.come_back_with(kind, intercept.as_bytes()).unwrap();
        assert!(matches!(&exit, Exit::Failed(why) if why.ends_with(words)), "{exit:?}");
    }
    let exit = guest.come_back_with(abi::HVMSG_UNRECOVERABLE_EXCEPTION, &[]).unwrap();
    assert!(matches!(exit, Exit::Shutdown));
    for errno in [libc::EINTR, libc::EAGAIN] {
        guest.kernel.part().messages.push_back(Err(io::Error::from_raw_os_error(errno)));
        assert!(matches!(guest.vcpu.run(), Ok(Exit::Again)));
    }
    guest.kernel.part().messages.push_back(Err(io::Error::from_raw_os_error(libc::EIO)));
    assert!(guest.vcpu.run().unwrap_err().to_string().starts_with("MSHV_RUN_VP: "));
    let native = Start::Native(Box::new(zerocopy::FromZeros::new_zeroed()));
    assert!(guest.vcpu.set_start(&native).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever a guest puts into its GHCB, into the registers and into the page ranges: an answer, never a
    /// panic, and no address outside of its memory reaches the kernel.
    #[test]
    fn no_guest_reaches_beyond_its_memory(
        which in 0_usize..3,
        code in prop_oneof![0x7B_u64..=0x7B, 0x8000_0001_u64..=0x8000_0018, any::<u64>()],
        numbers in any::<[u64; 4]>(),
        pages in any::<[u16; 4]>(),
        near in any::<bool>(),
    ) {
        let mut guest = Guest::new();
        // Half of the time, addresses that are nearly right.
        let number = |index: usize| if near { u64::from(pages[index]) << 12 } else { numbers[index] };
        guest.page(RAX, number(2));
        guest.page(RBX, number(3) & 0xFF);
        let mut intercept = vmgexit(code, number(0), number(1));
        let mut attributes: abi::AttributeIntercept = abi::zeroed();
        attributes.flags = (u32::from(pages[0]) & 0xFF).into();
        attributes.ranges = [number(1).into(); 29];
        let exit = match which {
            0 => guest.come_back_with(abi::HVMSG_X64_SEV_VMGEXIT_INTERCEPT, intercept.as_bytes()),
            1 => {
                intercept.ghcb_msr = numbers[3].into();
                guest.come_back_with(abi::HVMSG_X64_SEV_VMGEXIT_INTERCEPT, intercept.as_bytes())
            }
            _ => guest.come_back_with(abi::HVMSG_GPA_ATTRIBUTE_INTERCEPT, attributes.as_bytes()),
        };
        prop_assert!(exit.is_ok());
        let inside = |gpa: u64| (RAM_GPA..RAM_GPA + RAM_BYTES as u64).contains(&gpa);
        for entry in guest.kernel.log() {
            let words = entry.argument.chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()));
            let addresses: Vec<u64> = match entry.name {
                "MSHV_ISSUE_PSP_GUEST_REQUEST" => words.collect(),
                "MSHV_SEV_SNP_AP_CREATE" => words.skip(1).collect(),
                "MSHV_MODIFY_GPA_HOST_ACCESS" => words.skip(2).collect(),
                _ => Vec::new(),
            };
            prop_assert!(addresses.iter().all(|gpa| inside(*gpa)), "{}: {addresses:x?}", entry.name);
        }
    }
}
