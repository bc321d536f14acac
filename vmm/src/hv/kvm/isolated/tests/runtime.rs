//! What virtual CPUs come back for, and how it is answered. Every value in an exit may be a guest's word.

use std::collections::VecDeque;

use super::kernel::RUN_BYTES;
use super::*;
use crate::hv::Exit;

const UNION: usize = 32;

/// A launched machine whose first virtual CPU comes back for `exits`. What the launch asked is forgotten by
/// the count that comes with it.
fn running(platform: Platform, exits: Vec<super::kernel::Exit>) -> (Recording, Launched, usize) {
    let kernel = recorder(platform);
    let launched = launch(&kernel, &image(platform), 1).unwrap();
    kernel.part().exits = VecDeque::from(exits);
    let asked = kernel.log().len();
    (kernel, launched, asked)
}

fn exit(reason: u32, fields: &[u64]) -> super::kernel::Exit {
    let fields = fields.iter().flat_map(|field| field.to_le_bytes()).collect();
    (vec![(8, reason.to_le_bytes().to_vec()), (UNION, fields)], 0)
}

/// What is asked of the kernel after the launch, besides running.
fn since(kernel: &Recording, asked: usize) -> Vec<Entry> {
    kernel.log().split_off(asked).into_iter().filter(|entry| entry.name != "KVM_RUN").collect()
}

fn failure(platform: Platform, exits: Vec<super::kernel::Exit>) -> String {
    let (_kernel, mut launched, _) = running(platform, exits);
    match launched.vcpus[0].run() {
        Ok(Exit::Failed(why) | Exit::Terminated(why)) => why,
        Err(error) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

/// Converts, and says what the guest is answered and what was asked of the kernel.
fn convert(platform: Platform, gpa: u64, pages: u64, attributes: u64) -> (u64, Vec<Entry>) {
    let hypercall = exit(3, &[12, gpa, pages, attributes, 0, 0, 0, 77]);
    let (kernel, mut launched, asked) = running(platform, vec![hypercall, exit(26, &[])]);
    assert!(matches!(launched.vcpus[0].run(), Ok(Exit::Again)));
    assert!(matches!(launched.vcpus[0].run(), Ok(Exit::Again)));
    let answer = u64_at(&kernel.part().entered[1], UNION + 56);
    let asked = since(&kernel, asked);
    (answer, asked)
}

#[test]
fn no_virtual_cpu_runs_before_the_launch_is_finished() {
    for platform in [Platform::Snp, Platform::Tdx] {
        let kernel = recorder(platform);
        let mut launched = populate(make(&kernel, platform, 1).unwrap(), platform, 1).unwrap();
        let error = launched.vcpus[0].run().map(drop).unwrap_err().to_string();
        assert_eq!(error, "KVM_RUN: the launch is not finished");
        assert!(kernel.log().iter().all(|entry| entry.name != "KVM_RUN"));
    }
}

#[test]
fn a_failed_launch_never_runs() {
    let image = image(Platform::Snp);
    let mut played = Played::new(Platform::Snp);
    played.refusal = Some(("KVM_SEV_SNP_LAUNCH_FINISH", 1));
    let kernel = Arc::new(Recorder::new(played));
    let mut launched = populate(make(&kernel, Platform::Snp, 1).unwrap(), Platform::Snp, 1).unwrap();
    let runs = runs(&image);
    let launch = Launch { image: &image, runs: &runs, host_data: HOST_DATA, vcpus: 1 };
    launched.vm.launch(&launch, &mut launched.vcpus).unwrap_err();
    launched.vcpus[0].run().map(drop).unwrap_err();
    assert!(kernel.log().iter().all(|entry| entry.name != "KVM_RUN"));
}

#[test]
fn sharing_gives_back_the_private_memory() {
    for platform in [Platform::Snp, Platform::Tdx] {
        let (answer, asked) = convert(platform, 0x8_0000, 3, 0);
        assert_eq!(answer, 0);
        let [attributes, punch] = &asked[..] else { panic!("{asked:?}") };
        assert_eq!(attributes.name, "KVM_SET_MEMORY_ATTRIBUTES");
        let told = [0, 8, 16, 24].map(|offset| u64_at(&attributes.argument, offset));
        assert_eq!(told, [0x8_0000, 0x3000, 0, 0]);
        assert_eq!((&punch.on[..], punch.name, punch.value), ("KVM_CREATE_GUEST_MEMFD", "punch", 0x8_0000));
        assert_eq!(u64_at(&punch.argument, 0), 0x3000);
    }
}

#[test]
fn taking_back_discards_the_shared_memory() {
    let (answer, asked) = convert(Platform::Snp, 0x8_0000, 2, 1 << 4 | 1);
    assert_eq!(answer, 0);
    let [attributes, discard] = &asked[..] else { panic!("{asked:?}") };
    assert_eq!(u64_at(&attributes.argument, 16), 8, "private");
    assert_eq!((discard.name, discard.value, u64_at(&discard.argument, 0)), ("discard", 0x8_0000, 0x2000));
}

#[test]
fn conversions_outside_ram_are_refused_and_change_nothing() {
    let ram = RAM_BYTES as u64;
    let private = 1 << 4;
    let cases = [
        (0xC000_0000, 1, private),
        (0xD000_0000, 1, private),
        (ram, 1, private),
        (ram - 0x1000, 2, private),
        (ram - 0x1000, 2, 0),
        (0, ram / 4096 + 1, 0),
        (0x1000, 0, 0),
        (0x1234, 1, 0),
        (0x1000, u64::MAX, 0),
        (0x1000, 1 << 52, 0),
        (u64::MAX - 0xFFF, 1, private),
        (u64::MAX - 0xFFF, 2, 0),
    ];
    for (gpa, pages, attributes) in cases {
        let (answer, asked) = convert(Platform::Snp, gpa, pages, attributes);
        assert_eq!((answer, &asked[..]), (22, &[][..]), "{gpa:#x} {pages} {attributes:#x}");
    }
}

#[test]
fn what_is_shared_already_may_be_shared_again() {
    for gpa in [0xC000_0000, 0xD000_0000] {
        assert_eq!(convert(Platform::Snp, gpa, 1, 0), (0, Vec::new()), "{gpa:#x}");
    }
}

#[test]
fn a_failing_conversion_ends_the_machine() {
    let whole = running(Platform::Snp, Vec::new()).2;
    let kernel = Arc::new(Recorder::failing(Played::new(Platform::Snp), whole + 1, libc::ENOMEM));
    let mut launched = launch(&kernel, &image(Platform::Snp), 1).unwrap();
    kernel.part().exits.push_back(exit(3, &[12, 0x8_0000, 1, 0]));
    let error = launched.vcpus[0].run().map(drop).unwrap_err().to_string();
    assert!(error.starts_with("KVM_SET_MEMORY_ATTRIBUTES: "), "{error}");
}

#[test]
fn a_fault_on_memory_in_the_other_state_converts_it() {
    let fault = |flags, gpa| (exit(39, &[flags, gpa, 0x1000]).0, libc::EFAULT);
    let (kernel, mut launched, asked) =
        running(Platform::Snp, vec![fault(0, 0x9000), fault(8, 0x9000), (Vec::new(), libc::EFAULT)]);
    for _ in 0..2 {
        assert!(matches!(launched.vcpus[0].run(), Ok(Exit::Again)));
    }
    let names: Vec<_> = since(&kernel, asked).iter().map(|entry| entry.name).collect();
    assert_eq!(names, ["KVM_SET_MEMORY_ATTRIBUTES", "punch", "KVM_SET_MEMORY_ATTRIBUTES", "discard"]);
    // The same error without an exit of its own is not taken for the last fault again.
    let error = launched.vcpus[0].run().map(drop).unwrap_err().to_string();
    assert_eq!(error, "KVM_RUN: Bad address (os error 14)");
}

#[test]
fn a_fault_where_there_is_no_ram_ends_the_machine() {
    let fault = |flags, gpa, size| (exit(39, &[flags, gpa, size]).0, libc::EFAULT);
    for (flags, gpa, size) in
        [(8, 0xC000_0000, 0x1000), (8, u64::MAX - 0xFFF, 0x1000), (1, 0x1000, 0x1000), (0, 0x1000, u64::MAX)]
    {
        let why = failure(Platform::Snp, vec![fault(flags, gpa, size)]);
        assert!(why.contains("where there is none"), "{why}");
    }
    let why = failure(Platform::Snp, vec![fault(8, 0x1234, 0x1000)]);
    assert!(why.contains("cannot be made private"), "{why}");
}

#[test]
fn ports_are_read_and_written_through_the_page() {
    let port = |direction: u8, size: u8, port: u16, count: u32, offset: u64| {
        let head =
            u64::from(direction) | u64::from(size) << 8 | u64::from(port) << 16 | u64::from(count) << 32;
        exit(2, &[head, offset])
    };
    let mut write = port(1, 1, 0x600, 2, 0x1000);
    write.0.push((0x1000, vec![3, 4]));
    let (kernel, mut launched, _) =
        running(Platform::Snp, vec![write, port(0, 4, 0x608, 1, 0x1010), exit(8, &[])]);
    assert!(matches!(launched.vcpus[0].run(), Ok(Exit::PortOut(0x600, [3, 4]))));
    match launched.vcpus[0].run() {
        Ok(Exit::PortIn(0x608, data)) => data.copy_from_slice(&[1, 2, 3, 4]),
        other => panic!("{other:?}"),
    }
    assert!(matches!(launched.vcpus[0].run(), Ok(Exit::Shutdown)));
    assert_eq!(kernel.part().entered[2][0x1010..0x1014], [1, 2, 3, 4]);
}

#[test]
fn port_exits_that_reach_outside_the_page_are_errors() {
    let port =
        |size: u64, count: u64, offset: u64| exit(2, &[1 | size << 8 | 0x600 << 16 | count << 32, offset]);
    for exits in [port(4, 1025, 0x1000), port(255, 0xFFFF_FFFF, 0), port(0, 1, 0x1000), port(1, 0, 0x1000)] {
        assert!(failure(Platform::Snp, vec![exits]).contains("more than 4096 bytes at once"));
    }
    for offset in [RUN_BYTES as u64, u64::MAX] {
        assert!(failure(Platform::Snp, vec![port(1, 1, offset)]).starts_with("kvm_run: "));
    }
}

#[test]
fn devices_are_read_and_written_through_the_page() {
    let mmio = |gpa: u64, data: u64, len: u64, write: u64| exit(6, &[gpa, data, len | write << 32]);
    let exits = vec![mmio(0xD000_0050, 0x0403, 2, 1), mmio(0xD000_0000, 0, 4, 0), exit(10, &[])];
    let (kernel, mut launched, _) = running(Platform::Tdx, exits);
    assert!(matches!(launched.vcpus[0].run(), Ok(Exit::MmioWrite(0xD000_0050, [3, 4]))));
    match launched.vcpus[0].run() {
        Ok(Exit::MmioRead(0xD000_0000, data)) => data.copy_from_slice(b"virt"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(launched.vcpus[0].run(), Ok(Exit::Again)));
    assert_eq!(&kernel.part().entered[2][UNION + 8..UNION + 12], b"virt");
    for len in [0, 9, u64::from(u32::MAX)] {
        assert!(failure(Platform::Tdx, vec![mmio(0, 0, len, 1)]).contains("expected 1 to 8 bytes"));
    }
}

#[test]
fn a_guests_own_end_is_told_in_words() {
    let event = |kind: u64, data: &[u64]| {
        let mut fields = vec![kind | 16 << 32];
        fields.extend(data);
        exit(24, &fields)
    };
    let why = failure(Platform::Snp, vec![event(6, &[0x100 | 1 << 12 | 3 << 16])]);
    assert_eq!(why, "the guest asked for its end: Linux: not started at VMPL 0 (reason set 1, code 3)");
    let mut registers = [0; 16];
    registers[12] = 0x11;
    registers[14] = u64::from_le_bytes(*b"bad map\0");
    let why = failure(Platform::Tdx, vec![event(7, &registers)]);
    assert_eq!(why, "the guest reported a fatal error: code 0x11, \"bad map\"");
    assert!(failure(Platform::Snp, vec![event(99, &[])]).contains("KVM system event 99"));
}

#[test]
fn calls_to_a_tds_host_are_answered_as_not_served() {
    const UNSUPPORTED: u64 = 0x8000_0000_0000_0003;
    let call = |number: u64| exit(40, &[0, number, 7, 7, 7, 7, 7, 7]);
    let exits = vec![call(0x10002), call(0x10004), call(0x10000), exit(8, &[])];
    let (kernel, mut launched, asked) = running(Platform::Tdx, exits);
    for _ in 0..3 {
        assert!(matches!(launched.vcpus[0].run(), Ok(Exit::Again)));
    }
    launched.vcpus[0].run().map(drop).unwrap();
    let answers: Vec<_> = (1..4).map(|entry| u64_at(&kernel.part().entered[entry], UNION + 16)).collect();
    assert_eq!(answers, [UNSUPPORTED, UNSUPPORTED, 0]);
    let information: Vec<_> =
        (0..4).map(|at| u64_at(&kernel.part().entered[3], UNION + 32 + 8 * at)).collect();
    assert_eq!(information, [0; 4], "no optional call is served");
    assert_eq!(since(&kernel, asked), []);
}

#[test]
fn exits_that_nobody_asked_for_end_the_machine() {
    for reason in [0, 1, 4, 5, 19, 41, 44, u32::MAX] {
        let why = failure(Platform::Snp, vec![exit(reason, &[])]);
        assert!(why.contains(&format!("KVM exit {reason}")), "{why}");
    }
    assert!(failure(Platform::Snp, vec![exit(3, &[5])]).contains("hypercall 5"));
    assert!(failure(Platform::Snp, vec![exit(43, &[])]).contains("request for certificates"));
    assert!(failure(Platform::Snp, vec![exit(17, &[2])]).contains("KVM_EXIT_INTERNAL_ERROR, 2"));
    assert!(failure(Platform::Snp, vec![exit(9, &[0x33, 1])]).contains("hardware reason 0x33"));
}

#[test]
fn an_interrupted_run_is_entered_again() {
    let interrupted = |errno| (Vec::new(), errno);
    let (_kernel, mut launched, _) = running(
        Platform::Snp,
        vec![interrupted(libc::EINTR), interrupted(libc::EAGAIN), interrupted(libc::EIO)],
    );
    for _ in 0..2 {
        assert!(matches!(launched.vcpus[0].run(), Ok(Exit::Again)));
    }
    assert!(launched.vcpus[0].run().is_err());
}

#[test]
fn the_window_can_be_taken_away() {
    let (kernel, launched, asked) = running(Platform::Snp, Vec::new());
    launched.vm.unmap(launched.window).unwrap();
    launched.vm.unmap(launched.window).unwrap();
    launched.vm.unmap(99).unwrap();
    let asked = since(&kernel, asked);
    let [unmap] = &asked[..] else { panic!("{asked:?}") };
    assert_eq!(unmap.name, "KVM_SET_USER_MEMORY_REGION2");
    let mut expected = [0; 160];
    expected[0] = 1;
    assert_eq!((&unmap.argument[..], unmap.nested.len()), (&expected[..], 0));
}

mod certificates {
    use vm_memory::Bytes as _;
    use vm_memory::VolatileMemory as _;

    use super::*;

    const TABLE: [u8; 5000] = [0x5A; 5000];

    fn services() -> Services {
        Services { certificates: Some(TABLE.to_vec().into()), quoting: None }
    }

    /// Asks for certificates, and says what is answered: the answer, the number of pages, and what lies at
    /// 0x8000 of shared memory then.
    fn ask(gpa: u64, pages: u64) -> (u64, u64, Vec<u8>) {
        let kernel = recorder(Platform::Snp);
        let vm = IsolatedVm::snp(Arc::clone(&kernel) as _, 1, services()).unwrap();
        let ram = Arc::new(MmapRegion::new(RAM_BYTES).unwrap());
        vm.map_private(0, Arc::clone(&ram)).unwrap();
        let mut vcpus = vec![vm.create_vcpu(0).unwrap()];
        let image = image(Platform::Snp);
        let runs = runs(&image);
        vm.launch(&Launch { image: &image, runs: &runs, host_data: HOST_DATA, vcpus: 1 }, &mut vcpus)
            .unwrap();
        kernel.part().exits = VecDeque::from([exit(43, &[gpa, pages, 0]), exit(8, &[])]);
        assert!(matches!(vcpus[0].run(), Ok(Exit::Again)));
        vcpus[0].run().map(drop).unwrap();
        let page = kernel.part().entered[1].clone();
        let mut seen = vec![0; TABLE.len()];
        ram.as_volatile_slice().read_slice(&mut seen, 0x8000).unwrap();
        (u64_at(&page, UNION + 16), u64_at(&page, UNION + 8), seen)
    }

    #[test]
    fn they_are_written_to_where_the_guest_has_shared_room() {
        assert_eq!(ask(0x8000, 2), (0, 2, TABLE.to_vec()));
    }

    #[test]
    fn too_little_room_is_answered_with_how_much_it_takes() {
        assert_eq!(ask(0x8000, 1), (28, 2, vec![0; TABLE.len()]));
    }

    #[test]
    fn room_outside_ram_gets_an_error() {
        for gpa in [0xD000_0000, RAM_BYTES as u64 - 0x1000, u64::MAX - 0xFFF] {
            assert_eq!(ask(gpa, 2), (5, 2, vec![0; TABLE.len()]));
        }
    }

    #[test]
    fn a_kernel_that_cannot_hand_them_over_is_put_up_with() {
        let log = |errno| {
            let asked = recorder(Platform::Snp);
            IsolatedVm::snp(Arc::clone(&asked) as _, 1, services()).unwrap();
            let at =
                asked.log().iter().position(|entry| entry.name == "KVM_SEV_SNP_ENABLE_REQ_CERTS").unwrap();
            let kernel = Arc::new(Recorder::failing(Played::new(Platform::Snp), at, errno));
            IsolatedVm::snp(kernel, 1, services()).map(drop).map_err(|error| error.to_string())
        };
        assert_eq!(log(libc::EINVAL), Ok(()));
        assert!(log(libc::EPERM).unwrap_err().contains("KVM_SEV_SNP_ENABLE_REQ_CERTS"));
    }
}

mod quotes {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixListener;
    use std::path::Path;

    use vm_memory::{Bytes as _, VolatileMemory as _};

    use super::*;

    const BUFFER: u64 = 0x8000;

    /// Has a guest with `head` at the start of its buffer ask `service` for a quote. Says what the call answers,
    /// and what lies in the buffer then.
    fn ask(service: &Path, head: [u64; 3], gpa: u64, size: u64) -> (u64, Vec<u8>) {
        let kernel = recorder(Platform::Tdx);
        let services = Services { certificates: None, quoting: Some(service.into()) };
        let vm = IsolatedVm::tdx(Arc::clone(&kernel) as _, 1, HOST_DATA, services).unwrap();
        let ram = Arc::new(MmapRegion::new(RAM_BYTES).unwrap());
        vm.map_private(0, Arc::clone(&ram)).unwrap();
        let mut vcpus = vec![vm.create_vcpu(0).unwrap()];
        let image = image(Platform::Tdx);
        vm.launch(&Launch { image: &image, runs: &[], host_data: HOST_DATA, vcpus: 1 }, &mut vcpus).unwrap();
        let request: Vec<u8> = head.iter().flat_map(|field| field.to_le_bytes()).chain([7; 1024]).collect();
        ram.as_volatile_slice().write_slice(&request, 0x8000).unwrap();
        kernel.part().exits = VecDeque::from([exit(40, &[0, 0x10002, u64::MAX, gpa, size]), exit(8, &[])]);
        assert!(matches!(vcpus[0].run(), Ok(Exit::Again)));
        vcpus[0].run().map(drop).unwrap();
        let mut buffer = vec![0; 64];
        ram.as_volatile_slice().read_slice(&mut buffer, 0x8000).unwrap();
        let answer = u64_at(&kernel.part().entered[1], UNION + 16);
        (answer, buffer)
    }

    #[test]
    fn a_report_becomes_the_services_quote() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("service");
        let listener = UnixListener::bind(&path).unwrap();
        let service = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = vec![0; 28 + 1024];
            stream.read_exact(&mut request).unwrap();
            assert_eq!(request[28..], [7; 1024]);
            let fields = [27_u32.to_be(), 1 << 16 | 1, 1, 27, 0, 0, 3];
            let answer: Vec<u8> =
                fields.iter().flat_map(|field| field.to_le_bytes()).chain(*b"QUO").collect();
            stream.write_all(&answer).unwrap();
        });
        let (answer, buffer) = ask(&path, [1, u64::MAX, 1024], BUFFER, 0x4000);
        service.join().unwrap();
        assert_eq!((answer, u64_at(&buffer, 0), u64_at(&buffer, 8)), (0, 1, 0));
        assert_eq!((u32_at(&buffer, 20), &buffer[24..27]), (3, &b"QUO"[..]));
    }

    #[test]
    fn without_a_service_the_buffer_says_so() {
        let (answer, buffer) = ask(Path::new("/nonexistent/service"), [1, 0, 1024], BUFFER, 0x4000);
        assert_eq!((answer, u64_at(&buffer, 8), u32_at(&buffer, 20)), (0, 0x8000_0000_0000_0001, 0));
    }

    #[test]
    fn buffers_that_are_none_are_refused() {
        const INVALID: u64 = 0x8000_0000_0000_0000;
        let service = Path::new("/nonexistent/service");
        for (gpa, size) in
            [(BUFFER, 1047), (0xD000_0000, 0x4000), (u64::MAX, 0x4000), (RAM_BYTES as u64 - 8, 0x4000)]
        {
            assert_eq!(ask(service, [1, 5, 1024], gpa, size).0, INVALID, "{gpa:#x} {size:#x}");
        }
        for head in [[2, 5, 1024], [1, 5, 1023], [1, 5, u64::from(u32::MAX)]] {
            let (answer, buffer) = ask(service, head, BUFFER, 0x4000);
            assert_eq!((answer, u64_at(&buffer, 8)), (0, INVALID), "{head:?}");
        }
    }
}
