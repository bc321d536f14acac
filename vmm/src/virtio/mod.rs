//! Virtio devices behind virtio-mmio (virtio 1.2, sections 2, 4.2 and 5).
//!
//! Everything that the guest writes is hostile. The [transport](mmio) owns registers and queue addresses and
//! checks them; at DRIVER_OK it hands finished queues to the device, and nothing can change them after that.
//! A device consists of a front, which answers for its configuration on virtual CPU threads, and a worker,
//! which owns the queues on an event loop thread. Workers read descriptors only through [`chain::Chain`].
//! A driver that breaks the rules of a ring gets DEVICE_NEEDS_RESET, and its device stands still until then.

pub mod blk;
pub mod chain;
pub mod disk;
mod guest_io;
pub mod host_access;
pub mod interrupt;
pub mod mmio;
pub mod queue;
mod queue_config;
pub mod rng;
#[cfg(test)]
mod testing;
pub mod vsock;

use vm_memory::GuestMemoryMmap;

use crate::event_loop::LoopError;

pub use self::interrupt::{Interrupt, InterruptLine};
pub use self::queue::VirtQueue;

/// What a device gets when its driver is ready.
#[derive(Debug)]
pub struct Activation {
    /// The guest's memory.
    pub memory: GuestMemoryMmap,
    /// The queues that the driver has made ready, in the order of their indices.
    pub queues: Vec<VirtQueue>,
    /// Tells the driver of used buffers.
    pub interrupt: Interrupt,
    /// The features that both sides agreed on.
    pub features: u64,
}

impl Activation {
    /// Takes the queue with `index` out.
    ///
    /// # Errors
    /// When the driver has not made it ready.
    pub fn take_queue(&mut self, index: u16) -> Result<VirtQueue, ActivateError> {
        let position = self.queues.iter().position(|queue| queue.index() == index);
        position.map(|found| self.queues.remove(found)).ok_or(ActivateError::MissingQueue { index })
    }
}

/// Why a device cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The driver left out a queue that the device cannot work without.
    #[error("expected queue {index} to be ready at DRIVER_OK, found it not ready")]
    MissingQueue {
        /// Which.
        index: u16,
    },
    /// The worker could not be started.
    #[error(transparent)]
    Loop(#[from] LoopError),
    /// A resource of the device could not be prepared.
    #[error("preparing the device: {0}")]
    Io(#[from] std::io::Error),
}

/// A device, as the transport sees it. All methods run on virtual CPU threads, one at a time.
pub trait VirtioDevice: Send {
    /// Device ID (virtio 1.2, section 5).
    fn device_id(&self) -> u32;

    /// For every queue, the most descriptors that it may have: a power of two.
    fn queue_max_sizes(&self) -> &[u16];

    /// The features of this kind of device; the transport adds those of the ring and the bus.
    fn device_features(&self) -> u64;

    /// Fills `data` from the configuration space at `offset`; `data` comes zeroed, and what lies outside of
    /// the configuration stays so. See [`read_config_bytes`].
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Starts the worker.
    ///
    /// # Errors
    /// When it cannot start; the driver then finds DEVICE_NEEDS_RESET.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Stops the worker. When it returns, nothing touches the queues or the guest's memory any more.
    fn reset(&mut self);
}

/// Copies what `config` has at `offset` to the front of `data`.
pub fn read_config_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    let tail = usize::try_from(offset).ok().and_then(|offset| config.get(offset..)).unwrap_or_default();
    for (to, from) in data.iter_mut().zip(tail) {
        *to = *from;
    }
}
