//! A split virtqueue in the hands of a device (virtio 1.2, section 2.7).

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::chain::{Chain, ChainError};
use super::host_access::{HostAccess, Refusal};
use super::interrupt::Interrupt;

/// Why a queue cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The rings are inconsistent.
    #[error("queue {index}: {source}")]
    Ring {
        /// Which queue.
        index: u16,
        /// What is wrong with it.
        source: virtio_queue::Error,
    },
    /// A descriptor chain breaks the rules, or is not of the form that the device asks for.
    #[error("queue {index}: {source}")]
    Chain {
        /// Which queue.
        index: u16,
        /// What is wrong with it.
        source: ChainError,
    },
    /// A ring or buffer lies in memory that the host cannot reach.
    #[error("queue {index}: expected {length} bytes at {address:#x} to be shared with the host: {source}")]
    NotShared {
        /// Which queue.
        index: u16,
        /// Where.
        address: u64,
        /// How much.
        length: u64,
        /// What the hypervisor said.
        source: Refusal,
    },
}

/// A queue whose addresses and size are checked and final, and the descriptor that announces new buffers.
#[derive(Debug)]
pub struct VirtQueue {
    index: u16,
    queue: Queue,
    kick: Arc<EventFd>,
    access: Option<Arc<dyn HostAccess>>,
    unannounced: bool,
}

impl VirtQueue {
    /// Where the host has to ask for `access`, it is asked for the rings here, and for buffers as they come.
    ///
    /// # Errors
    /// When the host cannot reach a ring.
    pub(super) fn new(
        index: u16,
        queue: Queue,
        kick: Arc<EventFd>,
        access: Option<Arc<dyn HostAccess>>,
    ) -> Result<Self, QueueError> {
        let entries = u64::from(queue.size());
        let new = Self { index, queue, kick, access, unannounced: false };
        // Sizes of section 2.7.
        new.reach(new.queue.desc_table(), 16 * entries)?;
        new.reach(new.queue.avail_ring(), 6 + 2 * entries)?;
        new.reach(new.queue.used_ring(), 6 + 8 * entries)?;
        Ok(new)
    }

    fn reach(&self, address: u64, length: u64) -> Result<(), QueueError> {
        let index = self.index;
        let acquired = self.access.as_ref().map_or(Ok(()), |access| access.acquire(address, length));
        acquired.map_err(|source| QueueError::NotShared { index, address, length, source })
    }

    /// The queue's index in its device.
    #[must_use]
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Number of descriptors.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Forgets the notifications so far. To be called before looking for what they announced.
    pub fn drain_kick(&self) {
        // Nothing to read means nothing to forget.
        let _ = self.kick.read();
    }

    /// Loads the next chain that the driver has made available; `false` when there is none.
    ///
    /// # Errors
    /// When the ring or the chain is broken.
    pub fn pop(&mut self, memory: &GuestMemoryMmap, chain: &mut Chain) -> Result<bool, QueueError> {
        let index = self.index;
        let size = self.queue.size();
        let mut available = self.queue.iter(memory).map_err(|source| QueueError::Ring { index, source })?;
        let Some(descriptors) = available.next() else {
            return Ok(false);
        };
        chain.load(memory, descriptors, size).map_err(|source| QueueError::Chain { index, source })?;
        if self.access.is_some() {
            chain.buffers().try_for_each(|(address, length)| self.reach(address, length))?;
        }
        Ok(true)
    }

    /// Like [`VirtQueue::pop`]; when there is none, the driver is asked to notify of the next.
    ///
    /// # Errors
    /// When the ring or the chain is broken.
    pub fn pop_or_rearm(&mut self, memory: &GuestMemoryMmap, chain: &mut Chain) -> Result<bool, QueueError> {
        Ok(self.pop(memory, chain)? || self.rearm(memory)? && self.pop(memory, chain)?)
    }

    /// Gives a chain back, with `written` bytes written to the front of its writable part.
    ///
    /// # Errors
    /// When the used ring cannot be written.
    pub fn push_used(
        &mut self,
        memory: &GuestMemoryMmap,
        chain: &Chain,
        written: u32,
    ) -> Result<(), QueueError> {
        self.unannounced = true;
        self.queue.add_used(memory, chain.head(), written).map_err(|source| self.ring(source))
    }

    /// Interrupts the driver if it wants to know of what was given back since the last time.
    ///
    /// # Errors
    /// When the available ring cannot be read.
    pub fn announce(&mut self, memory: &GuestMemoryMmap, interrupt: &Interrupt) -> Result<(), QueueError> {
        if std::mem::take(&mut self.unannounced)
            && self.queue.needs_notification(memory).map_err(|source| self.ring(source))?
        {
            interrupt.queue_used();
        }
        Ok(())
    }

    /// Asks the driver for a notification of the next available buffer; `true` when one is there already.
    ///
    /// # Errors
    /// When the rings cannot be accessed.
    pub fn rearm(&mut self, memory: &GuestMemoryMmap) -> Result<bool, QueueError> {
        self.queue.enable_notification(memory).map_err(|source| self.ring(source))
    }

    /// Answers the available chains, one ring's length of them at most: if there are more, the queue kicks
    /// itself, so that a busy driver cannot keep the loop from its other work. `answer` returns the bytes
    /// that it wrote.
    ///
    /// # Errors
    /// When the ring or a chain is broken.
    pub fn serve(
        &mut self,
        memory: &GuestMemoryMmap,
        interrupt: &Interrupt,
        chain: &mut Chain,
        mut answer: impl FnMut(&Chain) -> Result<u32, ChainError>,
    ) -> Result<(), QueueError> {
        let index = self.index;
        self.drain_kick();
        let mut budget = self.queue.size();
        loop {
            self.queue.disable_notification(memory).map_err(|source| self.ring(source))?;
            while budget > 0 && self.pop(memory, chain)? {
                let written = answer(chain).map_err(|source| QueueError::Chain { index, source })?;
                self.push_used(memory, chain, written)?;
                budget -= 1;
            }
            if budget == 0 {
                self.kick_again();
                break;
            }
            if !self.rearm(memory)? {
                break;
            }
        }
        self.announce(memory, interrupt)
    }

    /// Makes the queue's descriptor readable, as if the driver had notified.
    pub fn kick_again(&self) {
        // It fails only when the counter is full, and then the descriptor is readable already.
        let _ = self.kick.write(1);
    }

    fn ring(&self, source: virtio_queue::Error) -> QueueError {
        QueueError::Ring { index: self.index, source }
    }
}

impl AsRawFd for VirtQueue {
    fn as_raw_fd(&self) -> RawFd {
        self.kick.as_raw_fd()
    }
}
