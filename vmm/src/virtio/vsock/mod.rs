//! The socket device (virtio 1.2, section 5.10) with Unix sockets as its host side ("hybrid vsock", the
//! protocol that Firecracker and Cloud Hypervisor speak).
//!
//! * A host connects to the device's Unix socket and sends `CONNECT <guest port>\n`. When the guest accepts, it
//!   reads `OK <host port>\n`, and the stream begins; when the guest refuses, the socket is closed.
//! * A guest that connects to port P of the host (CID 2) reaches whoever listens on `<path>_P`, and is reset
//!   if nobody does.
//!
//! Stream sockets only. [`packet`] is the wire format, [`conn`] one connection's state without any socket,
//! [`stream`] the host's socket, [`link`] the two together, [`muxer`] all of them; this file has the queues.

pub mod conn;
mod link;
mod muxer;
pub mod packet;
mod stream;

use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::timerfd::TimerFd;

use self::muxer::{FIRST_TOKEN, Muxer, Patience};
use self::packet::{HEADER_BYTES, MAX_PAYLOAD};
use super::chain::Chain;
use super::interrupt::Interrupt;
use super::queue::{QueueError, VirtQueue};
use super::{ActivateError, Activation, VirtioDevice, read_config_bytes};
use crate::event_loop::{Handler, HandlerId, Interest, LoopHandle, Readiness, Registry};

/// Receive, transmit, event: as the guest names them.
const QUEUE_SIZES: [u16; 3] = [128, 128, 8];
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const EVENT: u16 = 2;

const TOKEN_RECEIVE: u32 = 0;
const TOKEN_TRANSMIT: u32 = 1;
const TOKEN_EVENT: u32 = 2;
const TOKEN_LISTENER: u32 = 3;
const TOKEN_TIMER: u32 = 4;
const _: () = assert!(TOKEN_TIMER < FIRST_TOKEN);

/// Most bytes of a buffer. Drivers may offer larger receive buffers than we fill.
const MAX_BUFFER: u32 = HEADER_BYTES + 2 * MAX_PAYLOAD;
/// Far longer than an honest host or guest needs.
const PATIENCE: Patience = Patience {
    greeting: Duration::from_secs(5),
    request: Duration::from_secs(10),
    close: Duration::from_secs(8),
};
/// How often deadlines are looked at, while there are any.
const TICK: Duration = Duration::from_secs(1);

/// The device's front.
pub struct Vsock {
    guest_cid: u64,
    path: PathBuf,
    listener: UnixListener,
    events: LoopHandle,
    worker: Option<HandlerId>,
    patience: Patience,
}

impl Vsock {
    /// A device for the guest with `guest_cid` that listens at `path` from now on, and works on `events`. Hosts
    /// that connect before the guest's driver is ready wait. The socket's file is the caller's to remove.
    ///
    /// # Errors
    /// When `path` cannot be bound: it exists, its directory does not, or it is too long.
    pub fn new(guest_cid: u64, path: &Path, events: LoopHandle) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(Self { guest_cid, path: path.to_owned(), listener, events, worker: None, patience: PATIENCE })
    }
}

impl VirtioDevice for Vsock {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// Stream sockets are what a device without any feature has.
    fn device_features(&self) -> u64 {
        0
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.guest_cid.to_le_bytes(), offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let receive = activation.take_queue(RECEIVE)?;
        let transmit = activation.take_queue(TRANSMIT)?;
        let event = activation.take_queue(EVENT)?;
        let Activation { memory, interrupt, .. } = activation;
        let muxer = Muxer::new(self.guest_cid, &self.path, self.listener.try_clone()?, self.patience);
        let worker = Worker {
            memory,
            interrupt,
            receive,
            transmit,
            event,
            receive_chain: Chain::new(MAX_BUFFER),
            transmit_chain: Chain::new(MAX_BUFFER),
            has_buffer: false,
            muxer,
            timer: TimerFd::new().map_err(io::Error::from)?,
            ticking: false,
            broken: false,
        };
        self.worker = Some(self.events.add(Box::new(worker))?);
        Ok(())
    }

    fn reset(&mut self) {
        if let Some(worker) = self.worker.take()
            && let Err(error) = self.events.remove(worker)
        {
            log::warn!("vsock: {error}");
        }
    }
}

struct Worker {
    memory: GuestMemoryMmap,
    interrupt: Interrupt,
    receive: VirtQueue,
    transmit: VirtQueue,
    /// The driver's buffers for transport resets, which only a migrated guest would hear of: held, never used.
    event: VirtQueue,
    receive_chain: Chain,
    transmit_chain: Chain,
    /// `receive_chain` holds a buffer that was taken off the ring and not used yet.
    has_buffer: bool,
    muxer: Muxer,
    timer: TimerFd,
    ticking: bool,
    broken: bool,
}

impl Handler for Worker {
    fn start(&mut self, registry: &mut Registry<'_>) -> io::Result<()> {
        registry.watch(&self.receive, TOKEN_RECEIVE, Interest::Read)?;
        registry.watch(&self.transmit, TOKEN_TRANSMIT, Interest::Read)?;
        registry.watch(&self.event, TOKEN_EVENT, Interest::Read)?;
        registry.watch(self.muxer.listener(), TOKEN_LISTENER, Interest::Edges)?;
        registry.watch(&self.timer, TOKEN_TIMER, Interest::Read)
    }

    fn ready(&mut self, token: u32, readiness: Readiness, registry: &mut Registry<'_>) {
        if let Err(error) = self.act(token, readiness, registry) {
            self.broken = true;
            self.muxer.close_all(registry);
            self.interrupt.require_reset(&format_args!("vsock: {error}"));
        }
    }
}

impl Worker {
    fn act(
        &mut self,
        token: u32,
        readiness: Readiness,
        registry: &mut Registry<'_>,
    ) -> Result<(), QueueError> {
        match token {
            TOKEN_RECEIVE => self.receive.drain_kick(),
            TOKEN_TRANSMIT if self.broken => self.transmit.drain_kick(),
            TOKEN_TRANSMIT => self.take_packets(registry)?,
            TOKEN_EVENT => self.event.drain_kick(),
            TOKEN_LISTENER => self.muxer.accept(registry),
            TOKEN_TIMER => self.tick(registry),
            _ => self.muxer.event(token, readiness, registry),
        }
        if !self.broken {
            self.give_packets(registry)?;
        }
        self.keep_time();
        Ok(())
    }

    fn take_packets(&mut self, registry: &mut Registry<'_>) -> Result<(), QueueError> {
        let Self { memory, interrupt, muxer, .. } = self;
        self.transmit.serve(memory, interrupt, &mut self.transmit_chain, |chain| {
            muxer.receive(memory, chain, registry)?;
            // Nothing is ever written to a buffer that the guest sends.
            Ok(0)
        })
    }

    /// Fills receive buffers while there are packets; a ring's length of them, then others get their turn.
    fn give_packets(&mut self, registry: &mut Registry<'_>) -> Result<(), QueueError> {
        let memory = &self.memory;
        let index = RECEIVE;
        for _ in 0..self.receive.size() {
            if !self.muxer.has_output() {
                return self.receive.announce(memory, &self.interrupt);
            }
            if !self.has_buffer && !self.receive.pop_or_rearm(memory, &mut self.receive_chain)? {
                return self.receive.announce(memory, &self.interrupt);
            }
            let sent = self.muxer.send(memory, &self.receive_chain, registry);
            let written = sent.map_err(|source| QueueError::Chain { index, source })?;
            self.has_buffer = written.is_none();
            if let Some(written) = written {
                self.receive.push_used(memory, &self.receive_chain, written)?;
            }
        }
        self.receive.kick_again();
        self.receive.announce(memory, &self.interrupt)
    }

    fn tick(&mut self, registry: &mut Registry<'_>) {
        // It is readable, so this does not wait.
        if let Err(error) = self.timer.wait() {
            log::warn!("vsock: timer: {error}");
        }
        self.ticking = false;
        self.muxer.expire(Instant::now(), registry);
    }

    fn keep_time(&mut self) {
        if self.muxer.take_timed() && !self.ticking {
            match self.timer.reset(TICK, None) {
                Ok(()) => self.ticking = true,
                Err(error) => log::warn!("vsock: timer: {error}"),
            }
        }
    }
}

#[cfg(test)]
mod tests;
