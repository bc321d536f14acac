//! SEV-SNP on KVM (kernel 6.11 and later; Linux `Documentation/virt/kvm/x86/amd-memory-encryption.rst`).
//!
//! The launch: `INIT2` when the machine is made, then `LAUNCH_START` with the image's policy, all RAM private,
//! one `LAUNCH_UPDATE` for each run of pages, every virtual CPU's registers set, `LAUNCH_FINISH` with the host
//! data. KVM makes the save areas from the registers and has them measured when the launch is finished.

mod abi;
mod cpuid_page;

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

use igvm::snp_defs::{SevSelector, SevVmsa};
use kvm_bindings::{CpuId, kvm_regs, kvm_sregs};
use launch::image::Start;
use launch::layout::PAGE_SIZE;
use launch::snp::{PageType, vmsa};
use zerocopy::{FromBytes, FromZeros as _, Immutable, IntoBytes};

use super::super::registers;
use super::abi::{GET_SREGS, SET_REGS, SET_SREGS, memory_encrypt_op};
use super::machine::{Machine, MachineType};
use super::pages::Pages;
use super::words;
use crate::hv::id_block::IdBlock;
use crate::hv::seam::{Argument, Nested};
use crate::hv::{HvError, Launch, Run, Vcpu};

/// The type of machine.
pub const MACHINE_TYPE: MachineType =
    MachineType { number: 4, needed: "KVM_CAP_VM_TYPES with SEV-SNP (Linux 6.11, kvm_amd.sev_snp=1)" };

const SEV_DEVICE: &str = "/dev/sev";
const SEV_PATH: &CStr = c"/dev/sev";
/// Where an image's page tables have the encryption bit.
const C_BIT: u32 = 51;
const LEAF_ENCRYPTION: u32 = 0x8000_001F;
/// How often one import may be interrupted before it counts as failed.
const MAX_INTERRUPTIONS: u32 = 1000;

/// The secure processor, for one machine.
#[derive(Debug)]
pub struct Snp {
    sev: OwnedFd,
}

/// A command that was refused.
#[derive(Debug)]
struct Refusal {
    call: &'static str,
    source: io::Error,
    /// The firmware's status, 0 where it was not asked.
    status: u32,
}

impl From<Refusal> for HvError {
    fn from(Refusal { call, source, status }: Refusal) -> Self {
        match status {
            0 => Self::Call { call, source },
            status => Self::Processor { call, source, status: words::firmware_status(status) },
        }
    }
}

impl Snp {
    /// Makes `machine` an SEV-SNP one. It has no virtual CPUs yet.
    pub fn init(machine: &Machine) -> Result<Self, HvError> {
        let cpuid = machine.supported()?;
        let found = cpuid.as_slice().iter().find(|entry| entry.function == LEAF_ENCRYPTION);
        let found = found.map_or(0, |entry| entry.ebx & 0x3F);
        if found != C_BIT {
            return Err(HvError::Launch(format!("encryption bit: expected bit {C_BIT}, found {found}")));
        }
        let sev = machine.kernel().open(SEV_PATH);
        let sev = sev.map_err(|source| HvError::Open { path: SEV_DEVICE, source })?;
        let snp = Self { sev };
        let ghcb_version = abi::GHCB_VERSION;
        let mut init = abi::SevInit { ghcb_version, ..abi::SevInit::new_zeroed() };
        snp.command(machine, abi::INIT2, &mut init, Vec::new())?;
        Ok(snp)
    }

    /// Has KVM ask for certificates when the guest wants a report. False where this kernel never asks.
    pub fn enable_certificates(&self, machine: &Machine) -> Result<bool, HvError> {
        match self.send(machine, abi::ENABLE_REQ_CERTS, &mut []) {
            Ok(()) => Ok(true),
            Err(refusal) if refusal.source.raw_os_error() == Some(libc::EINVAL) => Ok(false),
            Err(refusal) => Err(refusal.into()),
        }
    }

    /// Launches: afterwards virtual CPUs may run.
    pub fn launch(
        &self,
        machine: &Machine,
        launch: &Launch<'_>,
        shown: &CpuId,
        vcpus: &mut [Box<dyn Vcpu>],
    ) -> Result<(), HvError> {
        let missing = |what| HvError::Launch(format!("image: expected {what}, found none"));
        let policy = launch.image.guest_policy.ok_or_else(|| missing("an SEV-SNP guest policy"))?;
        let Start::Snp { vmsa: first, .. } = &launch.image.start else {
            return Err(missing("an SEV-SNP save area"));
        };
        check_representable(first)?;
        let mut start = abi::LaunchStart { policy, ..abi::LaunchStart::new_zeroed() };
        self.command(machine, abi::LAUNCH_START, &mut start, Vec::new())?;
        machine.make_ram_private()?;
        for run in launch.runs {
            match run.page_type {
                PageType::Cpuid => self.import_cpuid(machine, run, shown)?,
                PageType::Normal | PageType::Zero | PageType::Unmeasured | PageType::Secrets => {
                    self.import(machine, run, &mut Pages::of(machine, run)?)?;
                }
                PageType::Vmsa => {
                    return Err(HvError::Launch(
                        "KVM makes save areas itself: found one in the image".into(),
                    ));
                }
            }
        }
        let reset = Start::Snp { gpa: vmsa::KVM_GPA, vmsa: Box::new(vmsa::reset(vmsa::RESET_RDX)) };
        let states = std::iter::once(&launch.image.start).chain(std::iter::repeat(&reset));
        for (vcpu, state) in vcpus.iter_mut().zip(states) {
            vcpu.set_start(state)?;
        }
        self.finish(machine, launch)
    }

    /// Imports a run: one call, and as many more as KVM leaves something to do.
    fn import(&self, machine: &Machine, run: &Run, pages: &mut Pages) -> Result<(), HvError> {
        Ok(self.update(machine, run, pages)?)
    }

    fn update(&self, machine: &Machine, run: &Run, pages: &mut Pages) -> Result<(), Refusal> {
        let (mut gfn_start, mut rest) = (run.gpa / PAGE_SIZE, pages.bytes());
        let mut interruptions = 0;
        while !rest.is_empty() {
            let len = rest.len() as u64;
            let page_type = run.page_type as u8;
            let mut update =
                abi::LaunchUpdate { gfn_start, len, page_type, ..abi::LaunchUpdate::new_zeroed() };
            let pointer = Nested::bytes_within(0, abi::LAUNCH_UPDATE_UADDR, rest);
            let result = self.command(machine, abi::LAUNCH_UPDATE, &mut update, vec![pointer]);
            let done = len.checked_sub(update.len).filter(|done| done.is_multiple_of(PAGE_SIZE));
            let refusal = |source| Refusal { call: abi::LAUNCH_UPDATE.1, source, status: 0 };
            match result {
                Ok(()) => {
                    let done = done.filter(|done| *done != 0).and_then(|done| usize::try_from(done).ok());
                    let done = done.ok_or_else(|| refusal(io::Error::other("no page was imported")))?;
                    rest = &mut rest[done..];
                    gfn_start += done as u64 / PAGE_SIZE;
                }
                Err(error) if is_interruption(&error.source) && interruptions < MAX_INTERRUPTIONS => {
                    interruptions += 1;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Imports the CPUID page. Where the firmware disagrees, what it shows instead is checked and imported.
    fn import_cpuid(&self, machine: &Machine, run: &Run, shown: &CpuId) -> Result<(), HvError> {
        let size = run.bytes.len() as u64;
        if size != PAGE_SIZE {
            return Err(HvError::Launch(format!("CPUID page: expected {PAGE_SIZE} bytes, found {size}")));
        }
        let bytes = cpuid_page::page(shown)?;
        let run = Run { gpa: run.gpa, page_type: run.page_type, bytes };
        let mut pages = Pages::of(machine, &run)?;
        match self.update(machine, &run, &mut pages) {
            Err(refusal) if refusal.status == abi::STATUS_INVALID_PARAM => {
                cpuid_page::check_corrected(&run.bytes, pages.bytes())?;
                log::warn!("the secure processor corrects the CPUID page");
                self.import(machine, &run, &mut pages)
            }
            result => Ok(result?),
        }
    }

    fn finish(&self, machine: &Machine, launch: &Launch<'_>) -> Result<(), HvError> {
        let host_data = launch.host_data.0;
        let mut finish = abi::LaunchFinish { host_data, ..abi::LaunchFinish::new_zeroed() };
        let policy = launch.image.guest_policy.unwrap_or_default();
        let block = launch.image.id_block.as_deref().map(|directive| IdBlock::new(directive, policy));
        let Some(IdBlock { mut block, mut auth, author_key }) = block.transpose()? else {
            return Ok(self.command(machine, abi::LAUNCH_FINISH, &mut finish, Vec::new())?);
        };
        finish.id_block_en = 1;
        finish.auth_key_en = u8::from(author_key);
        let pointers = vec![
            Nested::bytes_within(0, abi::LAUNCH_FINISH_ID_BLOCK, &mut block),
            Nested::bytes_within(0, abi::LAUNCH_FINISH_ID_AUTH, &mut *auth),
        ];
        Ok(self.command(machine, abi::LAUNCH_FINISH, &mut finish, pointers)?)
    }

    /// Gives a command with its structure to KVM and, through it, to the firmware. `pointers` are those inside
    /// `data`.
    fn command<T: FromBytes + IntoBytes + Immutable>(
        &self,
        machine: &Machine,
        command: abi::Command,
        data: &mut T,
        pointers: Vec<Nested<'_>>,
    ) -> Result<(), Refusal> {
        let mut nested = vec![Nested::bytes(abi::SEV_CMD_DATA, data.as_mut_bytes())];
        nested.extend(pointers);
        self.send(machine, command, &mut nested)
    }

    fn send(
        &self,
        machine: &Machine,
        (id, call): abi::Command,
        nested: &mut [Nested<'_>],
    ) -> Result<(), Refusal> {
        let sev_fd = self.sev.as_raw_fd().cast_unsigned();
        let mut command = abi::SevCmd { id, pad0: 0, data: 0, error: 0, sev_fd };
        let argument = Argument::Structure(command.as_mut_bytes(), nested);
        let result = machine.kernel().call(machine.vm(), memory_encrypt_op(call), argument);
        result.map(drop).map_err(|source| Refusal { call, source, status: command.error })
    }
}

fn is_interruption(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN))
}

/// Sets a virtual CPU's registers. All of them are ours, so that no measurement depends on what KVM's reset
/// state puts into RDX (the processor's model).
pub fn set_registers(machine: &Machine, vcpu: BorrowedFd<'_>, state: &SevVmsa) -> Result<(), HvError> {
    let mut sregs = kvm_sregs::default();
    machine.structure(vcpu, GET_SREGS, &mut sregs, &mut [])?;
    let mut regs: kvm_regs = registers::save_area(state, &mut sregs);
    machine.structure(vcpu, SET_SREGS, &mut sregs, &mut [])?;
    machine.structure(vcpu, SET_REGS, &mut regs, &mut [])
}

/// Checks that KVM can make this save area: whatever is not a register that can be set has to be as KVM has
/// it, or the launch would measure something else than what the image says.
fn check_representable(vmsa: &SevVmsa) -> Result<(), HvError> {
    let segment = |of: &SevSelector| SevSelector { attrib: of.attrib & 0xFFF, ..*of };
    let table = |of: &SevSelector| SevSelector { selector: 0, attrib: 0, limit: of.limit & 0xFFFF, ..*of };
    let base = vmsa::base();
    let made = SevVmsa {
        es: segment(&vmsa.es),
        cs: segment(&vmsa.cs),
        ss: segment(&vmsa.ss),
        ds: segment(&vmsa.ds),
        fs: segment(&vmsa.fs),
        gs: segment(&vmsa.gs),
        ldtr: segment(&vmsa.ldtr),
        tr: segment(&vmsa.tr),
        gdtr: table(&vmsa.gdtr),
        idtr: table(&vmsa.idtr),
        cpl: u8::try_from(vmsa.ss.attrib >> 5 & 3).unwrap_or_default(),
        efer: vmsa.efer | base.efer,
        cr0: vmsa.cr0,
        cr3: vmsa.cr3,
        cr4: vmsa.cr4 | base.cr4,
        rflags: vmsa.rflags | base.rflags,
        rip: vmsa.rip,
        rsp: vmsa.rsp,
        rax: vmsa.rax,
        rcx: vmsa.rcx,
        rdx: vmsa.rdx,
        rbx: vmsa.rbx,
        rbp: vmsa.rbp,
        rsi: vmsa.rsi,
        rdi: vmsa.rdi,
        r8: vmsa.r8,
        r9: vmsa.r9,
        r10: vmsa.r10,
        r11: vmsa.r11,
        r12: vmsa.r12,
        r13: vmsa.r13,
        r14: vmsa.r14,
        r15: vmsa.r15,
        ..base
    };
    let differs = made.as_bytes().iter().zip(vmsa.as_bytes()).position(|(made, asked)| made != asked);
    match differs {
        None => Ok(()),
        Some(at) => Err(HvError::Launch(format!(
            "save area: the image asks for something at offset {at:#x} that KVM cannot set"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_save_area_that_kvm_cannot_make_is_refused() {
        assert!(check_representable(&vmsa::reset(0)).is_ok());
        let breaks: [fn(&mut SevVmsa); 5] = [
            |vmsa| vmsa.vmpl = 1,
            |vmsa| vmsa.xcr0 = 3,
            |vmsa| vmsa.cr2 = 1,
            |vmsa| vmsa.efer = 0,
            |vmsa| vmsa.cs.attrib |= 0x1000,
        ];
        for break_it in breaks {
            let mut vmsa = vmsa::reset(0);
            break_it(&mut vmsa);
            let error = check_representable(&vmsa).unwrap_err().to_string();
            assert!(error.contains("that KVM cannot set"), "{error}");
        }
    }
}
