//! Monitors that are compared: each starts the same kernel on the same root file system with the same memory.

mod cloud_hypervisor;
mod firecracker;
mod product;
mod program;
mod qemu;
mod uvm;

use std::path::{Path, PathBuf};

use anyhow::Result;

pub use cloud_hypervisor::CloudHypervisor;
pub use firecracker::Firecracker;
pub use product::Product;
pub use qemu::Qemu;
pub use uvm::Uvm;

/// What every machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// Virtual processors.
    pub vcpus: u32,
}

impl Size {
    /// Guest memory in KiB.
    #[must_use]
    pub const fn memory_kib(self) -> u64 {
        self.memory_mib * 1024
    }
}

/// A step of a boot and when it was reached, in microseconds since just before the monitor's process was started.
pub type Step = (&'static str, u64);

/// From the start of the monitor's process to its guest's first process: what all monitors are compared by.
pub const INIT: &str = "start to init";
/// From the start of the monitor's process to an agent that takes requests.
pub const READY: &str = "start to agent ready";

/// A running machine. It ends when this is dropped.
pub trait Machine {
    /// Its monitor's process.
    fn pid(&self) -> u32;
}

/// A machine that has booted.
pub struct Booted {
    /// It runs on.
    pub machine: Box<dyn Machine>,
    /// How it got there.
    pub steps: Vec<Step>,
}

/// One who runs machines.
pub trait Monitor {
    /// What it is called in every table.
    fn name(&self) -> String;
    /// What is started; `FOLDER` stands for a folder that is new every time.
    fn command(&self) -> Vec<String>;
    /// Starts a machine, with whatever it needs in `folder`, and waits for its last step.
    ///
    /// # Errors
    /// When it does not get there.
    fn boot(&self, folder: &Path) -> Result<Booted>;
}

/// Monitors of other projects, as the command line named them.
#[derive(Debug, Clone, Default)]
pub struct Others {
    /// Cloud Hypervisor's program.
    pub cloud_hypervisor: Option<PathBuf>,
    /// A kernel for it that knows PCI disks, which the product's does not.
    pub pci_kernel: Option<PathBuf>,
    /// Firecracker's program.
    pub firecracker: Option<PathBuf>,
    /// The kernel as an ELF file, which is the only form that Firecracker takes.
    pub vmlinux: Option<PathBuf>,
}
