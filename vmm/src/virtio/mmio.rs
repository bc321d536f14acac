//! The virtio-mmio transport, version 2 (virtio 1.2, section 4.2).
//!
//! It owns the registers, the feature negotiation, the queue addresses and the device status. The rules that
//! keep a hostile driver out:
//! * the status goes ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK, one step a write, and back only by a reset;
//! * FEATURES_OK is refused for a feature that was not offered and for a driver without VERSION_1;
//! * a queue is configured between FEATURES_OK and DRIVER_OK only, and becomes ready only if its size is a
//!   power of two within the device's limit and its rings are aligned and inside memory;
//! * at DRIVER_OK the ready queues are built from that configuration and handed to the device. No register
//!   write reaches them afterwards.
//!
//! A write that breaks a rule has no effect, and the first one after a reset is logged. Registers are 32 bits
//! wide and aligned: other accesses read as zero and are ignored when written. The configuration space takes
//! every width; none of our devices has a writable configuration field.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use libc::EFD_NONBLOCK;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::host_access::HostAccess;
use super::interrupt::Interrupt;
use super::queue::{QueueError, VirtQueue};
use super::queue_config::QueueConfig;
use super::{Activation, VirtioDevice};

/// Offset of the QueueNotify register, for the registration of ioeventfds: 4 bytes wide, the value written is
/// the queue's index.
pub const NOTIFY_OFFSET: u64 = VIRTIO_MMIO_QUEUE_NOTIFY as u64;

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// "uvm", little-endian: tells our devices from others, nothing more.
const VENDOR: u32 = 0x006d_7675;
/// What the length registers of a shared memory region read for a region that does not exist.
const NO_SHARED_MEMORY: u32 = u32::MAX;

/// Features of the ring and the bus, offered by every device.
const TRANSPORT_FEATURES: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_F_ACCESS_PLATFORM
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// Status bits in the order in which a driver must set them.
const STEPS: [u32; 4] = [
    VIRTIO_CONFIG_S_ACKNOWLEDGE,
    VIRTIO_CONFIG_S_DRIVER,
    VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_DRIVER_OK,
];

/// One device behind its registers.
pub struct MmioTransport {
    memory: GuestMemoryMmap,
    access: Option<Arc<dyn HostAccess>>,
    interrupt: Interrupt,
    kicks: Vec<Arc<EventFd>>,
    state: Mutex<State>,
}

struct State {
    device: Box<dyn VirtioDevice>,
    transport_features: u64,
    status: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    queues: Vec<QueueConfig>,
    complained: bool,
}

impl MmioTransport {
    /// Puts `device` behind registers. `interrupt` is the same that the device's own handles raise.
    ///
    /// # Errors
    /// When the notification descriptors cannot be made.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemoryMmap,
        interrupt: Interrupt,
    ) -> io::Result<Self> {
        let sizes = device.queue_max_sizes();
        let kicks =
            sizes.iter().map(|_| EventFd::new(EFD_NONBLOCK).map(Arc::new)).collect::<Result<_, _>>()?;
        let queues = sizes.iter().map(|&max| QueueConfig::new(max)).collect();
        let state = State {
            device,
            transport_features: TRANSPORT_FEATURES,
            status: 0,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            queue_select: 0,
            queues,
            complained: false,
        };
        Ok(Self { memory, access: None, interrupt, kicks, state: Mutex::new(state) })
    }

    /// Makes the device ask for access before it touches what the guest shares.
    #[must_use]
    pub fn with_host_access(mut self, access: Arc<dyn HostAccess>) -> Self {
        self.access = Some(access);
        self.lock().transport_features &= !(1 << VIRTIO_RING_F_INDIRECT_DESC);
        self
    }

    /// The notification descriptors, one for each queue in the order of their indices. They stay the same for
    /// the device's life, so that the machine can bind them to writes of the index to [`NOTIFY_OFFSET`].
    pub fn kicks(&self) -> impl ExactSizeIterator<Item = &EventFd> {
        self.kicks.iter().map(AsRef::as_ref)
    }

    /// Answers a guest's read of `data.len()` bytes at `offset` from the device's base.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(u64::from(VIRTIO_MMIO_CONFIG)) {
            if matches!(data.len(), 1 | 2 | 4 | 8) {
                self.lock().device.read_config(offset, data);
            }
        } else if let (Ok(data), Ok(register)) = (<&mut [u8; 4]>::try_from(data), u32::try_from(offset)) {
            *data = self.read_register(register).to_le_bytes();
        }
    }

    /// Obeys a guest's write of `data` at `offset` from the device's base.
    pub fn write(&self, offset: u64, data: &[u8]) {
        if let (Ok(data), Ok(register)) = (<[u8; 4]>::try_from(data), u32::try_from(offset)) {
            self.write_register(register, u32::from_le_bytes(data));
        } else {
            self.lock().complain(offset, "not a 32-bit register");
        }
    }

    fn read_register(&self, register: u32) -> u32 {
        match register {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt.reasons(),
            VIRTIO_MMIO_CONFIG_GENERATION => self.interrupt.generation(),
            VIRTIO_MMIO_SHM_LEN_LOW | VIRTIO_MMIO_SHM_LEN_HIGH => NO_SHARED_MEMORY,
            VIRTIO_MMIO_STATUS if self.interrupt.is_reset_needed() => {
                self.lock().status | VIRTIO_CONFIG_S_NEEDS_RESET
            }
            _ => self.lock().read_register(register),
        }
    }

    fn write_register(&self, register: u32, value: u32) {
        match register {
            VIRTIO_MMIO_QUEUE_NOTIFY => self.notify(value),
            VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt.acknowledge(value),
            VIRTIO_MMIO_STATUS => self.write_status(value),
            _ => self.lock().write_register(&self.memory, register, value),
        }
    }

    /// The way of notifications that no ioeventfd caught.
    fn notify(&self, index: u32) {
        match usize::try_from(index).ok().and_then(|index| self.kicks.get(index)) {
            // It fails only when the counter is full, and then the descriptor is readable already.
            Some(kick) => drop(kick.write(1)),
            None => self.lock().complain(NOTIFY_OFFSET, "no such queue"),
        }
    }

    fn write_status(&self, value: u32) {
        let mut state = self.lock();
        // Drivers write back what they read; the bit is ours alone.
        let value = value & !VIRTIO_CONFIG_S_NEEDS_RESET;
        let added = value & !state.status;
        if value == 0 {
            state.reset();
            self.interrupt.reset();
        } else if state.status & !value != 0 {
            state.complain(VIRTIO_MMIO_STATUS.into(), "bits cannot be taken back one by one");
        } else if added == VIRTIO_CONFIG_S_FAILED {
            state.status = value;
        } else if added != 0 {
            self.step(&mut state, added);
        }
    }

    fn step(&self, state: &mut State, added: u32) {
        let next = STEPS.into_iter().find(|&bit| state.status & bit == 0);
        if next != Some(added) || state.status & VIRTIO_CONFIG_S_FAILED != 0 {
            return state.complain(VIRTIO_MMIO_STATUS.into(), "not the next step");
        }
        match added {
            VIRTIO_CONFIG_S_FEATURES_OK if !state.features_acceptable() => {
                state.complain(VIRTIO_MMIO_STATUS.into(), "features that cannot be agreed on");
            }
            VIRTIO_CONFIG_S_DRIVER_OK => {
                state.status |= added;
                self.interrupt.go_live();
                self.activate(state);
            }
            _ => state.status |= added,
        }
    }

    fn activate(&self, state: &mut State) {
        let event_idx = state.driver_features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        let build = |index, config: &QueueConfig, kick: &Arc<EventFd>| {
            let queue = config.build(event_idx).map_err(|source| QueueError::Ring { index, source })?;
            VirtQueue::new(index, queue, Arc::clone(kick), self.access.clone())
        };
        let queues: Result<Vec<_>, _> = (0u16..)
            .zip(&state.queues)
            .zip(&self.kicks)
            .filter(|((_, config), _)| config.is_ready())
            .map(|((index, config), kick)| build(index, config, kick))
            .collect();
        let queues = match queues {
            Ok(queues) => queues,
            Err(error) => return self.interrupt.require_reset(&error),
        };
        let activation = Activation {
            memory: self.memory.clone(),
            queues,
            interrupt: self.interrupt.clone(),
            features: state.driver_features,
        };
        if let Err(error) = state.device.activate(activation) {
            self.interrupt.require_reset(&error);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn offered(&self) -> u64 {
        self.device.device_features() | self.transport_features
    }

    fn features_acceptable(&self) -> bool {
        self.driver_features & !self.offered() == 0 && self.driver_features & (1 << VIRTIO_F_VERSION_1) != 0
    }

    fn has(&self, bit: u32) -> bool {
        self.status & bit != 0
    }

    fn reset(&mut self) {
        if self.has(VIRTIO_CONFIG_S_DRIVER_OK) {
            self.device.reset();
        }
        self.status = 0;
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.driver_features = 0;
        self.queue_select = 0;
        self.queues.iter_mut().for_each(QueueConfig::reset);
        self.complained = false;
    }

    fn selected(&mut self) -> Option<&mut QueueConfig> {
        self.queues.get_mut(usize::try_from(self.queue_select).ok()?)
    }

    fn read_register(&mut self, register: u32) -> u32 {
        match register {
            VIRTIO_MMIO_DEVICE_ID => self.device.device_id(),
            VIRTIO_MMIO_DEVICE_FEATURES => half(self.offered(), self.device_features_select),
            VIRTIO_MMIO_QUEUE_NUM_MAX => self.selected().map_or(0, |queue| queue.max_size().into()),
            VIRTIO_MMIO_QUEUE_READY => self.selected().is_some_and(|queue| queue.is_ready()).into(),
            VIRTIO_MMIO_STATUS => self.status,
            _ => 0,
        }
    }

    fn write_register(&mut self, memory: &GuestMemoryMmap, register: u32, value: u32) {
        match register {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_select = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_select = value,
            VIRTIO_MMIO_QUEUE_SEL => self.queue_select = value,
            VIRTIO_MMIO_DRIVER_FEATURES => self.write_driver_features(value),
            // There are no regions to select.
            VIRTIO_MMIO_SHM_SEL => {}
            VIRTIO_MMIO_QUEUE_NUM
            | VIRTIO_MMIO_QUEUE_READY
            | VIRTIO_MMIO_QUEUE_DESC_LOW
            | VIRTIO_MMIO_QUEUE_DESC_HIGH
            | VIRTIO_MMIO_QUEUE_AVAIL_LOW
            | VIRTIO_MMIO_QUEUE_AVAIL_HIGH
            | VIRTIO_MMIO_QUEUE_USED_LOW
            | VIRTIO_MMIO_QUEUE_USED_HIGH => self.write_queue(memory, register, value),
            _ => self.complain(register.into(), "not a writable register"),
        }
    }

    fn write_driver_features(&mut self, value: u32) {
        if !self.has(VIRTIO_CONFIG_S_DRIVER) || self.has(VIRTIO_CONFIG_S_FEATURES_OK) {
            return self.complain(VIRTIO_MMIO_DRIVER_FEATURES.into(), "not between DRIVER and FEATURES_OK");
        }
        let value = u64::from(value);
        match self.driver_features_select {
            0 => self.driver_features = self.driver_features & !0xFFFF_FFFF | value,
            1 => self.driver_features = self.driver_features & 0xFFFF_FFFF | value << 32,
            _ if value == 0 => {}
            _ => self.complain(VIRTIO_MMIO_DRIVER_FEATURES.into(), "features beyond the 64th"),
        }
    }

    /// The only way to a queue's configuration: closed before FEATURES_OK and, for good, at DRIVER_OK.
    fn write_queue(&mut self, memory: &GuestMemoryMmap, register: u32, value: u32) {
        if !self.has(VIRTIO_CONFIG_S_FEATURES_OK) || self.has(VIRTIO_CONFIG_S_DRIVER_OK) {
            return self.complain(register.into(), "queues are fixed outside of FEATURES_OK to DRIVER_OK");
        }
        let refused = match self.selected() {
            None => Some("no such queue".to_owned()),
            Some(queue) => queue.write(memory, register, value).err().map(|error| error.to_string()),
        };
        if let Some(why) = refused {
            self.complain(register.into(), &why);
        }
    }

    /// A driver that breaks rules gets one line in the log, however often it does.
    fn complain(&mut self, register: u64, why: &str) {
        if !std::mem::replace(&mut self.complained, true) {
            let id = self.device.device_id();
            log::warn!("virtio device of type {id}: write to register {register:#x} ignored: {why}");
        }
    }
}

/// The low or high half of 64 feature bits.
fn half(features: u64, select: u32) -> u32 {
    let [a, b, c, d, e, f, g, h] = features.to_le_bytes();
    match select {
        0 => u32::from_le_bytes([a, b, c, d]),
        1 => u32::from_le_bytes([e, f, g, h]),
        _ => 0,
    }
}

#[cfg(test)]
mod tests;
