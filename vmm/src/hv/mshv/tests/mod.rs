//! Launches and exits on a hypervisor that is played.

mod bindings;
mod built;
mod exits;
mod launches;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;

use ::launch::digest::LaunchDigest;
use ::launch::image::{Image, Page, PageKind, Platform, Start};
use ::launch::plan::HostData;
use ::launch::snp::{Backend, Chain, PageType, steps, vmsa};
use vm_memory::{Bytes as _, MmapRegion, VolatileMemory as _};
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::{MshvVm, abi};
use crate::hv::seam::recorder::{Part, Recorder};
use crate::hv::seam::{Argument, Request, RunPage, Target};
use crate::hv::{HvError, Launch, Run, Vcpu, Vm as _};

const RAM_GPA: u64 = 0x10_0000;
const RAM_BYTES: usize = 0x10_0000;
const WINDOW_GPA: u64 = 0xC000_0000;
const VMSA_GPA: u64 = 0x14_7000;
const POLICY: u64 = 0x3_0000;
const HOST_DATA: HostData = HostData([0xA5; 32]);

/// Hypervisor, kernel and secure processor in one.
#[derive(Debug, Default)]
struct Hypervisor {
    /// Guest memory by page, as it was when the host lost it.
    pages: BTreeMap<u64, Vec<u8>>,
    chain: Chain,
    secure: bool,
    /// The measurement, once the launch is finished.
    digest: Option<LaunchDigest>,
    /// What the next runs come back with.
    messages: VecDeque<io::Result<abi::Message>>,
    /// Which hypercall (code, property or register) the hypervisor refuses, with which status.
    refuse: Option<(u16, u32, u16)>,
    /// Pages that it does not let the host have.
    not_shared: bool,
    /// Whether the secure processor refuses guests' messages.
    busy: bool,
}

impl Part for Hypervisor {
    fn answer(&mut self, on: &str, request: Request, argument: Argument<'_, '_>) -> io::Result<u64> {
        let Argument::Structure(bytes, nested) = argument else {
            assert_eq!(request, abi::INITIALIZE_PARTITION);
            return Ok(0);
        };
        match request {
            abi::ROOT_HVCALL => self.hypercall(bytes, nested),
            abi::SET_GUEST_MEMORY => {
                let region = abi::MemoryRegion::ref_from_bytes(bytes).unwrap();
                let Target::Memory(memory) = &nested[0].target else { panic!("memory without memory") };
                assert_eq!((memory.size() as u64, nested[0].offset), (region.bytes.get(), 16));
                if region.flags == abi::MEMORY_READ_WRITE_EXECUTE {
                    self.take(region.guest_pfn.get(), memory);
                }
                Ok(0)
            }
            abi::IMPORT_ISOLATED_PAGES => {
                self.import(bytes);
                Ok(0)
            }
            abi::COMPLETE_ISOLATED_IMPORT => {
                assert!(self.secure && self.digest.is_none(), "finished before it began, or twice");
                self.digest = Some(self.chain.digest());
                Ok(0)
            }
            abi::RUN_VP => {
                assert!(self.digest.is_some(), "a virtual processor ran before the launch was finished");
                let message = self.messages.pop_front().expect("a message for each run")?;
                bytes.copy_from_slice(message.as_bytes());
                Ok(0)
            }
            abi::MODIFY_GPA_HOST_ACCESS if self.not_shared => Err(io::Error::from_raw_os_error(libc::EPERM)),
            abi::ISSUE_PSP_GUEST_REQUEST if self.busy => Err(io::Error::from_raw_os_error(libc::EIO)),
            abi::CREATE_PARTITION | abi::CREATE_VP | abi::MODIFY_GPA_HOST_ACCESS => Ok(0),
            abi::ISSUE_PSP_GUEST_REQUEST | abi::SEV_SNP_AP_CREATE => Ok(0),
            other => panic!("{} on {on}: not an ioctl of this backend", other.name),
        }
    }

    fn run(&mut self, _on: &str, _page: &mut RunPage) -> io::Result<()> {
        unreachable!("MSHV runs virtual processors by an ioctl with an argument")
    }
}

impl Hypervisor {
    fn hypercall(&mut self, bytes: &mut [u8], nested: &mut [crate::hv::seam::Nested<'_>]) -> io::Result<u64> {
        let call = abi::Hypercall::mut_from_bytes(bytes).unwrap();
        let mut buffers = nested.iter_mut().map(|nested| match &mut nested.target {
            Target::Bytes(bytes) => (nested.offset, &mut **bytes),
            Target::Memory(_) => panic!("memory where bytes belong"),
        });
        let (at, input) = buffers.next().unwrap();
        assert_eq!((at, input.len()), (16, usize::from(call.input_bytes.get())));
        let output = buffers.next();
        assert_eq!(output.as_ref().map_or(0, |(_, bytes)| bytes.len()), usize::from(call.output_bytes.get()));
        let code = call.code.get();
        let name = match code {
            abi::HVCALL_SET_VP_REGISTERS => abi::Register::ref_from_bytes(input).unwrap().name.get(),
            _ => u32::from_le_bytes(input[8..12].try_into().unwrap()),
        };
        if let Some((refused, of, status)) = self.refuse
            && (refused, of) == (code, name)
        {
            call.status = status.into();
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let lists = [abi::HVCALL_SET_VP_REGISTERS, abi::HVCALL_GET_VP_CPUID_VALUES];
        assert_eq!(call.repetitions.get(), u16::from(lists.contains(&code)));
        match (code, output) {
            (abi::HVCALL_GET_PARTITION_PROPERTY, Some((24, output))) => {
                output.copy_from_slice(&u64::from(name).to_le_bytes());
            }
            (abi::HVCALL_GET_VP_CPUID_VALUES, Some((24, output))) => {
                // Each leaf names itself, and bit 51 is the encryption bit.
                output.copy_from_slice(&[0; 16]);
                output[..4].copy_from_slice(&input[24..28]);
                output[4] = 51;
            }
            (abi::HVCALL_SET_PARTITION_PROPERTY, None) => {
                let property = abi::Property::ref_from_bytes(input).unwrap();
                self.secure |= name == abi::ISOLATION_STATE.code && property.value.get() == 3;
            }
            (abi::HVCALL_SET_VP_REGISTERS | abi::HVCALL_ASSERT_VIRTUAL_INTERRUPT, None) => {}
            (other, _) => panic!("hypercall {other:#x}"),
        }
        Ok(0)
    }

    /// Takes memory from the host, content and all.
    fn take(&mut self, pfn: u64, memory: &MmapRegion) {
        let mut bytes = vec![0; memory.size()];
        memory.as_volatile_slice().read_slice(&mut bytes, 0).unwrap();
        self.pages.extend((pfn..).zip(bytes.chunks(4096).map(<[u8]>::to_vec)));
    }

    fn import(&mut self, bytes: &[u8]) {
        assert!(self.secure && self.digest.is_none(), "pages outside of a launch");
        let (head, pages) = abi::PageList::ref_from_prefix(bytes).unwrap();
        assert_eq!(head.count.get(), pages.len() as u64 / 8);
        let page_type = match head.kind {
            0 => PageType::Normal,
            1 => PageType::Vmsa,
            2 => PageType::Zero,
            3 => PageType::Unmeasured,
            4 => PageType::Secrets,
            5 => PageType::Cpuid,
            other => panic!("page type {other}"),
        };
        for pfn in pages.chunks(8).map(|pfn| u64::from_le_bytes(pfn.try_into().unwrap())) {
            self.chain.extend(page_type, pfn * 4096, &self.pages[&pfn]);
        }
    }
}

/// An image with every kind of page, out of the order of their addresses.
fn image() -> Image {
    let page = |gpa, kind, fill| Page { gpa, kind, data: vec![fill; 4096].into() };
    let empty = |gpa, kind| Page { gpa, kind, data: Vec::new().into() };
    Image {
        platform: Platform::Snp,
        pages: vec![
            page(0x10_2000, PageKind::Measured, 3),
            empty(0x14_6000, PageKind::Secrets),
            page(0x10_0000, PageKind::Measured, 1),
            page(0x10_1000, PageKind::Measured, 2),
            Page { gpa: 0x14_5000, kind: PageKind::Cpuid, data: cpuid_page().into() },
            page(0x14_4000, PageKind::Unmeasured, 4),
            empty(0x14_2000, PageKind::Measured),
        ],
        parameters: Vec::new(),
        start: Start::Snp { gpa: VMSA_GPA, vmsa: Box::new(vmsa::base()) },
        guest_policy: Some(POLICY),
        id_block: None,
    }
}

/// A list of two leaves.
fn cpuid_page() -> Vec<u8> {
    let mut page: abi::CpuidPage = abi::zeroed();
    page.count = 2.into();
    page.entries[0].eax_in = 1.into();
    page.entries[1].eax_in = 0x8000_001F.into();
    page.as_bytes().to_vec()
}

/// The pages that a loader makes of an image: neighbours of one kind together.
fn runs(image: &Image) -> Vec<Run> {
    let Start::Snp { vmsa, .. } = &image.start else { panic!("no save area") };
    let save_area = vmsa::page(vmsa);
    let mut runs: Vec<Run> = Vec::new();
    for step in steps(image, Backend::Mshv, &save_area) {
        let mut bytes = step.data.to_vec();
        bytes.resize(4096, 0);
        match runs.last_mut() {
            Some(run) if run.page_type == step.page_type && run.gpa + run.bytes.len() as u64 == step.gpa => {
                run.bytes.extend(bytes);
            }
            _ => runs.push(Run { gpa: step.gpa, page_type: step.page_type, bytes }),
        }
    }
    runs
}

/// A machine with memory and two virtual processors, launched.
fn launch(kernel: &Arc<Recorder<Hypervisor>>, image: &Image) -> Result<MshvVm, HvError> {
    let vm = MshvVm::create(Arc::clone(kernel) as _, 2, POLICY)?;
    vm.map_private(RAM_GPA, Arc::new(MmapRegion::new(RAM_BYTES).unwrap()))?;
    let mut vcpus: Vec<Box<dyn Vcpu>> = vec![vm.create_vcpu(0)?, vm.create_vcpu(1)?];
    let runs = runs(image);
    vm.launch(&Launch { image, runs: &runs, host_data: HOST_DATA, vcpus: 2 }, &mut vcpus)?;
    Ok(vm)
}
