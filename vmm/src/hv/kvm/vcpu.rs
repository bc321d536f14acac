//! A virtual CPU of KVM.

use std::io;

use igvm_defs::IgvmNativeVpContextX64;
use kvm_bindings::{CpuId, Msrs, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::call;
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
    fn set_context(&mut self, context: &IgvmNativeVpContextX64) -> Result<(), HvError> {
        let mut sregs = self.fd.get_sregs().map_err(call("KVM_GET_SREGS"))?;
        let data = segment(
            context.data_selector,
            context.data_attributes,
            u64::from(context.data_base),
            context.data_limit,
        );
        sregs.cs = segment(
            context.code_selector,
            context.code_attributes,
            u64::from(context.code_base),
            context.code_limit,
        );
        (sregs.ds, sregs.es, sregs.fs, sregs.ss) = (data, data, data, data);
        sregs.gs = kvm_segment { base: context.gs_base, ..data };
        (sregs.gdt.base, sregs.gdt.limit) = (context.gdtr_base, context.gdtr_limit);
        (sregs.idt.base, sregs.idt.limit) = (context.idtr_base, context.idtr_limit);
        (sregs.cr0, sregs.cr3, sregs.cr4) = (context.cr0, context.cr3, context.cr4);
        sregs.efer = context.efer;
        self.fd.set_sregs(&sregs).map_err(call("KVM_SET_SREGS"))?;
        let regs = kvm_regs {
            rax: context.rax,
            rbx: context.rbx,
            rcx: context.rcx,
            rdx: context.rdx,
            rsi: context.rsi,
            rdi: context.rdi,
            rsp: context.rsp,
            rbp: context.rbp,
            r8: context.r8,
            r9: context.r9,
            r10: context.r10,
            r11: context.r11,
            r12: context.r12,
            r13: context.r13,
            r14: context.r14,
            r15: context.r15,
            rip: context.rip,
            rflags: context.rflags,
        };
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

/// A segment from an IGVM context's attributes: descriptor bits 40–55, limit bits cleared.
fn segment(selector: u16, attributes: u16, base: u64, limit: u32) -> kvm_segment {
    let bit = |at: u16| u8::from(attributes >> at & 1 != 0);
    kvm_segment {
        base,
        limit,
        selector,
        type_: u8::try_from(attributes & 0xF).unwrap_or(0),
        s: bit(4),
        dpl: u8::try_from(attributes >> 5 & 3).unwrap_or(0),
        present: bit(7),
        avl: bit(12),
        l: bit(13),
        db: bit(14),
        g: bit(15),
        unusable: 0,
        padding: 0,
    }
}
