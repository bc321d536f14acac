//! One machine, from plan to end.
//!
//! A launch is a sequence of values, each consuming the last:
//! [`Defined`] (inputs read and checked, nothing made) → [`Populated`] (memory holds the image, devices wait,
//! no virtual CPU exists) → [`Running`]. A failure drops what there is; nothing is retried.

mod bus;
mod devices;
mod load;
mod memory;
mod ports;
mod run;

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;

use igvm_defs::IgvmNativeVpContextX64;
use launch::control::{MAX_SEGMENTS, Segment};
use launch::image::{Image, ImageError, MAX_IMAGE_BYTES, Start};
use launch::plan::{LaunchPlan, Tee};

use crate::hv::kvm::Vm;
use crate::hv::{HvError, Vcpu as _};
use crate::virtio::disk::{Access, Disk};

pub use devices::{DeviceError, SlotError};
pub use load::LoadError;
pub use memory::MemoryError;

use bus::Bus;
use devices::Devices;
use run::{Notice, Observer};

/// Why a machine cannot be launched.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// A file of the plan cannot be read.
    #[error("cannot read {path}: {source}", path = .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The image cannot be understood.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The image cannot be placed.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// There is no memory for the guest.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The hypervisor refused.
    #[error(transparent)]
    Hypervisor(#[from] HvError),
    /// A device cannot be made.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// This build cannot isolate a machine so.
    #[error("isolation {0}: not supported by this machine monitor")]
    Isolation(Tee),
    /// A thread cannot be started.
    #[error("cannot start a virtual CPU thread: {0}")]
    Thread(#[source] io::Error),
}

/// Inputs read and checked.
#[derive(Debug)]
pub struct Defined {
    plan: LaunchPlan,
    image: Image,
    rootfs: File,
}

impl Defined {
    /// Reads what the plan names.
    ///
    /// # Errors
    /// When a file cannot be read, or the image is not one for this machine.
    pub fn new(plan: LaunchPlan) -> Result<Self, LaunchError> {
        let image = Image::decode(&read_image(&plan.image)?, plan.tee.platform())?;
        let rootfs = open(&plan.rootfs)?;
        Ok(Self { plan, image, rootfs })
    }

    /// Makes the machine: memory with the image in it, and devices.
    ///
    /// # Errors
    /// When the image does not fit, or the hypervisor or a device refuses.
    pub fn populate(self) -> Result<Populated, LaunchError> {
        let Self { plan, image, rootfs } = self;
        let vm = Arc::new(Vm::create(plan.vcpus)?);
        let ram = memory::ram(plan.memory_mib)?;
        let window = load::place(&image, &plan, &ram)?;
        memory::map(&vm, &ram)?;
        let window_slots = window.map(|window| memory::map(&vm, &window)).transpose()?.unwrap_or_default();
        let devices = Devices::build(&vm, &ram, &plan, rootfs)?;
        let Start::Native(context) = image.start else { return Err(LaunchError::Isolation(plan.tee)) };
        Ok(Populated { plan, vm, devices, window_slots, context })
    }
}

/// Memory holds the image; devices wait.
#[derive(Debug)]
pub struct Populated {
    plan: LaunchPlan,
    vm: Arc<Vm>,
    devices: Devices,
    window_slots: Vec<u32>,
    context: Box<IgvmNativeVpContextX64>,
}

impl Populated {
    /// Lets the guest run. `observer` is told of marks and of the end, from virtual CPU threads.
    ///
    /// # Errors
    /// When a virtual CPU or its thread cannot be made.
    pub fn start(self, observer: impl Fn(Notice) + Send + Sync + 'static) -> Result<Running, LaunchError> {
        let Self { plan, vm, devices, window_slots, context } = self;
        let observer = Observer::new(observer, Arc::clone(&vm), window_slots);
        let observer = Arc::new(observer);
        let Devices { bus, ports, slots, loops } = devices;
        let ports = Arc::new(Mutex::new(ports));
        let mut vcpus = (0..plan.vcpus).map(|id| vm.create_vcpu(id)).collect::<Result<Vec<_>, _>>()?;
        if let Some(first) = vcpus.first_mut() {
            first.set_context(&context)?;
        }
        for (id, vcpu) in vcpus.into_iter().enumerate() {
            let (bus, ports, observer) = (Arc::clone(&bus), Arc::clone(&ports), Arc::clone(&observer));
            let work = move || run::until_end(vcpu, id == 0, &bus, &ports, &observer);
            let builder = thread::Builder::new().name(format!("vcpu{id}")).stack_size(run::STACK_BYTES);
            builder.spawn(work).map_err(LaunchError::Thread)?;
        }
        Ok(Running { slots, _loops: loops, _bus: bus })
    }
}

/// The guest runs. What is left to do from outside is to change disks; the process's end is the machine's.
pub struct Running {
    slots: devices::Slots,
    _loops: devices::Loops,
    _bus: Arc<Bus>,
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running").finish_non_exhaustive()
    }
}

impl Running {
    /// Shows `files`, cut to `segments`, one after another as a read-only disk in `slot`.
    ///
    /// # Errors
    /// When slot, files or segments are not as they should be; nothing has changed then.
    pub fn attach(&self, slot: u32, segments: &[Segment], files: Vec<File>) -> Result<(), SlotError> {
        if segments.len() != files.len() || segments.len() > MAX_SEGMENTS {
            return Err(SlotError::Files { expected: segments.len(), found: files.len() });
        }
        let parts = segments.iter().zip(files).map(|(segment, file)| crate::virtio::disk::Segment {
            file,
            offset: segment.offset,
            length: segment.length,
        });
        let disk = Disk::new(parts.collect(), Access::ReadOnly)?;
        self.slots.get(slot)?.attach(disk).map_err(SlotError::from)
    }

    /// Empties `slot`.
    ///
    /// # Errors
    /// When there is no such slot, or it is empty.
    pub fn detach(&self, slot: u32) -> Result<(), SlotError> {
        if self.slots.get(slot)?.detach() { Ok(()) } else { Err(SlotError::Empty(slot)) }
    }
}

/// What a running machine tells.
pub type MachineNotice = Notice;

fn open(path: &Path) -> Result<File, LaunchError> {
    File::open(path).map_err(|source| LaunchError::File { path: path.into(), source })
}

fn read_image(path: &Path) -> Result<Vec<u8>, LaunchError> {
    let mut bytes = Vec::new();
    let read = open(path)?.take(MAX_IMAGE_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|source| LaunchError::File { path: path.into(), source })?;
    Ok(bytes)
}
