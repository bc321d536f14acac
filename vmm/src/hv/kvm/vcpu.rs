//! A virtual CPU of KVM.

use std::io;

use kvm_bindings::{CpuId, Msrs, kvm_msr_entry};
use kvm_ioctls::{VcpuExit, VcpuFd};
use launch::image::Start;

use super::{call, registers};
use crate::hv::{Exit, HvError, Vcpu};

/// `IA32_MTRR_DEF_TYPE`: MTRRs on, memory write-back unless said otherwise.
const MSR_MTRR_DEF_TYPE: u32 = 0x2FF;
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;
/// `IA32_MISC_ENABLE`: fast string operations.
const MSR_MISC_ENABLE: u32 = 0x1A0;
const MISC_ENABLE_FAST_STRING: u64 = 1;

/// A virtual CPU.
#[derive(Debug)]
pub struct KvmVcpu {
    fd: VcpuFd,
}

impl KvmVcpu {
    pub(super) fn new(fd: VcpuFd, cpuid: &CpuId) -> Result<Self, HvError> {
        fd.set_cpuid2(cpuid).map_err(call("KVM_SET_CPUID2"))?;
        let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
        let msrs = [
            entry(MSR_MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK),
            entry(MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        ];
        let msrs = Msrs::from_entries(&msrs).map_err(|_| HvError::Cpuid)?;
        fd.set_msrs(&msrs).map_err(call("KVM_SET_MSRS"))?;
        Ok(Self { fd })
    }
}

impl Vcpu for KvmVcpu {
    fn set_start(&mut self, start: &Start) -> Result<(), HvError> {
        let mut sregs = self.fd.get_sregs().map_err(call("KVM_GET_SREGS"))?;
        let regs = match start {
            Start::Native(context) => registers::native(context, &mut sregs),
            Start::Snp { vmsa, .. } => registers::save_area(vmsa, &mut sregs),
            Start::Reset => return Ok(()),
        };
        self.fd.set_sregs(&sregs).map_err(call("KVM_SET_SREGS"))?;
        self.fd.set_regs(&regs).map_err(call("KVM_SET_REGS"))
    }

    fn run(&mut self) -> Result<Exit<'_>, HvError> {
        let exit = match self.fd.run() {
            Ok(exit) => exit,
            Err(errno) if matches!(errno.errno(), libc::EINTR | libc::EAGAIN) => return Ok(Exit::Again),
            Err(errno) => {
                let source = io::Error::from_raw_os_error(errno.errno());
                return Err(HvError::Call { call: "KVM_RUN", source });
            }
        };
        Ok(match exit {
            VcpuExit::IoOut(port, data) => Exit::PortOut(port, data),
            VcpuExit::IoIn(port, data) => Exit::PortIn(port, data),
            VcpuExit::MmioRead(gpa, data) => Exit::MmioRead(gpa, data),
            VcpuExit::MmioWrite(gpa, data) => Exit::MmioWrite(gpa, data),
            // The I/O APIC's lines are edge-triggered: an end of interrupt has no consequence.
            VcpuExit::IoapicEoi(_) | VcpuExit::Intr => Exit::Again,
            VcpuExit::Shutdown => Exit::Shutdown,
            VcpuExit::FailEntry(reason, cpu) => {
                Exit::Failed(format!("processor {cpu} refused entry, hardware reason {reason:#x}"))
            }
            VcpuExit::InternalError => {
                Exit::Failed("KVM met an internal error (KVM_EXIT_INTERNAL_ERROR)".into())
            }
            other => Exit::Failed(format!("KVM exit that this machine never asks for: {other:?}")),
        })
    }
}
