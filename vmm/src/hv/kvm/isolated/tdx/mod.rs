//! TDX on KVM (kernel 6.16 and later; Linux `Documentation/virt/kvm/x86/intel-tdx.rst`).
//!
//! The launch: `INIT_VM` with attributes, features and MRCONFIGID when the machine is made, `INIT_VCPU` for
//! each virtual CPU, then all RAM private, one `INIT_MEM_REGION` for each run of pages, `FINALIZE_VM`.

mod abi;
mod quote;

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};

use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use launch::layout::PAGE_SIZE;
use launch::plan::HostData;
use launch::snp::PageType;
use zerocopy::{FromBytes as _, FromZeros as _, IntoBytes as _};

use super::abi::{cap, memory_encrypt_op};
use super::machine::{CpuidTable, Machine, MachineType};
use super::pages::{PAGE_BYTES, Pages};
use crate::hv::seam::{Argument, Nested};
use crate::hv::{HvError, Launch, Run};

pub use abi::{
    TDVMCALL_GET_QUOTE, TDVMCALL_GET_TD_VM_CALL_INFO, TDVMCALL_INFO_GET_QUOTE, TDVMCALL_INVALID_OPERAND,
    TDVMCALL_UNSUPPORTED,
};
pub use quote::serve as serve_quote;

/// The type of machine.
pub const MACHINE_TYPE: MachineType =
    MachineType { number: 5, needed: "KVM_CAP_VM_TYPES with TDX (Linux 6.16, kvm_intel.tdx=1)" };

/// `ATTRIBUTES.SEPT_VE_DISABLE`: a guest that touches a page which it has not accepted ends, and is not told by
/// an exception that the host could provoke. Linux insists on it. Debug (bit 0) is never asked for.
const SEPT_VE_DISABLE: u64 = 1 << 28;
/// Extended features: x87 and SSE, which are always there.
const XFAM_LEAST: u64 = 0x3;
/// And AVX and AVX-512, where the processor has them. What the host could use to look on (PT, LBR) is left out.
const XFAM_MOST: u64 = XFAM_LEAST | 0xE4;

const LEAF_ADDRESS_SIZES: u32 = 0x8000_0008;
/// Width of guest-physical addresses: the bit that makes one shared is the topmost, 47.
const GPA_WIDTH: u32 = 48;
/// How often one import may be interrupted before it counts as failed.
const MAX_INTERRUPTIONS: u32 = 1000;

/// A trust domain.
#[derive(Debug)]
pub struct Tdx {
    host_data: HostData,
}

impl Tdx {
    /// Makes `machine` a trust domain of `vcpus` virtual CPUs that are shown `shown`. It has none yet.
    pub fn init(machine: &Machine, vcpus: u32, shown: &CpuId, host_data: HostData) -> Result<Self, HvError> {
        machine.enable(cap::MAX_VCPUS, u64::from(vcpus))?;
        let (capabilities, configurable) = capabilities(machine)?;
        let (attributes, xfam) = (SEPT_VE_DISABLE, capabilities.supported_xfam & XFAM_MOST);
        let lacks = |what: &str, wanted: u64, found: u64| {
            HvError::Launch(format!("TDX module: expected {what} {wanted:#x}, found {found:#x}"))
        };
        if capabilities.supported_attrs & attributes != attributes {
            return Err(lacks("attributes", attributes, capabilities.supported_attrs));
        }
        if xfam & XFAM_LEAST != XFAM_LEAST {
            return Err(lacks("extended features", XFAM_LEAST, capabilities.supported_xfam));
        }
        let mut mrconfigid = [0; 48];
        mrconfigid[..32].copy_from_slice(&host_data.0);
        let head = abi::InitVm { attributes, xfam, mrconfigid, ..abi::InitVm::new_zeroed() };
        let mut init = head.as_bytes().to_vec();
        init.extend(CpuidTable::of(&configuration(&configurable, shown)?).0);
        let pointer = Nested::bytes(abi::TDX_CMD_DATA, &mut init);
        command(machine, machine.vm(), abi::INIT_VM, 0, &mut [pointer])?;
        Ok(Self { host_data })
    }

    /// Makes a virtual CPU one of the domain. RCX at its start is 0.
    pub fn init_vcpu(machine: &Machine, vcpu: BorrowedFd<'_>) -> Result<(), HvError> {
        command(machine, vcpu, abi::INIT_VCPU, 0, &mut [])
    }

    /// Launches: afterwards virtual CPUs may run.
    pub fn launch(&self, machine: &Machine, launch: &Launch<'_>) -> Result<(), HvError> {
        if launch.host_data != self.host_data {
            let (expected, found) = (self.host_data, launch.host_data);
            return Err(HvError::Launch(format!("MRCONFIGID: expected {expected}, found {found}")));
        }
        let first = machine.vcpus().first().cloned();
        let first = first.ok_or_else(|| HvError::Launch("expected a virtual CPU, found none".into()))?;
        machine.make_ram_private()?;
        for run in launch.runs {
            let flags = match run.page_type {
                PageType::Normal => abi::MEASURE_MEMORY_REGION,
                PageType::Unmeasured => 0,
                kind @ (PageType::Vmsa | PageType::Zero | PageType::Secrets | PageType::Cpuid) => {
                    let problem = format!("{kind:?} pages at {:#x}: TDX has no such pages", run.gpa);
                    return Err(HvError::Launch(problem));
                }
            };
            import(machine, first.as_fd(), run, flags)?;
        }
        command(machine, machine.vm(), abi::FINALIZE_VM, 0, &mut [])
    }
}

/// Imports a run: one call, and as many more as KVM leaves something to do.
fn import(machine: &Machine, vcpu: BorrowedFd<'_>, run: &Run, flags: u32) -> Result<(), HvError> {
    let mut pages = Pages::of(machine, run)?;
    let (mut gpa, mut rest) = (run.gpa, pages.bytes());
    let mut interruptions = 0;
    while !rest.is_empty() {
        let nr_pages = rest.len() as u64 / PAGE_SIZE;
        let mut region = abi::InitMemRegion { source_addr: 0, gpa, nr_pages };
        let pointers = &mut [
            Nested::bytes(abi::TDX_CMD_DATA, region.as_mut_bytes()),
            Nested::bytes_within(0, abi::INIT_MEM_REGION_SOURCE, &mut *rest),
        ];
        let result = command(machine, vcpu, abi::INIT_MEM_REGION, flags, pointers);
        let interrupted = is_interruption(&result) && interruptions < MAX_INTERRUPTIONS;
        if !interrupted {
            result?;
        }
        let done = nr_pages.checked_sub(region.nr_pages).filter(|done| *done != 0 || interrupted);
        let done = done.ok_or_else(|| HvError::Call {
            call: abi::INIT_MEM_REGION.1,
            source: io::Error::other("no page was imported"),
        })?;
        interruptions += u32::from(interrupted);
        gpa += done * PAGE_SIZE;
        // At most the number of pages in `rest`.
        rest = &mut rest[usize::try_from(done).unwrap_or(usize::MAX).saturating_mul(PAGE_BYTES)..];
    }
    Ok(())
}

fn is_interruption(result: &Result<(), HvError>) -> bool {
    let Err(HvError::Call { source, .. } | HvError::Processor { source, .. }) = result else { return false };
    matches!(source.raw_os_error(), Some(libc::EINTR | libc::EAGAIN))
}

/// What the module supports, and the processor features that can be configured.
fn capabilities(machine: &Machine) -> Result<(abi::Capabilities, Vec<kvm_cpuid_entry2>), HvError> {
    let mut answer = abi::Capabilities::new_zeroed().as_bytes().to_vec();
    answer.extend(CpuidTable::with_room().0);
    let pointer = Nested::bytes(abi::TDX_CMD_DATA, &mut answer);
    command(machine, machine.vm(), abi::CAPABILITIES, 0, &mut [pointer])?;
    let (head, table) = abi::Capabilities::read_from_prefix(&answer).map_err(|_| HvError::Cpuid)?;
    Ok((head, CpuidTable(table.to_vec()).entries()?))
}

/// The configuration of processor features: what is shown, as far as it can be configured. Everything else is
/// the module's to decide.
fn configuration(configurable: &[kvm_cpuid_entry2], shown: &CpuId) -> Result<Vec<kvm_cpuid_entry2>, HvError> {
    let configured = configurable.iter().filter_map(|mask| {
        let same = |entry: &&kvm_cpuid_entry2| (entry.function, entry.index) == (mask.function, mask.index);
        let entry = shown.as_slice().iter().find(same)?;
        let (eax, ebx) = (entry.eax & mask.eax, entry.ebx & mask.ebx);
        let (ecx, edx) = (entry.ecx & mask.ecx, entry.edx & mask.edx);
        let flags = mask.flags;
        Some(kvm_cpuid_entry2 { eax, ebx, ecx, edx, flags, ..*entry })
    });
    let configured: Vec<_> = configured.collect();
    let width = configured.iter().find(|entry| entry.function == LEAF_ADDRESS_SIZES);
    match width.map(|entry| entry.eax >> 16 & 0xFF) {
        Some(GPA_WIDTH) => Ok(configured),
        found => Err(HvError::Launch(format!(
            "TDX module: expected a configurable width of guest-physical addresses, found {found:?}"
        ))),
    }
}

/// Adapts what virtual CPUs show: addresses of 48 bits, the topmost of which makes one shared.
pub fn widen_addresses(cpuid: &mut CpuId) {
    let sizes = cpuid.as_mut_slice().iter_mut().filter(|entry| entry.function == LEAF_ADDRESS_SIZES);
    for entry in sizes {
        let physical = (entry.eax & 0xFF).max(GPA_WIDTH);
        entry.eax = entry.eax & !0xFF_00FF | GPA_WIDTH << 16 | physical;
    }
}

/// Gives a command to KVM and, through it, to the TDX module. The first of `pointers` is the command's own.
fn command(
    machine: &Machine,
    on: BorrowedFd<'_>,
    (id, call): abi::Command,
    flags: u32,
    pointers: &mut [Nested<'_>],
) -> Result<(), HvError> {
    let mut command = abi::TdxCmd { id, flags, data: 0, hw_error: 0 };
    let argument = Argument::Structure(command.as_mut_bytes(), pointers);
    let result = machine.kernel().call(on, memory_encrypt_op(call), argument);
    result.map(drop).map_err(|source| match command.hw_error {
        0 => HvError::Call { call, source },
        status => HvError::Processor { call, source, status: format!("TDX module: status {status:#x}") },
    })
}
