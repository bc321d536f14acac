//! A queue's registers until the driver is ready (virtio 1.2, section 4.2.2).

use virtio_bindings::virtio_mmio::*;
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Why a queue does not take a register write.
#[derive(Debug, thiserror::Error)]
pub enum QueueConfigError {
    /// Its registers are fixed while it is ready.
    #[error("expected a queue that is not ready, found it ready")]
    Ready,
    /// A size that split queues cannot have, or beyond the device's limit.
    #[error("queue size: expected a power of two up to {max}, found {found}")]
    Size {
        /// The device's limit.
        max: u16,
        /// What the driver wrote.
        found: u32,
    },
    /// A ring that is not aligned as section 2.7 asks.
    #[error("{ring}: expected an address aligned to {alignment}, found {address:#x}")]
    Alignment {
        /// Which part of the queue.
        ring: &'static str,
        /// Bytes.
        alignment: u64,
        /// Where the driver put it.
        address: u64,
    },
    /// A ring that is not wholly inside memory.
    #[error("{ring}: expected {length} bytes of memory, found none at {address:#x}")]
    OutsideMemory {
        /// Which part of the queue.
        ring: &'static str,
        /// Bytes.
        length: u64,
        /// Where the driver put it.
        address: u64,
    },
    /// QueueReady knows 0 and 1.
    #[error("QueueReady: expected 0 or 1, found {0}")]
    ReadyValue(u32),
    /// Not one of a queue's registers.
    #[error("expected a register of a queue, found {0:#x}")]
    Register(u32),
}

/// What the driver has written about one queue.
#[derive(Debug)]
pub(super) struct QueueConfig {
    max_size: u16,
    size: u32,
    descriptors: u64,
    available: u64,
    used: u64,
    /// The checked size, once the queue is ready.
    ready: Option<u16>,
}

impl QueueConfig {
    pub(super) fn new(max_size: u16) -> Self {
        Self { max_size, size: 0, descriptors: 0, available: 0, used: 0, ready: None }
    }

    pub(super) fn reset(&mut self) {
        *self = Self::new(self.max_size);
    }

    pub(super) fn max_size(&self) -> u16 {
        self.max_size
    }

    pub(super) fn is_ready(&self) -> bool {
        self.ready.is_some()
    }

    pub(super) fn write(
        &mut self,
        memory: &GuestMemoryMmap,
        register: u32,
        value: u32,
    ) -> Result<(), QueueConfigError> {
        if register == VIRTIO_MMIO_QUEUE_READY {
            self.ready = match value {
                0 => None,
                1 => Some(self.check(memory)?),
                _ => return Err(QueueConfigError::ReadyValue(value)),
            };
            return Ok(());
        }
        if self.is_ready() {
            return Err(QueueConfigError::Ready);
        }
        match register {
            VIRTIO_MMIO_QUEUE_NUM => self.size = value,
            VIRTIO_MMIO_QUEUE_DESC_LOW => set_low(&mut self.descriptors, value),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => set_high(&mut self.descriptors, value),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_low(&mut self.available, value),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_high(&mut self.available, value),
            VIRTIO_MMIO_QUEUE_USED_LOW => set_low(&mut self.used, value),
            VIRTIO_MMIO_QUEUE_USED_HIGH => set_high(&mut self.used, value),
            _ => return Err(QueueConfigError::Register(register)),
        }
        Ok(())
    }

    fn check(&self, memory: &GuestMemoryMmap) -> Result<u16, QueueConfigError> {
        let size = u16::try_from(self.size)
            .ok()
            .filter(|size| size.is_power_of_two() && *size <= self.max_size)
            .ok_or(QueueConfigError::Size { max: self.max_size, found: self.size })?;
        let entries = u64::from(size);
        // Sizes and alignments of section 2.7; both rings end with an event index of two bytes.
        for (ring, address, alignment, length) in [
            ("descriptor table", self.descriptors, 16, 16 * entries),
            ("available ring", self.available, 2, 6 + 2 * entries),
            ("used ring", self.used, 4, 6 + 8 * entries),
        ] {
            if address % alignment != 0 {
                return Err(QueueConfigError::Alignment { ring, alignment, address });
            }
            let inside = usize::try_from(length)
                .is_ok_and(|length| memory.check_range(GuestAddress(address), length))
                && address.checked_add(length).is_some();
            if !inside {
                return Err(QueueConfigError::OutsideMemory { ring, length, address });
            }
        }
        Ok(size)
    }

    /// Builds the queue. Only a ready queue has a checked configuration.
    pub(super) fn build(&self, event_idx: bool) -> Result<Queue, virtio_queue::Error> {
        let size = self.ready.ok_or(virtio_queue::Error::QueueNotReady)?;
        let mut queue = Queue::new(self.max_size)?;
        queue.try_set_size(size)?;
        queue.try_set_desc_table_address(GuestAddress(self.descriptors))?;
        queue.try_set_avail_ring_address(GuestAddress(self.available))?;
        queue.try_set_used_ring_address(GuestAddress(self.used))?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        Ok(queue)
    }
}

fn set_low(address: &mut u64, value: u32) {
    *address = *address & !0xFFFF_FFFF | u64::from(value);
}

fn set_high(address: &mut u64, value: u32) {
    *address = *address & 0xFFFF_FFFF | u64::from(value) << 32;
}
