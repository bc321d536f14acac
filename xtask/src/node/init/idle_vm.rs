//! An idle virtual machine that the node keeps for its whole life.
//!
//! The node's kernel patches its own scheduler when the first virtual machine comes and when the last one goes
//! (static keys), and an emulated processor that runs the patched instruction at that moment can crash on it. As
//! long as one machine stays, with an APIC that is off, nothing has to be patched.

use kvm_ioctls::{Kvm, VcpuFd, VmFd};

/// Bit 11 of `IA32_APIC_BASE`: the local APIC is on.
const APIC_ENABLED: u64 = 1 << 11;

/// The machine; it never runs.
pub struct IdleVm {
    _vcpu: VcpuFd,
    _vm: VmFd,
    _kvm: Kvm,
}

impl IdleVm {
    /// Makes the machine.
    ///
    /// # Errors
    /// When the node has no usable KVM.
    pub fn create() -> Result<Self, kvm_ioctls::Error> {
        let kvm = Kvm::new()?;
        let vm = kvm.create_vm()?;
        vm.create_irq_chip()?;
        let vcpu = vm.create_vcpu(0)?;
        let mut registers = vcpu.get_sregs()?;
        registers.apic_base &= !APIC_ENABLED;
        vcpu.set_sregs(&registers)?;
        Ok(Self { _vcpu: vcpu, _vm: vm, _kvm: kvm })
    }
}
