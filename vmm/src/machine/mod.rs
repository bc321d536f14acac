//! One machine, from plan to end.
//!
//! A launch is a sequence of values, each consuming the last:
//! [`Defined`] (inputs read and checked, nothing made) → [`Populated`] (memory, devices and virtual CPUs exist,
//! the image has its place) → [`Measured`] (the hypervisor and, where there is one, the secure processor have
//! finished the launch) → [`Running`]. A failure drops what there is; nothing is retried.

mod bus;
mod devices;
mod expectation;
mod load;
mod measure;
mod memory;
mod ports;
mod run;
mod sim;

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;

use launch::control::{MAX_SEGMENTS, Measurement, Segment};
use launch::image::{Image, ImageError, MAX_IMAGE_BYTES};
use launch::plan::{LaunchPlan, Tee};
use vm_memory::GuestMemoryMmap;

use crate::hv::{self, HvError, Launch, Run, Settings, Vcpu, Vm};

pub use devices::{DeviceError, SlotError};
pub use expectation::ExpectationError;
pub use load::LoadError;
pub use memory::MemoryError;
pub use sim::SimError;

use bus::Bus;
use devices::Devices;
use load::Placement;
use measure::Loaded;
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
    /// The image is not for this machine.
    #[error(transparent)]
    Expectation(#[from] ExpectationError),
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
    /// What was loaded cannot be read back to measure it.
    #[error("cannot measure the launch: {0}")]
    Measure(#[source] vm_memory::GuestMemoryError),
    /// There is no simulated secure processor.
    #[error(transparent)]
    Sim(#[from] SimError),
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
        let image = Image::decode_bytes(read_image(&plan.image)?.into(), plan.tee.platform())?;
        expectation::check(&image, &plan)?;
        let rootfs = open(&plan.rootfs)?;
        Ok(Self { plan, image, rootfs })
    }

    /// Makes the machine: memory, devices, virtual CPUs, and a place for the image.
    ///
    /// # Errors
    /// When the image does not fit, or the hypervisor or a device refuses.
    pub fn populate(self) -> Result<Populated, LaunchError> {
        let Self { plan, image, rootfs } = self;
        let LaunchPlan { hypervisor, tee, vcpus, memory_mib, .. } = plan;
        let vm = hv::open(&Settings {
            hypervisor,
            tee,
            vcpus,
            guest_policy: image.guest_policy,
            host_data: plan.host_data,
        })?;
        let ram = memory::ram(memory_mib)?;
        let private = memory::private(&ram, tee)?;
        let placement = Placement::new(&image, &plan, &private)?;
        let runs = if is_isolated(tee) {
            placement.runs(vm.backend())
        } else {
            placement.write_private()?;
            Vec::new()
        };
        let window = placement.window;
        memory::map_private(&*vm, &private)?;
        let map_window = |window| memory::map_shared(&*vm, window);
        let window_slots = window.as_ref().map(map_window).transpose()?.unwrap_or_default();
        let devices = Devices::build(&vm, &ram, &plan, rootfs)?;
        let vcpus = (0..vcpus).map(|id| vm.create_vcpu(id)).collect::<Result<Vec<_>, _>>()?;
        Ok(Populated { plan, image, vm, ram, runs, window, window_slots, devices, vcpus })
    }
}

/// Whether private memory is out of the host's reach, so that the image is imported rather than written.
const fn is_isolated(tee: Tee) -> bool {
    matches!(tee, Tee::Snp | Tee::Tdx)
}

/// Memory, devices and virtual CPUs exist; nothing is measured yet.
pub struct Populated {
    plan: LaunchPlan,
    image: Image,
    vm: Arc<dyn Vm>,
    ram: GuestMemoryMmap,
    runs: Vec<Run>,
    window: Option<GuestMemoryMmap>,
    window_slots: Vec<u32>,
    devices: Devices,
    vcpus: Vec<Box<dyn Vcpu>>,
}

impl std::fmt::Debug for Populated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Populated").field("plan", &self.plan).finish_non_exhaustive()
    }
}

impl Populated {
    /// The window through which shared pages travel, if the image has any. It is the host's to write to at any
    /// time: whoever holds a clone of it can play a hostile host.
    #[must_use]
    pub fn window(&self) -> Option<&GuestMemoryMmap> {
        self.window.as_ref()
    }

    /// Launches: the hypervisor imports what is private, and the launch is measured and finished.
    ///
    /// # Errors
    /// When the hypervisor or the secure processor refuses.
    pub fn measure(self) -> Result<Measured, LaunchError> {
        let Self { plan, image, vm, ram, runs, window: _, window_slots, mut devices, mut vcpus } = self;
        let (tee, host_data) = (plan.tee, plan.host_data);
        let launch = Launch { image: &image, runs: &runs, host_data, vcpus: plan.vcpus };
        vm.launch(&launch, &mut vcpus)?;
        let backend = vm.backend();
        let loaded = Loaded { image: &image, runs: &runs, ram: &ram, backend, vcpus: plan.vcpus };
        let digest = measure::digest(tee, &loaded).map_err(LaunchError::Measure)?;
        let measurement = digest.map(|digest| Measurement { tee, digest, host_data });
        if let (Tee::Sim, Some(measurement)) = (tee, &measurement) {
            devices.ports.add_reports(sim::ReportDevice::new(&image, measurement)?);
        }
        Ok(Measured { vm, window_slots, devices, vcpus, measurement })
    }
}

/// The launch is finished: nothing more can be put into the guest.
pub struct Measured {
    vm: Arc<dyn Vm>,
    window_slots: Vec<u32>,
    devices: Devices,
    vcpus: Vec<Box<dyn Vcpu>>,
    measurement: Option<Measurement>,
}

impl std::fmt::Debug for Measured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Measured").field("measurement", &self.measurement).finish_non_exhaustive()
    }
}

impl Measured {
    /// What the guest's reports are to say; nothing where nothing isolates it.
    #[must_use]
    pub fn measurement(&self) -> Option<&Measurement> {
        self.measurement.as_ref()
    }

    /// Lets the guest run. `observer` is told of marks and of the end, on virtual CPU threads: the one that tells
    /// stands still until the observer returns.
    ///
    /// # Errors
    /// When a virtual CPU's thread cannot be made.
    pub fn start(self, observer: impl Fn(Notice) + Send + Sync + 'static) -> Result<Running, LaunchError> {
        let Self { vm, window_slots, devices, vcpus, measurement: _ } = self;
        let observer = Arc::new(Observer::new(observer, vm, window_slots));
        let Devices { bus, ports, slots, loops } = devices;
        let ports = Arc::new(Mutex::new(ports));
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
    /// Shows `files`, cut to `segments`, one after another on the disk in `slot` from byte `at` on.
    ///
    /// # Errors
    /// When slot, files or segments are not as they should be; nothing has changed then.
    pub fn attach(
        &self,
        slot: u32,
        at: u64,
        segments: &[Segment],
        files: Vec<File>,
    ) -> Result<(), SlotError> {
        if segments.len() != files.len() || segments.len() > MAX_SEGMENTS {
            return Err(SlotError::Files { expected: segments.len(), found: files.len() });
        }
        let parts = segments.iter().zip(files).map(|(segment, file)| crate::virtio::disk::Segment {
            file,
            offset: segment.offset,
            length: segment.length,
        });
        let attached = self.slots.get(slot)?.attach(at, parts.collect());
        attached.map_err(|source| SlotError::Disk { slot, source })
    }

    /// Takes away what was attached to the disk in `slot` at byte `at`.
    ///
    /// # Errors
    /// When there is no such slot, or nothing was attached there.
    pub fn detach(&self, slot: u32, at: u64) -> Result<(), SlotError> {
        self.slots.get(slot)?.detach(at).map_err(|source| SlotError::Disk { slot, source })
    }
}

/// What a running machine tells.
pub type MachineNotice = Notice;

fn open(path: &Path) -> Result<File, LaunchError> {
    File::open(path).map_err(|source| LaunchError::File { path: path.into(), source })
}

fn read_image(path: &Path) -> Result<Vec<u8>, LaunchError> {
    let file = open(path)?;
    // The limit hides the file's size: without it the buffer would grow, and move, again and again.
    let size = file.metadata().map_or(0, |metadata| metadata.len()).min(MAX_IMAGE_BYTES);
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0).saturating_add(1));
    let read = file.take(MAX_IMAGE_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|source| LaunchError::File { path: path.into(), source })?;
    Ok(bytes)
}
