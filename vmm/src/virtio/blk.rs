//! The block device (virtio 1.2, section 5.2).
//!
//! A device shows a disk that begins with no bytes. [`BlockSlot`] attaches parts of files to it and detaches
//! them, before or after the driver is ready; the driver learns of a new capacity by a configuration interrupt.
//! A read-only device offers VIRTIO_BLK_F_RO and refuses writes whatever the driver negotiated.
//!
//! Requests run one by one on the event loop thread that the device was made with. Their size is bounded by
//! what the configuration announces: [`SEG_MAX`] buffers of [`SIZE_MAX`] bytes.
//!
//! VIRTIO_BLK_F_FLUSH is not offered. A request is done when the host's page cache has it, and what a machine
//! writes has no use after the machine's end: there is no power failure that it could survive. DISCARD and
//! WRITE_ZEROES are not either: every block of encrypted, authenticated storage has a tag, so the guest has no
//! use for blocks that the host fills.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_bindings::virtio_blk::*;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use vm_memory::GuestMemoryMmap;

use super::chain::{Chain, ChainError, Part};
use super::disk::{Access, Disk, DiskError, SECTOR, Segment, TransferError};
use super::guest_io::{Direction, MAX_PIECES};
use super::interrupt::Interrupt;
use super::queue::VirtQueue;
use super::{ActivateError, Activation, VirtioDevice, read_config_bytes};
use crate::event_loop::{Handler, HandlerId, Interest, LoopHandle, Readiness, Registry};

/// Most descriptors of a queue.
const QUEUE_SIZE: u16 = 128;
/// Most data buffers of a request: header and status take the other two descriptors.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
const _: () = assert!(SEG_MAX as usize <= MAX_PIECES, "a request is one system call");
/// Most bytes of a data buffer.
const SIZE_MAX: u32 = 64 * 1024;
/// Type, reserved, sector.
const HEADER_BYTES: u32 = 16;
/// One byte at the very end of the writable part.
const STATUS_BYTES: u32 = 1;
/// Most bytes of a request.
const MAX_REQUEST: u32 = SEG_MAX * SIZE_MAX + HEADER_BYTES + STATUS_BYTES;
/// Length of a device's name.
const ID_BYTES: usize = VIRTIO_BLK_ID_BYTES as usize;

/// Most queues of a device.
pub const MAX_QUEUES: u16 = 16;

struct Slot {
    name: String,
    access: Access,
    interrupt: Interrupt,
    disk: Mutex<Arc<Disk>>,
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, Arc<Disk>> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn disk(&self) -> Arc<Disk> {
        Arc::clone(&self.lock())
    }

    fn change(&self, new: impl FnOnce(&Disk) -> Result<Disk, DiskError>) -> Result<(), DiskError> {
        let mut current = self.lock();
        let new = Arc::new(new(&current)?);
        let resized = new.size() != current.size();
        let old = std::mem::replace(&mut *current, new);
        // Told under the lock: nobody reads a capacity that the generation does not count yet.
        if resized {
            self.interrupt.config_changed();
        }
        drop(current);
        // Files may be closed here, which may take its time.
        drop(old);
        Ok(())
    }
}

/// Attaches parts of files to a device's disk and detaches them, from any thread.
#[derive(Clone)]
pub struct BlockSlot(Arc<Slot>);

impl BlockSlot {
    /// Shows `segments`, one after another, from byte `at` on.
    ///
    /// # Errors
    /// See [`Disk::with`]; nothing has changed then.
    pub fn attach(&self, at: u64, segments: Vec<Segment>) -> Result<(), DiskError> {
        self.0.change(|disk| disk.with(at, segments))
    }

    /// Takes away what was attached at byte `at`. A request that is being worked on may still end on it; its
    /// files are closed then.
    ///
    /// # Errors
    /// When nothing was attached there.
    pub fn detach(&self, at: u64) -> Result<(), DiskError> {
        self.0.change(|disk| disk.without(at))
    }
}

/// The device's front.
pub struct Block {
    slot: Arc<Slot>,
    queue_sizes: Vec<u16>,
    events: LoopHandle,
    worker: Option<HandlerId>,
}

impl Block {
    /// A device called `name` (the guest sees its first 20 bytes) that shows nothing yet, with `queues` queues (1 to
    /// [`MAX_QUEUES`]; more or fewer are brought into that range), whose requests run on `events`.
    #[must_use]
    pub fn new(
        name: &str,
        access: Access,
        queues: u16,
        interrupt: Interrupt,
        events: LoopHandle,
    ) -> (Self, BlockSlot) {
        let slot = Arc::new(Slot {
            name: name.to_owned(),
            access,
            interrupt,
            disk: Mutex::new(Arc::new(Disk::empty(access))),
        });
        let queue_sizes = vec![QUEUE_SIZE; queues.clamp(1, MAX_QUEUES).into()];
        let handle = BlockSlot(Arc::clone(&slot));
        (Self { slot, queue_sizes, events, worker: None }, handle)
    }

    /// `struct virtio_blk_config` up to `num_queues`.
    fn config(&self) -> [u8; 36] {
        let sectors = self.slot.disk().size() / SECTOR;
        let queues = u16::try_from(self.queue_sizes.len()).unwrap_or(MAX_QUEUES);
        let mut config = [0; 36];
        config[0..8].copy_from_slice(&sectors.to_le_bytes());
        config[8..12].copy_from_slice(&SIZE_MAX.to_le_bytes());
        config[12..16].copy_from_slice(&SEG_MAX.to_le_bytes());
        config[34..36].copy_from_slice(&queues.to_le_bytes());
        config
    }
}

impl VirtioDevice for Block {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn device_features(&self) -> u64 {
        let mut features = 1 << VIRTIO_BLK_F_SIZE_MAX | 1 << VIRTIO_BLK_F_SEG_MAX;
        if self.slot.access == Access::ReadOnly {
            features |= 1 << VIRTIO_BLK_F_RO;
        }
        if self.queue_sizes.len() > 1 {
            features |= 1 << VIRTIO_BLK_F_MQ;
        }
        features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { memory, queues, interrupt, .. } = activation;
        if queues.is_empty() {
            return Err(ActivateError::MissingQueue { index: 0 });
        }
        let chain = Chain::new(MAX_REQUEST);
        let worker = Worker { slot: Arc::clone(&self.slot), memory, queues, interrupt, chain, broken: false };
        self.worker = Some(self.events.add(Box::new(worker))?);
        Ok(())
    }

    fn reset(&mut self) {
        if let Some(worker) = self.worker.take()
            && let Err(error) = self.events.remove(worker)
        {
            log::warn!("block device {}: {error}", self.slot.name);
        }
    }
}

struct Worker {
    slot: Arc<Slot>,
    memory: GuestMemoryMmap,
    queues: Vec<VirtQueue>,
    interrupt: Interrupt,
    chain: Chain,
    broken: bool,
}

impl Handler for Worker {
    fn start(&mut self, registry: &mut Registry<'_>) -> io::Result<()> {
        (0u32..).zip(&self.queues).try_for_each(|(token, queue)| registry.watch(queue, token, Interest::Read))
    }

    fn ready(&mut self, token: u32, _: Readiness, _: &mut Registry<'_>) {
        let Some(queue) = usize::try_from(token).ok().and_then(|index| self.queues.get_mut(index)) else {
            return;
        };
        if self.broken {
            return queue.drain_kick();
        }
        let (memory, slot) = (&self.memory, &*self.slot);
        let served =
            queue.serve(memory, &self.interrupt, &mut self.chain, |chain| answer(slot, memory, chain));
        if let Err(error) = served {
            self.broken = true;
            self.interrupt.require_reset(&format_args!("block device {}: {error}", slot.name));
        }
    }
}

/// How a request ends.
enum Outcome {
    /// Done; this many bytes of data were written for the driver.
    Done(u32),
    Failed,
    Unsupported,
}

/// Answers one request: bytes written to the front of the writable part, the status included.
///
/// A request without room for a status cannot be answered, so it is the driver's fault that counts.
fn answer(slot: &Slot, memory: &GuestMemoryMmap, chain: &Chain) -> Result<u32, ChainError> {
    let mut header = [0; HEADER_BYTES as usize];
    chain.read(memory, 0, &mut header)?;
    let writable = chain.len(Part::Writable);
    let room = writable.saturating_sub(STATUS_BYTES);
    // Checked before anything is executed: in an empty part, even byte 0 is one too many.
    drop(chain.slices(memory, Part::Writable, room, STATUS_BYTES)?);
    let (kind, sector) = parse(header);
    let outcome = execute(slot, memory, chain, kind, sector, room)?;
    let (status, written) = match outcome {
        // The status is behind all data: only if the data fills its room is the front without a gap.
        Outcome::Done(data) if data == room => (VIRTIO_BLK_S_OK, writable),
        Outcome::Done(data) => (VIRTIO_BLK_S_OK, data),
        Outcome::Failed => (VIRTIO_BLK_S_IOERR, if room == 0 { writable } else { 0 }),
        Outcome::Unsupported => (VIRTIO_BLK_S_UNSUPP, if room == 0 { writable } else { 0 }),
    };
    let [status, ..] = status.to_le_bytes();
    chain.write(memory, room, &[status])?;
    Ok(written)
}

fn parse(header: [u8; HEADER_BYTES as usize]) -> (u32, u64) {
    let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
    (u32::from_le_bytes([t0, t1, t2, t3]), u64::from_le_bytes(sector))
}

fn execute(
    slot: &Slot,
    memory: &GuestMemoryMmap,
    chain: &Chain,
    kind: u32,
    sector: u64,
    room: u32,
) -> Result<Outcome, ChainError> {
    let outcome = match kind {
        VIRTIO_BLK_T_IN => {
            let slices = chain.slices(memory, Part::Writable, 0, room)?;
            match transfer(slot, Direction::ToGuest, sector, room, slices) {
                Outcome::Done(_) => Outcome::Done(room),
                other => other,
            }
        }
        VIRTIO_BLK_T_OUT => {
            let length = chain.len(Part::Readable).saturating_sub(HEADER_BYTES);
            let slices = chain.slices(memory, Part::Readable, HEADER_BYTES, length)?;
            transfer(slot, Direction::ToFile, sector, length, slices)
        }
        VIRTIO_BLK_T_GET_ID => {
            let mut id = [0; ID_BYTES];
            read_config_bytes(slot.name.as_bytes(), 0, &mut id);
            let length = usize::try_from(room).unwrap_or(ID_BYTES).min(ID_BYTES);
            chain.write(memory, 0, id.get(..length).unwrap_or_default())?;
            Outcome::Done(u32::try_from(length).unwrap_or(0))
        }
        _ => Outcome::Unsupported,
    };
    Ok(outcome)
}

fn transfer<'m>(
    slot: &Slot,
    direction: Direction,
    sector: u64,
    length: u32,
    slices: impl Iterator<Item = Result<vm_memory::VolatileSlice<'m>, vm_memory::GuestMemoryError>>,
) -> Outcome {
    let length = u64::from(length);
    let Some(position) = sector.checked_mul(SECTOR).filter(|_| length.is_multiple_of(SECTOR)) else {
        return Outcome::Failed;
    };
    match slot.disk().transfer(direction, position, length, slices) {
        Ok(()) => Outcome::Done(0),
        Err(error) => {
            // What the driver does wrong, or hits again, is not worth a line in the host's log each time.
            if let TransferError::Host { first: true, .. } | TransferError::Memory(_) = error {
                log::warn!("block device {}: {error}", slot.name);
            }
            Outcome::Failed
        }
    }
}

#[cfg(test)]
mod tests;
