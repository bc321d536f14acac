//! The hypervisor's interface, in words of this project: a machine, its virtual CPUs, and its launch.
//!
//! Types of a particular hypervisor never leave its module. What only one of them knows (page states, memory
//! faults, requests for certificates) it answers by itself and enters the guest again.

#[cfg(test)]
mod built;
pub mod id_block;
pub mod kvm;
pub mod mshv;
pub mod seam;

use std::path::Path;
use std::sync::Arc;

use launch::image::{Image, Start};
use launch::plan::{HostData, Hypervisor, Tee};
use launch::snp::{Backend, PageType};
use vm_memory::MmapRegion;
use vmm_sys_util::eventfd::EventFd;

use mshv::MshvVm;
use seam::linux::Linux;

/// Linux's KVM.
const KVM_DEVICE: &str = "/dev/kvm";
/// The Microsoft Hypervisor's root partition interface.
const MSHV_DEVICE: &str = "/dev/mshv";

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
    /// The guest asked for its own end, for this reason.
    Terminated(String),
    /// The hypervisor cannot go on with this virtual CPU.
    Failed(String),
}

/// A run of contiguous private pages of one kind, as one import call takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Guest-physical address of the first page.
    pub gpa: u64,
    /// How the pages are imported.
    pub page_type: PageType,
    /// Their content: a multiple of 4096 bytes, at least one page.
    pub bytes: Vec<u8>,
}

/// What a launch is made of, beyond memory slots.
#[derive(Debug)]
pub struct Launch<'a> {
    /// The image: the first virtual CPU's state, the guest policy, the ID block.
    pub image: &'a Image,
    /// Private pages, in the order in which they are imported and measured. Empty where nothing is private:
    /// the image lies in RAM then.
    pub runs: &'a [Run],
    /// What the launch binds to the guest.
    pub host_data: HostData,
    /// Number of virtual CPUs; as many have been created.
    pub vcpus: u32,
}

/// A virtual machine. What it has been given lives until it is dropped.
pub trait Vm: Send + Sync {
    /// In which order this hypervisor imports pages, and who makes the virtual CPUs' save areas.
    fn backend(&self) -> Backend;

    /// Backs guest memory from `gpa` on with memory that the host shares. Returns the slot.
    ///
    /// # Errors
    /// When the hypervisor refuses the range.
    fn map(&self, gpa: u64, memory: Arc<MmapRegion>) -> Result<u32, HvError>;

    /// Backs guest memory from `gpa` on with RAM: private to the guest where it is isolated, with `shared` behind
    /// the pages that it converts. The same as [`Vm::map`] where nothing is isolated. Returns the slot.
    ///
    /// # Errors
    /// When the hypervisor refuses the range, or has no private memory for it.
    fn map_private(&self, gpa: u64, shared: Arc<MmapRegion>) -> Result<u32, HvError>;

    /// Takes the memory of `slot` away from the guest and lets go of it.
    ///
    /// # Errors
    /// When the hypervisor refuses.
    fn unmap(&self, slot: u32) -> Result<(), HvError>;

    /// Makes guest writes of `value` (32 bits) to `gpa` signal `event` without a virtual CPU coming back.
    ///
    /// # Errors
    /// When the hypervisor refuses.
    fn signal_on_write(&self, gpa: u64, value: u32, event: &EventFd) -> Result<(), HvError>;

    /// Delivers a message-signalled interrupt.
    ///
    /// # Errors
    /// When the hypervisor refuses the message.
    fn send_msi(&self, address: u64, data: u32) -> Result<(), HvError>;

    /// Whether the host has to [acquire](Vm::acquire) memory that the guest shares before it touches it.
    fn must_acquire(&self) -> bool {
        false
    }

    /// Makes sure that the host may read and write `length` bytes of memory from `gpa` on. Where
    /// [nobody has to ask](Vm::must_acquire), there is nothing to do.
    ///
    /// # Errors
    /// When the guest has not shared that memory.
    fn acquire(&self, _gpa: u64, _length: u64) -> Result<(), HvError> {
        Ok(())
    }

    /// Creates virtual CPU `id`; its APIC id is the same number.
    ///
    /// # Errors
    /// When the hypervisor refuses.
    fn create_vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>, HvError>;

    /// Imports the runs in order, sets the virtual CPUs' registers, and finishes the launch. Called once, before
    /// any of `vcpus`, which are all there are, has run.
    ///
    /// # Errors
    /// When the hypervisor or the secure processor refuses; the machine is of no use then.
    fn launch(&self, launch: &Launch<'_>, vcpus: &mut [Box<dyn Vcpu>]) -> Result<(), HvError>;
}

/// A virtual CPU, driven by one thread.
pub trait Vcpu: Send {
    /// Sets the state that the virtual CPU starts in. [`Start::Reset`] is the state that it is created in.
    ///
    /// # Errors
    /// When the hypervisor refuses the state.
    fn set_start(&mut self, start: &Start) -> Result<(), HvError>;

    /// Runs the guest until it needs something.
    ///
    /// # Errors
    /// When the hypervisor call itself fails.
    fn run(&mut self) -> Result<Exit<'_>, HvError>;
}

/// What a hypervisor has to know before it makes a machine.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Whose machine it is to be.
    pub hypervisor: Hypervisor,
    /// How it is isolated.
    pub tee: Tee,
    /// Number of virtual CPUs.
    pub vcpus: u32,
    /// SEV-SNP: the policy that the guest is launched with.
    pub guest_policy: Option<u64>,
    /// What the launch binds to the guest: a trust domain has to know it from the start.
    pub host_data: HostData,
}

/// Makes a machine without memory and virtual CPUs.
///
/// # Errors
/// When there is no such hypervisor, it cannot isolate machines in this way, or it refuses.
pub fn open(settings: &Settings) -> Result<Arc<dyn Vm>, HvError> {
    let mshv_alone = || !Path::new(KVM_DEVICE).exists() && Path::new(MSHV_DEVICE).exists();
    match settings.hypervisor {
        Hypervisor::Auto if mshv_alone() => open_mshv(settings),
        Hypervisor::Auto | Hypervisor::Kvm => kvm::open(settings),
        Hypervisor::Mshv => open_mshv(settings),
    }
}

fn open_mshv(settings: &Settings) -> Result<Arc<dyn Vm>, HvError> {
    match settings.tee {
        Tee::Snp => {
            let policy = settings.guest_policy.ok_or_else(|| HvError::Refused {
                what: "launch on MSHV",
                expected: "a SEV-SNP guest policy in the image".into(),
                found: "none".into(),
            })?;
            Ok(Arc::new(MshvVm::create(Arc::new(Linux), settings.vcpus, policy)?))
        }
        tee @ (Tee::None | Tee::Sim | Tee::Tdx) => {
            Err(HvError::Unsupported { hypervisor: "the Microsoft Hypervisor", tee })
        }
    }
}

/// Why the hypervisor could not do something.
#[derive(Debug, thiserror::Error)]
pub enum HvError {
    /// There is no hypervisor to be had.
    #[error("cannot open {path}: {source} (is the hypervisor available, and may this user use it?)")]
    Open {
        /// The device.
        path: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// This machine monitor has no way to isolate a machine so on this hypervisor.
    #[error("isolation {tee} on {hypervisor}: not supported by this machine monitor")]
    Unsupported {
        /// Its name.
        hypervisor: &'static str,
        /// The isolation asked for.
        tee: Tee,
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
    /// A call failed, and the processor that isolates machines says why.
    #[error("{call}: {source} ({status})")]
    Processor {
        /// The command.
        call: &'static str,
        /// What the system said.
        source: std::io::Error,
        /// What the processor said.
        status: String,
    },
    /// What is to be launched cannot be launched so.
    #[error("launch: {0}")]
    Launch(String),
    /// What the hypervisor was to be given is not what it takes.
    #[error("{what}: expected {expected}, found {found}")]
    Refused {
        /// What was to be given.
        what: &'static str,
        /// The rule.
        expected: String,
        /// What there was.
        found: String,
    },
    /// The processor's feature list is longer than KVM takes.
    #[error("CPUID: more entries than KVM takes")]
    Cpuid,
}
