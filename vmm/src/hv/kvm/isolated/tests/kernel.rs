//! KVM, the AMD secure processor and the TDX module, as far as launches see them.
//!
//! Played from the specifications and the kernel's documentation, without the code under test: layouts are
//! offsets here, and the measurements are computed from what is imported, save areas included.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;

use kvm_bindings::{kvm_cpuid_entry2, kvm_regs, kvm_segment, kvm_sregs};
use launch::image::Platform;
use sha2::{Digest as _, Sha384};
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::{u32_at, u64_at};
use crate::hv::seam::recorder::Part;
use crate::hv::seam::{Argument, Nested, Request, RunPage, Target};

/// What the page that a virtual CPU shares has after a run: bytes at offsets, and an error number or 0.
pub type Exit = (Vec<(usize, Vec<u8>)>, i32);

/// Bytes of `kvm_run` and the port data behind it.
pub const RUN_BYTES: usize = 0x3000;

#[derive(Debug)]
pub struct Played {
    platform: Platform,
    /// A capability that this kernel lacks.
    pub missing: Option<u32>,
    /// The place of the encryption bit.
    pub c_bit: u32,
    /// Functions in the processor's list beyond the usual.
    pub more_functions: u32,
    /// How the firmware changes CPUID pages that it refuses, one after another. Then it takes them.
    pub corrections: VecDeque<fn(&mut [u8])>,
    /// Most pages that one import takes.
    pub pages_per_call: usize,
    /// How many imports are interrupted before they do anything.
    pub interruptions: u32,
    /// A command that the processor refuses, with this status.
    pub refusal: Option<(&'static str, u64)>,
    /// What virtual CPUs come back for.
    pub exits: VecDeque<Exit>,
    /// The shared page as it was at each entry.
    pub entered: Vec<Vec<u8>>,
    /// The launch digest or MRTD so far.
    snp_digest: [u8; 48],
    mrtd: Sha384,
    /// What the launch was bound to.
    pub host_data: Vec<u8>,
    pub policy: Option<u64>,
    pub finished: bool,
    vcpus: BTreeMap<String, (kvm_sregs, kvm_regs)>,
    private: BTreeSet<u64>,
    imported: BTreeSet<u64>,
}

impl Played {
    pub fn new(platform: Platform) -> Self {
        Self {
            platform,
            missing: None,
            c_bit: 51,
            more_functions: 0,
            corrections: VecDeque::new(),
            pages_per_call: usize::MAX,
            interruptions: 0,
            refusal: None,
            exits: VecDeque::new(),
            entered: Vec::new(),
            snp_digest: [0; 48],
            mrtd: Sha384::new(),
            host_data: Vec::new(),
            policy: None,
            finished: false,
            vcpus: BTreeMap::new(),
            private: BTreeSet::new(),
            imported: BTreeSet::new(),
        }
    }

    /// The launch digest of a finished launch.
    pub fn digest(&self) -> [u8; 48] {
        assert!(self.finished);
        match self.platform {
            Platform::Snp => self.snp_digest,
            _ => self.mrtd.clone().finalize().into(),
        }
    }

    fn capability(&self, number: u64) -> u64 {
        match u32::try_from(number).unwrap() {
            missing if Some(missing) == self.missing => 0,
            201 => 1 << 12,
            235 => 1 | 1 << 4 | 1 << 5,
            _ => 1,
        }
    }

    fn functions(&self) -> Vec<kvm_cpuid_entry2> {
        let entry = |function, index, eax, ebx| {
            let flags = u32::from(matches!(function, 4 | 0xD));
            kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx: 5, edx: 6, padding: [0; 3] }
        };
        let mut functions = vec![
            entry(0, 0, 0x10, 1),
            // With RDRAND, which the boot stub insists on.
            kvm_cpuid_entry2 { ecx: 1 << 30, ..entry(1, 0, 0xA0_0F11, 0) },
            kvm_cpuid_entry2 { function: 3, ..Default::default() },
            kvm_cpuid_entry2 { ecx: 0x340, ..entry(0xD, 0, 7, 0x340) },
            entry(0xD, 1, 0xF, 0x340),
            entry(0x4000_0000, 0, 0x4000_0001, 0x4B4D_564B),
            entry(0x4000_0001, 0, u32::MAX, 0),
            entry(0x8000_0008, 0, 0x302E, 0),
            entry(0x8000_001F, 0, 0x1F, self.c_bit | 5 << 6),
        ];
        functions.extend((0..self.more_functions).map(|index| entry(4, index, 1, 1)));
        functions
    }

    fn fill_cpuid(&self, table: &mut [u8]) {
        let functions = self.functions();
        assert!(u32_at(table, 0) as usize >= functions.len(), "E2BIG");
        put(table, 0, &u32::try_from(functions.len()).unwrap().to_le_bytes());
        for (index, function) in functions.iter().enumerate() {
            put(table, 8 + 40 * index, function.as_bytes());
        }
    }

    fn snp(&mut self, name: &str, command: &mut [u8], nested: &mut [Nested<'_>]) -> io::Result<u64> {
        assert_eq!(command.len(), 24);
        if let Some((_, status)) = self.refusal.filter(|(refused, _)| *refused == name) {
            put(command, 16, &u32::try_from(status).unwrap().to_le_bytes());
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        match (u32_at(command, 0), name) {
            (22, "KVM_SEV_INIT2") => assert!(self.vcpus.is_empty(), "INIT2 after virtual CPUs"),
            (103, "KVM_SEV_SNP_ENABLE_REQ_CERTS") => assert!(self.vcpus.is_empty() && nested.is_empty()),
            (100, "KVM_SEV_SNP_LAUNCH_START") => {
                assert_eq!(self.policy.replace(u64_at(bytes(&mut nested[0]), 0)), None);
            }
            (101, "KVM_SEV_SNP_LAUNCH_UPDATE") => return self.launch_update(command, nested),
            (102, "KVM_SEV_SNP_LAUNCH_FINISH") => self.launch_finish(bytes(&mut nested[0])),
            other => panic!("unknown command {other:?}"),
        }
        Ok(0)
    }

    fn launch_update(&mut self, command: &mut [u8], nested: &mut [Nested<'_>]) -> io::Result<u64> {
        assert!(self.policy.is_some(), "LAUNCH_UPDATE before LAUNCH_START");
        let [update, pages] = nested else { panic!("expected the structure and the pages") };
        assert_eq!((pages.within, pages.offset), (Some(0), 8));
        let (update, pages) = (bytes(update), bytes(pages));
        assert_eq!(pages.as_ptr().addr() % 4096, 0, "pages are not aligned");
        let (gfn, len, page_type) = (u64_at(update, 0), u64_at(update, 16), update[24]);
        assert_eq!(len, pages.len() as u64);
        if self.interruptions > 0 {
            self.interruptions -= 1;
            return Err(io::Error::from_raw_os_error(libc::EAGAIN));
        }
        if let Some(correction) = (page_type == 6).then(|| self.corrections.pop_front()).flatten() {
            correction(pages);
            put(command, 16, &0x16_u32.to_le_bytes());
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let mut done = 0;
        for (gfn, page) in (gfn..).zip(pages.chunks_exact(4096)).take(self.pages_per_call) {
            self.import(gfn << 12);
            self.extend_snp(page_type, gfn << 12, page);
            done += 1;
        }
        put(update, 0, &(gfn + done).to_le_bytes());
        put(update, 16, &(len - done * 4096).to_le_bytes());
        Ok(0)
    }

    fn import(&mut self, gpa: u64) {
        assert!(self.private.contains(&gpa), "{gpa:#x} is not private");
        assert!(self.imported.insert(gpa), "{gpa:#x} is imported twice");
    }

    fn extend_snp(&mut self, page_type: u8, gpa: u64, page: &[u8]) {
        let contents = match page_type {
            1 | 2 => Sha384::digest(page).into(),
            3..=6 => [0; 48],
            other => panic!("page type {other}"),
        };
        let mut info = Sha384::new();
        info.update(self.snp_digest);
        info.update(contents);
        info.update([0x70, 0, page_type, 0, 0, 0, 0, 0]);
        info.update(gpa.to_le_bytes());
        self.snp_digest = info.finalize().into();
    }

    fn launch_finish(&mut self, finish: &[u8]) {
        assert_eq!(finish.len(), 88);
        self.host_data = finish[19..51].to_vec();
        for (sregs, regs) in self.vcpus.clone().values() {
            self.extend_snp(2, 0xFFFF_FFFF_F000, &save_area(sregs, regs));
        }
        self.finished = true;
    }

    fn tdx(&mut self, name: &str, command: &mut [u8], nested: &mut [Nested<'_>]) -> io::Result<u64> {
        assert_eq!((command.len(), u64_at(command, 16)), (24, 0));
        if let Some((_, status)) = self.refusal.filter(|(refused, _)| *refused == name) {
            put(command, 16, &status.to_le_bytes());
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        match (u32_at(command, 0), name) {
            (0, "KVM_TDX_CAPABILITIES") => self.td_capabilities(bytes(&mut nested[0])),
            (1, "KVM_TDX_INIT_VM") => {
                let init = bytes(&mut nested[0]);
                assert_eq!(init.len(), 256 + 8 + 40 * u32_at(init, 256) as usize);
                assert!(self.vcpus.is_empty(), "INIT_VM after virtual CPUs");
                self.host_data = init[16..64].to_vec();
            }
            (2, "KVM_TDX_INIT_VCPU") => assert_eq!(self.host_data.len(), 48, "INIT_VCPU before INIT_VM"),
            (3, "KVM_TDX_INIT_MEM_REGION") => return self.init_mem_region(u32_at(command, 4), nested),
            (4, "KVM_TDX_FINALIZE_VM") => self.finished = true,
            other => panic!("unknown command {other:?}"),
        }
        Ok(0)
    }

    fn td_capabilities(&self, answer: &mut [u8]) {
        put(answer, 0, &(1_u64 << 28).to_le_bytes());
        put(answer, 8, &0x6_1AE7_u64.to_le_bytes());
        let configurable = [
            kvm_cpuid_entry2 { function: 1, eax: 0xFF, ..Default::default() },
            kvm_cpuid_entry2 { function: 0x8000_0008, eax: 0xFF_0000, ..Default::default() },
            kvm_cpuid_entry2 { function: 0x23, eax: u32::MAX, ..Default::default() },
        ];
        put(answer, 2048, &3_u32.to_le_bytes());
        for (index, entry) in configurable.iter().enumerate() {
            put(answer, 2056 + 40 * index, entry.as_bytes());
        }
    }

    fn init_mem_region(&mut self, flags: u32, nested: &mut [Nested<'_>]) -> io::Result<u64> {
        let [region, pages] = nested else { panic!("expected the structure and the pages") };
        assert_eq!((pages.within, pages.offset), (Some(0), 0));
        let (region, pages) = (bytes(region), bytes(pages));
        assert_eq!(pages.as_ptr().addr() % 4096, 0, "pages are not aligned");
        let (gpa, count) = (u64_at(region, 8), u64_at(region, 16));
        assert_eq!(count * 4096, pages.len() as u64);
        let mut done = 0;
        for (gpa, page) in (gpa..).step_by(4096).zip(pages.chunks_exact(4096)).take(self.pages_per_call) {
            self.import(gpa);
            self.mrtd.update(record("MEM.PAGE.ADD", gpa));
            if flags == 1 {
                for (gpa, chunk) in (gpa..).step_by(256).zip(page.chunks(256)) {
                    self.mrtd.update(record("MR.EXTEND", gpa));
                    self.mrtd.update(chunk);
                }
            }
            done += 1;
        }
        put(region, 8, &(gpa + done * 4096).to_le_bytes());
        put(region, 16, &(count - done).to_le_bytes());
        if done < count { Err(io::Error::from_raw_os_error(libc::EINTR)) } else { Ok(0) }
    }

    fn set_attributes(&mut self, argument: &[u8]) {
        let (address, size, private) = (u64_at(argument, 0), u64_at(argument, 8), u64_at(argument, 16) == 8);
        for gpa in (address..address + size).step_by(4096) {
            if private {
                self.private.insert(gpa)
            } else {
                self.private.remove(&gpa)
            };
        }
    }

    fn structure(
        &mut self,
        on: &str,
        name: &str,
        bytes: &mut [u8],
        nested: &mut [Nested<'_>],
    ) -> io::Result<u64> {
        let vcpu = on.starts_with("KVM_CREATE_VCPU").then(|| self.vcpus.entry(on.into()).or_default());
        match (name, vcpu) {
            ("KVM_GET_SUPPORTED_CPUID", None) => self.fill_cpuid(bytes),
            ("KVM_SET_MEMORY_ATTRIBUTES", None) => self.set_attributes(bytes),
            ("KVM_SET_MSRS", Some(_)) => return Ok(u64::from(u32_at(bytes, 0))),
            ("KVM_GET_SREGS", Some((sregs, _))) => bytes.copy_from_slice(sregs.as_bytes()),
            ("KVM_SET_SREGS", Some((sregs, _))) => *sregs = kvm_sregs::read_from_bytes(bytes).unwrap(),
            ("KVM_SET_REGS", Some((_, regs))) => *regs = kvm_regs::read_from_bytes(bytes).unwrap(),
            (name, _) if name.starts_with("KVM_SEV_") => return self.snp(name, bytes, nested),
            (name, _) if name.starts_with("KVM_TDX_") => return self.tdx(name, bytes, nested),
            _ => {}
        }
        Ok(0)
    }
}

impl Part for Played {
    fn answer(&mut self, on: &str, request: Request, argument: Argument<'_, '_>) -> io::Result<u64> {
        match argument {
            Argument::Value(value) => Ok(match request.name {
                "KVM_CHECK_EXTENSION" => self.capability(value),
                "KVM_GET_VCPU_MMAP_SIZE" => RUN_BYTES as u64,
                _ => 0,
            }),
            Argument::Structure(bytes, nested) => self.structure(on, request.name, bytes, nested),
        }
    }

    fn run(&mut self, _on: &str, page: &mut RunPage) -> io::Result<()> {
        assert!(self.finished, "KVM_RUN before the launch is finished");
        let mut seen = vec![0; page.bytes()];
        page.read(0, &mut seen)?;
        self.entered.push(seen);
        let (bytes, errno) = self.exits.pop_front().expect("an exit to play");
        bytes.iter().try_for_each(|(offset, bytes)| page.write(*offset, bytes))?;
        if errno == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(errno)) }
    }
}

fn bytes<'a>(nested: &'a mut Nested<'_>) -> &'a mut [u8] {
    match &mut nested.target {
        Target::Bytes(bytes) => bytes,
        Target::Memory(_) => panic!("expected bytes, found memory"),
    }
}

fn put(into: &mut [u8], offset: usize, bytes: &[u8]) {
    into[offset..offset + bytes.len()].copy_from_slice(bytes);
}

fn record(operation: &str, gpa: u64) -> [u8; 128] {
    let mut record = [0; 128];
    put(&mut record, 0, operation.as_bytes());
    put(&mut record, 16, &gpa.to_le_bytes());
    record
}

/// The save area that KVM makes of registers (AMD64 architecture manual, volume 2, table B-4; Linux
/// `sev_es_sync_vmsa`): processors without a history, running a guest.
fn save_area(sregs: &kvm_sregs, regs: &kvm_regs) -> [u8; 4096] {
    let mut area = [0; 4096];
    let segments = [sregs.es, sregs.cs, sregs.ss, sregs.ds, sregs.fs, sregs.gs];
    for (index, segment) in segments.iter().enumerate() {
        put(&mut area, 16 * index, &selector(segment));
    }
    put(&mut area, 0x70, &selector(&sregs.ldt));
    put(&mut area, 0x90, &selector(&sregs.tr));
    for (offset, table) in [(0x60, sregs.gdt), (0x80, sregs.idt)] {
        put(&mut area, offset + 4, &u32::from(table.limit).to_le_bytes());
        put(&mut area, offset + 8, &table.base.to_le_bytes());
    }
    area[0xCB] = sregs.ss.dpl;
    let registers = [
        (0xD0, sregs.efer | 1 << 12),
        (0x148, sregs.cr4 | 1 << 6),
        (0x150, sregs.cr3),
        (0x158, sregs.cr0),
        (0x160, 0x400),
        (0x168, 0xFFFF_0FF0),
        (0x170, regs.rflags | 2),
        (0x178, regs.rip),
        (0x1D8, regs.rsp),
        (0x1F8, regs.rax),
        (0x268, 0x0007_0406_0007_0406),
        (0x308, regs.rcx),
        (0x310, regs.rdx),
        (0x318, regs.rbx),
        (0x328, regs.rbp),
        (0x330, regs.rsi),
        (0x338, regs.rdi),
        (0x340, regs.r8),
        (0x348, regs.r9),
        (0x350, regs.r10),
        (0x358, regs.r11),
        (0x360, regs.r12),
        (0x368, regs.r13),
        (0x370, regs.r14),
        (0x378, regs.r15),
        (0x3B0, 1),
        (0x3E8, 1),
    ];
    registers.iter().for_each(|(offset, value)| put(&mut area, *offset, &value.to_le_bytes()));
    put(&mut area, 0x408, &0x1F80_u32.to_le_bytes());
    put(&mut area, 0x410, &0x37F_u16.to_le_bytes());
    area
}

fn selector(segment: &kvm_segment) -> [u8; 16] {
    let bits = [
        (segment.type_, 0),
        (segment.s, 4),
        (segment.dpl, 5),
        (segment.present & u8::from(segment.unusable == 0), 7),
        (segment.avl, 8),
        (segment.l, 9),
        (segment.db, 10),
        (segment.g, 11),
    ];
    let attributes = bits.iter().fold(0_u16, |all, (value, at)| all | u16::from(*value) << at);
    let mut selector = [0; 16];
    put(&mut selector, 0, &segment.selector.to_le_bytes());
    put(&mut selector, 2, &attributes.to_le_bytes());
    put(&mut selector, 4, &segment.limit.to_le_bytes());
    put(&mut selector, 8, &segment.base.to_le_bytes());
    selector
}
