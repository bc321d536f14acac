//! The entropy device (virtio 1.2, section 5.4): bytes from getrandom(2), a bounded number per request.

use std::io;

use rustix::rand::{GetRandomFlags, getrandom};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use vm_memory::GuestMemoryMmap;

use super::chain::{Chain, ChainError, Part};
use super::interrupt::Interrupt;
use super::queue::VirtQueue;
use super::{ActivateError, Activation, VirtioDevice};
use crate::event_loop::{Handler, HandlerId, Interest, LoopHandle, Readiness, Registry};

const QUEUE_SIZES: [u16; 1] = [16];
/// Most bytes that a request gets; a driver that asks for more gets these.
const MAX_BYTES: usize = 256;
/// Most bytes that a request may ask for.
const MAX_REQUEST: u32 = 1 << 20;

/// The device's front.
pub struct Rng {
    events: LoopHandle,
    worker: Option<HandlerId>,
}

impl Rng {
    /// A device that works on `events`.
    #[must_use]
    pub fn new(events: LoopHandle) -> Self {
        Self { events, worker: None }
    }
}

impl VirtioDevice for Rng {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn device_features(&self) -> u64 {
        0
    }

    /// The device has no configuration.
    fn read_config(&self, _: u64, _: &mut [u8]) {}

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let queue = activation.take_queue(0)?;
        let Activation { memory, interrupt, .. } = activation;
        let worker = Worker { memory, queue, interrupt, chain: Chain::new(MAX_REQUEST), broken: false };
        self.worker = Some(self.events.add(Box::new(worker))?);
        Ok(())
    }

    fn reset(&mut self) {
        if let Some(worker) = self.worker.take()
            && let Err(error) = self.events.remove(worker)
        {
            log::warn!("entropy device: {error}");
        }
    }
}

struct Worker {
    memory: GuestMemoryMmap,
    queue: VirtQueue,
    interrupt: Interrupt,
    chain: Chain,
    broken: bool,
}

impl Handler for Worker {
    fn start(&mut self, registry: &mut Registry<'_>) -> io::Result<()> {
        registry.watch(&self.queue, 0, Interest::Read)
    }

    fn ready(&mut self, _: u32, _: Readiness, _: &mut Registry<'_>) {
        if self.broken {
            return self.queue.drain_kick();
        }
        let memory = &self.memory;
        let served = self.queue.serve(memory, &self.interrupt, &mut self.chain, |chain| fill(memory, chain));
        if let Err(error) = served {
            self.broken = true;
            self.interrupt.require_reset(&format_args!("entropy device: {error}"));
        }
    }
}

/// Fills the front of a request; a host without entropy gives none.
fn fill(memory: &GuestMemoryMmap, chain: &Chain) -> Result<u32, ChainError> {
    let mut bytes = [0; MAX_BYTES];
    let wanted = usize::try_from(chain.len(Part::Writable)).unwrap_or(MAX_BYTES).min(MAX_BYTES);
    let filled = getrandom(bytes.split_at_mut(wanted).0, GetRandomFlags::NONBLOCK).unwrap_or(0);
    chain.write(memory, 0, bytes.split_at(filled).0)?;
    Ok(u32::try_from(filled).unwrap_or(0))
}

#[cfg(test)]
mod tests;
