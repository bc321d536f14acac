//! KVM (Linux `Documentation/virt/kvm/api.rst`).
//!
//! The local APICs are the kernel's, the I/O APIC is ours (split irqchip): the arrangement that confidential
//! machines and other hypervisors need too.

mod cpuid;
mod isolated;
mod registers;
mod vcpu;
mod vm;

use std::io;

use super::HvError;

pub use isolated::IsolatedVm;
pub use vcpu::KvmVcpu;
pub use vm::Vm;

fn call(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> HvError {
    move |errno| HvError::Call { call, source: io::Error::from_raw_os_error(errno.errno()) }
}
