//! The hypervisor's interface, in words of this project: what a virtual CPU does when it comes back.
//!
//! Types of a particular hypervisor never leave its module.

pub mod kvm;
pub mod seam;

use igvm_defs::IgvmNativeVpContextX64;

/// Why a virtual CPU came back.
#[derive(Debug)]
pub enum Exit<'a> {
    /// The guest wrote to an I/O port.
    PortOut(u16, &'a [u8]),
    /// The guest reads an I/O port; the answer goes into the buffer.
    PortIn(u16, &'a mut [u8]),
    /// The guest wrote to memory that is not RAM.
    MmioWrite(u64, &'a [u8]),
    /// The guest reads memory that is not RAM; the answer goes into the buffer.
    MmioRead(u64, &'a mut [u8]),
    /// Nothing to do: the hypervisor wants to be entered again.
    Again,
    /// The processor shut itself down: a triple fault.
    Shutdown,
    /// The hypervisor cannot go on with this virtual CPU.
    Failed(String),
}

/// A virtual CPU, driven by one thread.
pub trait Vcpu: Send {
    /// Sets the state in which an image starts its first virtual CPU.
    ///
    /// # Errors
    /// When the hypervisor refuses the state.
    fn set_context(&mut self, context: &IgvmNativeVpContextX64) -> Result<(), HvError>;

    /// Runs the guest until it needs something.
    ///
    /// # Errors
    /// When the hypervisor call itself fails.
    fn run(&mut self) -> Result<Exit<'_>, HvError>;
}

/// Why the hypervisor could not do something.
#[derive(Debug, thiserror::Error)]
pub enum HvError {
    /// There is no hypervisor to be had.
    #[error("cannot open {path}: {source} (is KVM available, and may this user use it?)")]
    Open {
        /// The device.
        path: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The hypervisor lacks something that a machine needs.
    #[error("KVM: expected capability {0}, found none")]
    Capability(&'static str),
    /// A call failed.
    #[error("{call}: {source}")]
    Call {
        /// The ioctl.
        call: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The processor's feature list is longer than KVM takes.
    #[error("CPUID: more entries than KVM takes")]
    Cpuid,
}
