//! Builds the machine's fixed devices and wires them: interrupt lines, kicks, event loops.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use launch::layout::{
    SERIAL_GSI, SLOT_LAYERS, SLOT_ROOTFS, SLOT_SCRATCH, VIRTIO_BLOCK0, VIRTIO_RNG, VIRTIO_VSOCK, virtio_base,
    virtio_gsi,
};
use launch::plan::LaunchPlan;
use vm_memory::GuestMemoryMmap;
use vm_superio::Trigger;

use super::bus::Bus;
use super::ports::Ports;
use crate::event_loop::EventLoop;
use crate::hv::{HvError, Vm};
use crate::ioapic::{IoApic, MsiSink};
use crate::virtio::blk::{Block, BlockSlot};
use crate::virtio::disk::{Access, DiskError, Segment};
use crate::virtio::host_access::{HostAccess, Refusal};
use crate::virtio::mmio::{MmioTransport, NOTIFY_OFFSET};
use crate::virtio::rng::Rng;
use crate::virtio::vsock::Vsock;
use crate::virtio::{Interrupt, InterruptLine, VirtioDevice};

/// Queues of a block device: its requests are served by one thread, so more would not be faster.
const BLOCK_QUEUES: u16 = 1;
/// The guest's address on its own virtual socket bus: every machine has a bus of its own.
const GUEST_CID: u64 = 3;

/// Why a device cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A descriptor or thread cannot be made.
    #[error("cannot make {device}: {source}")]
    System {
        /// Which device.
        device: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A file or socket of the plan.
    #[error("{path}: {source}", path = .path.display())]
    File {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The root file system cannot be shown.
    #[error("root file system: {0}")]
    Rootfs(#[source] DiskError),
    /// The hypervisor refused a kick.
    #[error(transparent)]
    Hypervisor(#[from] HvError),
    /// The I/O APIC has no such pin.
    #[error("interrupt line {0}: the I/O APIC has no such pin")]
    Line(u32),
}

/// Why a slot does not do what it is asked to.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// No disk that may be changed has this number.
    #[error("block slot {0}: expected {SLOT_LAYERS} for layers or {SLOT_SCRATCH} for scratch space")]
    Unknown(u32),
    /// Files and segments do not go together.
    #[error("expected {expected} files, one for each segment, found {found}")]
    Files {
        /// Segments.
        expected: usize,
        /// Files.
        found: usize,
    },
    /// The disk does not do it.
    #[error("block slot {slot}: {source}")]
    Disk {
        /// Which disk.
        slot: u32,
        /// Why.
        source: DiskError,
    },
}

/// The disks that change while the machine runs.
pub struct Slots {
    layers: BlockSlot,
    scratch: BlockSlot,
}

impl Slots {
    /// Disk `number`. The root file system's is not to be had.
    pub fn get(&self, number: u32) -> Result<&BlockSlot, SlotError> {
        match number {
            SLOT_LAYERS => Ok(&self.layers),
            SLOT_SCRATCH => Ok(&self.scratch),
            _ => Err(SlotError::Unknown(number)),
        }
    }
}

/// The threads on which devices work. Disks have their own, so that a slow one never holds up a connection; and
/// scratch space has its own, because a writer waits for the host's disk where a reader finds the page cache.
pub struct Loops {
    streams: EventLoop,
    disks: EventLoop,
    scratch: EventLoop,
}

/// All devices of a machine, waiting for their drivers.
pub struct Devices {
    /// Memory-mapped devices.
    pub bus: Arc<Bus>,
    /// I/O ports.
    pub ports: Ports<SerialLine>,
    /// Disks that change.
    pub slots: Slots,
    /// Their threads.
    pub loops: Loops,
}

impl std::fmt::Debug for Devices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Devices").field("bus", &self.bus).finish_non_exhaustive()
    }
}

/// Interrupt messages go to the hypervisor's local APICs.
struct Messages(Arc<dyn Vm>);

impl MsiSink for Messages {
    fn send(&self, address: u64, data: u32) {
        // A message that the hypervisor does not take is one that the guest made up: its loss, not ours.
        let _ = self.0.send_msi(address, data);
    }
}

/// Devices ask the hypervisor for what the guest shares, where the host has to.
struct Shared(Arc<dyn Vm>);

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Shared").finish_non_exhaustive()
    }
}

impl HostAccess for Shared {
    fn acquire(&self, address: u64, length: u64) -> Result<(), Refusal> {
        Ok(self.0.acquire(address, length)?)
    }
}

/// The console's interrupt line.
pub struct SerialLine(Arc<dyn InterruptLine>);

impl Trigger for SerialLine {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.raise();
        Ok(())
    }
}

impl Devices {
    /// Builds all devices, in the order of their addresses.
    pub fn build(
        vm: &Arc<dyn Vm>,
        ram: &GuestMemoryMmap,
        plan: &LaunchPlan,
        rootfs: File,
    ) -> Result<Self, DeviceError> {
        let system = |device| move |source| DeviceError::System { device, source };
        let loops = Loops {
            streams: EventLoop::spawn("streams").map_err(system("the stream thread"))?,
            disks: EventLoop::spawn("disks").map_err(system("the disk thread"))?,
            scratch: EventLoop::spawn("scratch").map_err(system("the scratch thread"))?,
        };
        let ioapic = Arc::new(IoApic::new(Arc::new(Messages(Arc::clone(vm)))));
        let line = |gsi| ioapic.line(gsi).ok_or(DeviceError::Line(gsi));
        let interrupt = |index| Ok::<_, DeviceError>(Interrupt::new(line(virtio_gsi(index))?));

        let mut virtio = Vec::new();
        let mut add = |index: u32, device: Box<dyn VirtioDevice>, interrupt: Interrupt| {
            let mut transport =
                MmioTransport::new(device, ram.clone(), interrupt).map_err(system("a virtio device"))?;
            if vm.must_acquire() {
                transport = transport.with_host_access(Arc::new(Shared(Arc::clone(vm))));
            }
            for (value, kick) in (0..).zip(transport.kicks()) {
                vm.signal_on_write(virtio_base(index) + NOTIFY_OFFSET, value, kick)?;
            }
            virtio.push(transport);
            Ok::<_, DeviceError>(())
        };

        let rng = interrupt(VIRTIO_RNG)?;
        add(VIRTIO_RNG, Box::new(Rng::new(loops.streams.handle())), rng)?;

        let vsock = interrupt(VIRTIO_VSOCK)?;
        let device = Vsock::new(GUEST_CID, &plan.vsock, loops.streams.handle())
            .map_err(|source| DeviceError::File { path: plan.vsock.clone(), source })?;
        add(VIRTIO_VSOCK, Box::new(device), vsock)?;

        let mut block = |slot, name, access, events: &EventLoop| {
            let interrupt = interrupt(VIRTIO_BLOCK0 + slot)?;
            let (device, disk) = Block::new(name, access, BLOCK_QUEUES, interrupt.clone(), events.handle());
            add(VIRTIO_BLOCK0 + slot, Box::new(device), interrupt)?;
            Ok::<_, DeviceError>(disk)
        };
        let root = block(SLOT_ROOTFS, "uvm-rootfs", Access::ReadOnly, &loops.disks)?;
        root.attach(0, vec![whole(rootfs)]).map_err(DeviceError::Rootfs)?;
        let layers = block(SLOT_LAYERS, "uvm-layers", Access::ReadOnly, &loops.disks)?;
        let scratch = block(SLOT_SCRATCH, "uvm-scratch", Access::ReadWrite, &loops.scratch)?;
        let slots = Slots { layers, scratch };

        let console = match &plan.console {
            Some(path) => Some((SerialLine(line(SERIAL_GSI)?), console(path)?)),
            None => None,
        };
        let ports = Ports::new(console);
        Ok(Self { bus: Arc::new(Bus { virtio, ioapic }), ports, slots, loops })
    }
}

/// All of a file. One that cannot be examined has no bytes, and is refused for that.
fn whole(file: File) -> Segment {
    let length = file.metadata().map_or(0, |metadata| metadata.len());
    Segment { file, offset: 0, length }
}

fn console(path: &Path) -> Result<Box<dyn Write + Send>, DeviceError> {
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
    let file = file.map_err(|source| DeviceError::File { path: path.into(), source })?;
    Ok(Box::new(Bounded { file, left: CONSOLE_BYTES }))
}

/// Most bytes of console output that are kept: the guest decides how much there is.
const CONSOLE_BYTES: usize = 16 << 20;

/// A file that takes a number of bytes and no more.
struct Bounded {
    file: File,
    left: usize,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let kept = &bytes[..bytes.len().min(self.left)];
        self.file.write_all(kept)?;
        self.left -= kept.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
