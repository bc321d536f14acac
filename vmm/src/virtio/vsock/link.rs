//! A connection together with its host's socket: what one learns, the other is told.

use std::net::Shutdown;
use std::time::Instant;

use vm_memory::{GuestMemoryError, GuestMemoryMmap, VolatileSlice};

use super::conn::{Connection, Outgoing};
use super::packet::{HEADER_BYTES, MAX_PAYLOAD, Op, Packet, Ports};
use super::stream::{HostStream, ReadOutcome};
use crate::event_loop::Readiness;
use crate::virtio::chain::{Chain, ChainError, Part};

/// A connection and its host.
#[derive(Debug)]
pub struct Link {
    /// Who they are.
    pub ports: Ports,
    /// Whether it waits in the line of those who have something to send.
    pub queued: bool,
    /// When patience with the guest ends, if it owes an answer.
    pub deadline: Option<Instant>,
    connection: Connection,
    stream: HostStream,
}

impl Link {
    /// Binds `connection` to `stream`.
    pub fn new(ports: Ports, connection: Connection, stream: HostStream, deadline: Option<Instant>) -> Self {
        Self { ports, queued: false, deadline, connection, stream }
    }

    /// The host's socket.
    pub fn stream(&self) -> &HostStream {
        &self.stream
    }

    /// The connection's state.
    pub fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// Whether there may be something to send.
    pub fn has_output(&self) -> bool {
        self.connection.next(self.stream.side()).is_some()
    }

    /// Notes an event of the socket; `false` when that is the end of the connection.
    pub fn note(&mut self, readiness: Readiness) -> bool {
        self.stream.note(readiness);
        if !self.connection.is_open() {
            return !readiness.hung_up();
        }
        if readiness.hung_up() {
            self.host_is_gone();
        } else {
            match self.stream.flush() {
                Ok(taken) => self.connection.forward(taken),
                Err(_) => self.host_is_gone(),
            }
        }
        self.pass_on_shutdown();
        true
    }

    /// Tells the host that the guest has accepted; `false` when that is no longer possible.
    pub fn accepted(&mut self) -> bool {
        self.deadline = None;
        self.stream.greet(self.ports.host).is_ok()
    }

    /// Passes payload on to the host. What comes after the host has gone was under way then, and is dropped.
    pub fn deliver<'m>(&mut self, slices: impl Iterator<Item = Result<VolatileSlice<'m>, GuestMemoryError>>) {
        if !self.connection.host_receives() {
            return self.connection.forward_all();
        }
        match self.stream.write(slices) {
            Ok(taken) => self.connection.forward(taken),
            Err(_) => self.host_is_gone(),
        }
    }

    /// Shuts the socket down where the guest has shut the connection down.
    pub fn pass_on_shutdown(&self) {
        if self.connection.guest_sends_no_more() && self.stream.side().flushed {
            self.stream.shut_down(Shutdown::Write);
        }
        if self.connection.guest_receives_no_more() {
            self.stream.shut_down(Shutdown::Read);
        }
    }

    /// Makes the next packet, its payload already in `chain` behind the room for the header.
    ///
    /// # Errors
    /// When `chain` has no room for data.
    pub fn next_packet(
        &mut self,
        memory: &GuestMemoryMmap,
        chain: &Chain,
    ) -> Result<Option<Packet>, ChainError> {
        while let Some(outgoing) = self.connection.next(self.stream.side()) {
            let credit = match outgoing {
                Outgoing::Control(op) => return Ok(Some(self.connection.send(op, 0))),
                Outgoing::Data(credit) => credit,
            };
            let room = chain.len(Part::Writable).saturating_sub(HEADER_BYTES);
            let wanted = credit.min(room).min(MAX_PAYLOAD);
            match self.stream.read(chain.slices(memory, Part::Writable, HEADER_BYTES, wanted)?) {
                Ok(ReadOutcome::Bytes(length)) => return Ok(Some(self.connection.send(Op::Data, length))),
                // The socket is no longer readable: the next turn finds something else or nothing.
                Ok(ReadOutcome::Nothing) => {}
                Ok(ReadOutcome::End) => self.connection.host_sends_no_more(),
                Err(_) => {
                    self.connection.host_sends_no_more();
                    self.host_is_gone();
                }
            }
        }
        Ok(None)
    }

    fn host_is_gone(&mut self) {
        self.connection.host_receives_no_more();
        self.connection.forward_all();
        self.stream.discard();
    }
}
