//! One connection's state, without sockets: phases, credit and half-closed directions.
//!
//! Credit (virtio 1.2, section 5.10.6.3) works the same way in both directions: a side may have at most
//! `buf_alloc` bytes under way that the other has not yet counted in `fwd_cnt`. What the guest may send is
//! bounded by [`BUFFER_BYTES`], so that is all that a connection ever buffers. What it announces for its own
//! buffer only ever limits how much is read from the host's socket; nothing is allocated for it.

use std::num::Wrapping;

use super::packet::{Op, Packet, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

/// Bytes from the guest that a connection buffers while the host's socket does not take them.
pub const BUFFER_BYTES: u32 = 64 * 1024;
/// Taken bytes after which the guest is told without having asked.
const UPDATE_AFTER: u32 = BUFFER_BYTES / 4;
/// Most that the guest's buffer counts for. It keeps counters that run ahead apart from counters that lag.
const MAX_PEER_BUFFER: u32 = 1 << 30;

/// How a guest breaks the protocol. The connection is reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A packet that does not fit the connection's phase.
    #[error("unexpected packet for the state of the connection")]
    Phase,
    /// More data than it had credit for.
    #[error("data beyond the credit")]
    Credit,
    /// It claims to have taken bytes that were never sent.
    #[error("forward count ahead of what was sent")]
    ForwardCount,
    /// Data after it has said that there will be no more.
    #[error("data after shutdown")]
    AfterShutdown,
    /// Shutdown flags that do not exist, or payload where there can be none.
    #[error("malformed packet")]
    Malformed,
}

/// What a packet from the guest means for the host's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Incoming {
    /// The guest has accepted.
    Accepted,
    /// The packet's payload is for the host.
    Data,
    /// Nothing to do but to look whether there is something to send.
    Noted,
    /// The connection is gone.
    Reset,
}

/// How the host's socket is doing.
#[derive(Debug, Clone, Copy)]
pub struct HostSide {
    /// There may be something to read.
    pub readable: bool,
    /// Everything from the guest has been passed on, or can no longer be.
    pub flushed: bool,
}

/// What to send next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outgoing {
    /// A packet without payload.
    Control(Op),
    /// Data from the host's socket, at most this many bytes.
    Data(u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The host asks; the request has to be sent.
    Requesting,
    /// The request is sent.
    Requested,
    /// The guest asked; the response has to be sent.
    Accepting,
    Open,
}

/// The state.
#[derive(Debug)]
pub struct Connection {
    phase: Phase,
    /// Bytes from the guest.
    received: Wrapping<u32>,
    /// Of those, passed on to the host's socket.
    forwarded: Wrapping<u32>,
    /// What the guest was last told of `forwarded`.
    announced: Wrapping<u32>,
    /// Bytes to the guest.
    sent: Wrapping<u32>,
    /// Of those, taken by the guest.
    peer_forwarded: Wrapping<u32>,
    peer_buffer: u32,
    /// What the guest has shut down.
    peer_shutdown: u32,
    /// What the host has shut down, and what of that the guest was told.
    host_shutdown: u32,
    announced_shutdown: u32,
    update_due: bool,
    credit_requested: bool,
}

impl Connection {
    /// A connection that the host asks for.
    #[must_use]
    pub fn requested_by_host() -> Self {
        Self::new(Phase::Requesting)
    }

    /// A connection that the guest asked for by `request`, and that the host accepts.
    ///
    /// # Errors
    /// When the request is malformed.
    pub fn requested_by_guest(request: &Packet) -> Result<Self, Violation> {
        let mut connection = Self::new(Phase::Accepting);
        if request.op != Op::Request || request.len != 0 {
            return Err(Violation::Malformed);
        }
        connection.note_credit(request)?;
        Ok(connection)
    }

    fn new(phase: Phase) -> Self {
        let zero = Wrapping(0);
        Self {
            phase,
            received: zero,
            forwarded: zero,
            announced: zero,
            sent: zero,
            peer_forwarded: zero,
            peer_buffer: 0,
            peer_shutdown: 0,
            host_shutdown: 0,
            announced_shutdown: 0,
            update_due: false,
            credit_requested: false,
        }
    }

    /// Notes a packet from the guest.
    ///
    /// # Errors
    /// When the guest breaks the protocol: the connection has to be reset.
    pub fn receive(&mut self, packet: &Packet) -> Result<Incoming, Violation> {
        if packet.op == Op::Reset {
            return Ok(Incoming::Reset);
        }
        if packet.op != Op::Data && packet.len != 0 {
            return Err(Violation::Malformed);
        }
        self.note_credit(packet)?;
        match (self.phase, packet.op) {
            (Phase::Requested, Op::Response) => {
                self.phase = Phase::Open;
                Ok(Incoming::Accepted)
            }
            (Phase::Open, Op::Data) => self.receive_data(packet.len),
            (Phase::Open, Op::CreditUpdate) => Ok(Incoming::Noted),
            (Phase::Open, Op::CreditRequest) => {
                self.update_due = true;
                Ok(Incoming::Noted)
            }
            (Phase::Open, Op::Shutdown) if packet.flags & !SHUTDOWN_BOTH != 0 => Err(Violation::Malformed),
            (Phase::Open, Op::Shutdown) => {
                self.peer_shutdown |= packet.flags;
                Ok(Incoming::Noted)
            }
            _ => Err(Violation::Phase),
        }
    }

    fn note_credit(&mut self, packet: &Packet) -> Result<(), Violation> {
        let before = (self.sent - self.peer_forwarded).0;
        let now = (self.sent - Wrapping(packet.fwd_cnt)).0;
        // A count ahead of what was sent is a number below zero: beyond everything that can be under way.
        if now > MAX_PEER_BUFFER {
            return Err(Violation::ForwardCount);
        }
        // A guest may number packets on several CPUs before it queues them, so an old count is no abuse.
        if now <= before {
            self.peer_forwarded = Wrapping(packet.fwd_cnt);
        }
        self.peer_buffer = packet.buf_alloc.min(MAX_PEER_BUFFER);
        if self.credit() > 0 {
            self.credit_requested = false;
        }
        Ok(())
    }

    fn receive_data(&mut self, len: u32) -> Result<Incoming, Violation> {
        if self.peer_shutdown & SHUTDOWN_SEND != 0 {
            return Err(Violation::AfterShutdown);
        }
        if len > BUFFER_BYTES - (self.received - self.forwarded).0 {
            return Err(Violation::Credit);
        }
        self.received += len;
        Ok(Incoming::Data)
    }

    /// Notes that `len` more bytes from the guest left the buffer.
    pub fn forward(&mut self, len: u32) {
        let buffered = (self.received - self.forwarded).0;
        self.forwarded += len.min(buffered);
    }

    /// Notes that all bytes from the guest left the buffer: the host does not want them any more.
    pub fn forward_all(&mut self) {
        self.forwarded = self.received;
    }

    /// Notes that nothing more will come from the host.
    pub fn host_sends_no_more(&mut self) {
        self.host_shutdown |= SHUTDOWN_SEND;
    }

    /// Notes that the host will take nothing more.
    pub fn host_receives_no_more(&mut self) {
        self.host_shutdown |= SHUTDOWN_RECEIVE;
    }

    /// Whether the guest has said that it will send no more.
    #[must_use]
    pub fn guest_sends_no_more(&self) -> bool {
        self.peer_shutdown & SHUTDOWN_SEND != 0
    }

    /// Whether the guest has said that it will receive no more.
    #[must_use]
    pub fn guest_receives_no_more(&self) -> bool {
        self.peer_shutdown & SHUTDOWN_RECEIVE != 0
    }

    /// Whether the host still takes data.
    #[must_use]
    pub fn host_receives(&self) -> bool {
        self.host_shutdown & SHUTDOWN_RECEIVE == 0
    }

    /// Whether the guest has accepted, or was accepted.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Whether the guest has been told that both directions have ended: only its reset is missing.
    #[must_use]
    pub fn awaits_reset(&self) -> bool {
        self.announced_shutdown == SHUTDOWN_BOTH
    }

    /// Bytes that the guest can still buffer.
    fn credit(&self) -> u32 {
        self.peer_buffer.saturating_sub((self.sent - self.peer_forwarded).0)
    }

    /// What to send next, if anything.
    #[must_use]
    pub fn next(&self, host: HostSide) -> Option<Outgoing> {
        match self.phase {
            Phase::Requesting => Some(Outgoing::Control(Op::Request)),
            Phase::Requested => None,
            Phase::Accepting => Some(Outgoing::Control(Op::Response)),
            Phase::Open => self.next_open(host),
        }
    }

    fn next_open(&self, host: HostSide) -> Option<Outgoing> {
        let guest_receives = self.peer_shutdown & SHUTDOWN_RECEIVE == 0;
        let host_sends = self.host_shutdown & SHUTDOWN_SEND == 0;
        if self.is_over(host) {
            return Some(Outgoing::Control(Op::Reset));
        }
        if self.update_due || (self.forwarded - self.announced).0 >= UPDATE_AFTER {
            return Some(Outgoing::Control(Op::CreditUpdate));
        }
        if self.host_shutdown != self.announced_shutdown {
            return Some(Outgoing::Control(Op::Shutdown));
        }
        if !(host.readable && host_sends && guest_receives) {
            return None;
        }
        match self.credit() {
            0 if self.credit_requested => None,
            0 => Some(Outgoing::Control(Op::CreditRequest)),
            credit => Some(Outgoing::Data(credit)),
        }
    }

    /// Both directions have ended, and the guest has done its part: the reset is ours (section 5.10.6.6).
    fn is_over(&self, host: HostSide) -> bool {
        let from_guest = self.peer_shutdown & SHUTDOWN_SEND != 0 && host.flushed;
        let to_guest = (self.peer_shutdown & SHUTDOWN_RECEIVE | self.announced_shutdown & SHUTDOWN_SEND) != 0;
        from_guest && to_guest
    }

    /// Makes the packet that carries `op` and `len` bytes, and notes that it is sent.
    pub fn send(&mut self, op: Op, len: u32) -> Packet {
        match op {
            Op::Request => self.phase = Phase::Requested,
            Op::Response => self.phase = Phase::Open,
            Op::Shutdown => self.announced_shutdown = self.host_shutdown,
            Op::CreditRequest => self.credit_requested = true,
            Op::Reset | Op::Data | Op::CreditUpdate => {}
        }
        self.sent += len;
        self.announced = self.forwarded;
        self.update_due = false;
        let flags = if op == Op::Shutdown { self.host_shutdown } else { 0 };
        Packet { op, len, flags, buf_alloc: BUFFER_BYTES, fwd_cnt: self.forwarded.0 }
    }
}

#[cfg(test)]
mod tests;
