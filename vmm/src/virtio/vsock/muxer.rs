//! All connections of one guest: who they are, who has something to say, and when patience ends.
//!
//! Bounds: [`MAX_ENTRIES`] connections and greetings together, [`MAX_RESETS`] resets that wait for a receive
//! buffer (more are dropped: a guest that gives no buffers hears nothing), [`BUFFER_BYTES`](super::conn::BUFFER_BYTES) for each
//! connection. A connection that has something to send waits in a round-robin line, so none starves another,
//! and one whose host does not read is stopped by its own credit.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vm_memory::GuestMemoryMmap;

use super::conn::{Connection, Incoming};
use super::link::Link;
use super::packet::{self, HEADER_BYTES, MAX_PAYLOAD, Op, Packet, Parsed, Ports};
use super::stream::{Greeting, HostStream};
use crate::event_loop::{Interest, Readiness, Registry};
use crate::virtio::chain::{Chain, ChainError, Part};

/// Most connections and greetings at a time.
pub const MAX_ENTRIES: usize = 256;
/// Most resets that wait for a receive buffer.
const MAX_RESETS: usize = 256;
/// How long others may take.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// A host, for its line.
    pub greeting: Duration,
    /// A guest, to answer a request.
    pub request: Duration,
    /// A guest, to reset a connection that the host has closed.
    pub close: Duration,
}

/// Host ports of connections that the host asks for.
const FIRST_HOST_PORT: u32 = 1 << 30;
const LAST_HOST_PORT: u32 = (1 << 31) - 1;
/// Tokens of entries begin here in their lower half; below are the device's own.
pub const FIRST_TOKEN: u32 = 16;

enum Entry {
    Greeting { greeting: Greeting, deadline: Instant },
    Link(Link),
}

impl Entry {
    fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Greeting { deadline, .. } => Some(*deadline),
            Self::Link(link) => link.deadline,
        }
    }
}

/// A place for an entry. The token changes with every use, so that late events miss.
struct Place {
    token: u32,
    entry: Option<Entry>,
}

/// The connections.
pub struct Muxer {
    guest_cid: u64,
    path: PathBuf,
    listener: UnixListener,
    places: Vec<Place>,
    by_ports: HashMap<Ports, u32>,
    speaking: VecDeque<u32>,
    resets: VecDeque<Ports>,
    next_host_port: u32,
    patience: Patience,
    /// A deadline may have been set since the worker asked last.
    timed: bool,
}

impl Muxer {
    /// Connections of the guest with `guest_cid`; hosts come through `listener`, and guests reach `<path>_<port>`.
    pub fn new(guest_cid: u64, path: &Path, listener: UnixListener, patience: Patience) -> Self {
        Self {
            guest_cid,
            path: path.to_owned(),
            listener,
            places: Vec::new(),
            by_ports: HashMap::new(),
            speaking: VecDeque::new(),
            resets: VecDeque::new(),
            next_host_port: FIRST_HOST_PORT,
            patience,
            timed: false,
        }
    }

    /// Where hosts connect.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Whether a receive buffer would be of use.
    pub fn has_output(&self) -> bool {
        !(self.speaking.is_empty() && self.resets.is_empty())
    }

    /// Whether [`Muxer::expire`] should be called before long, by what was set since this was asked last.
    pub fn take_timed(&mut self) -> bool {
        std::mem::take(&mut self.timed)
    }

    /// Takes in the hosts that wait at the listener.
    pub fn accept(&mut self, registry: &mut Registry<'_>) {
        loop {
            match self.listener.accept() {
                Ok((socket, _)) => self.greet(socket, registry),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return log::warn!("vsock: accepting a connection: {error}"),
            }
        }
    }

    fn greet(&mut self, socket: UnixStream, registry: &mut Registry<'_>) {
        let deadline = Instant::now() + self.patience.greeting;
        let entry = Greeting::new(socket).map(|greeting| Entry::Greeting { greeting, deadline });
        self.timed = true;
        if let Err(error) = entry.and_then(|entry| self.insert(entry, registry)) {
            log::warn!("vsock: connection from the host refused: {error}");
        }
    }

    /// Acts on an event of an entry.
    pub fn event(&mut self, token: u32, readiness: Readiness, registry: &mut Registry<'_>) {
        match self.entry(token) {
            Some(Entry::Greeting { greeting, .. }) => match greeting.port() {
                Ok(None) => {}
                Ok(Some(port)) => self.request(token, port, registry),
                Err(error) => {
                    log::debug!("vsock: greeting: {error}");
                    self.remove(token, registry);
                }
            },
            Some(Entry::Link(link)) => {
                if link.note(readiness) {
                    self.speak_up(token);
                } else {
                    self.abort(token, registry);
                }
            }
            None => {}
        }
    }

    /// Gives up on those that took too long.
    pub fn expire(&mut self, now: Instant, registry: &mut Registry<'_>) {
        let is_late = |place: &&Place| {
            place.entry.as_ref().and_then(Entry::deadline).is_some_and(|deadline| deadline <= now)
        };
        let late: Vec<u32> = self.places.iter().filter(is_late).map(|place| place.token).collect();
        for token in late {
            self.abort(token, registry);
        }
        self.timed = self.places.iter().any(|place| place.entry.as_ref().and_then(Entry::deadline).is_some());
    }

    /// Closes everything without a word to the guest.
    pub fn close_all(&mut self, registry: &mut Registry<'_>) {
        let tokens: Vec<u32> = self.places.iter().map(|place| place.token).collect();
        for token in tokens {
            self.remove(token, registry);
        }
        self.speaking.clear();
        self.resets.clear();
    }

    /// Takes in a packet from the guest. Whatever is wrong with it costs at most its own connection.
    ///
    /// # Errors
    /// When guest memory that was checked cannot be read.
    pub fn receive(
        &mut self,
        memory: &GuestMemoryMmap,
        chain: &Chain,
        registry: &mut Registry<'_>,
    ) -> Result<(), ChainError> {
        let mut header = [0; HEADER_BYTES as usize];
        let Some(room) = chain.len(Part::Readable).checked_sub(HEADER_BYTES) else {
            return Ok(());
        };
        chain.read(memory, 0, &mut header)?;
        match packet::parse(header, self.guest_cid) {
            Parsed::Foreign => {}
            Parsed::Unsupported(ports) => self.refuse(ports, registry),
            Parsed::Packet(ports, packet) if packet.len > room.min(MAX_PAYLOAD) => {
                log::debug!("vsock: {ports:?}: {} bytes announced, {room} present", packet.len);
                self.refuse(ports, registry);
            }
            Parsed::Packet(ports, packet) => match self.by_ports.get(&ports) {
                Some(&token) => self.receive_known(token, &packet, memory, chain, registry)?,
                None if packet.op == Op::Request => self.connect(ports, &packet, registry),
                None if packet.op == Op::Reset => {}
                None => self.refuse(ports, registry),
            },
        }
        Ok(())
    }

    fn receive_known(
        &mut self,
        token: u32,
        packet: &Packet,
        memory: &GuestMemoryMmap,
        chain: &Chain,
        registry: &mut Registry<'_>,
    ) -> Result<(), ChainError> {
        let Some(link) = self.link(token) else {
            return Ok(());
        };
        let alive = match link.connection().receive(packet) {
            Ok(Incoming::Reset) => {
                self.remove(token, registry);
                return Ok(());
            }
            Ok(Incoming::Noted) => {
                link.pass_on_shutdown();
                true
            }
            Ok(Incoming::Accepted) => link.accepted(),
            Ok(Incoming::Data) => {
                link.deliver(chain.slices(memory, Part::Readable, HEADER_BYTES, packet.len)?);
                true
            }
            Err(violation) => {
                log::debug!("vsock: {:?} reset: {violation}", link.ports);
                false
            }
        };
        if alive {
            self.speak_up(token);
        } else {
            self.abort(token, registry);
        }
        Ok(())
    }

    /// Fills a receive buffer with the next packet: bytes written, or `None` when there is nothing to say.
    ///
    /// # Errors
    /// When the buffer has no room for a header and data, or cannot be written.
    pub fn send(
        &mut self,
        memory: &GuestMemoryMmap,
        chain: &Chain,
        registry: &mut Registry<'_>,
    ) -> Result<Option<u32>, ChainError> {
        // One byte of payload is the least with which data gets anywhere.
        drop(chain.slices(memory, Part::Writable, HEADER_BYTES, 1)?);
        if let Some(ports) = self.resets.pop_front() {
            let reset = Packet { op: Op::Reset, len: 0, flags: 0, buf_alloc: 0, fwd_cnt: 0 };
            chain.write(memory, 0, &packet::encode(ports, reset, self.guest_cid))?;
            return Ok(Some(HEADER_BYTES));
        }
        while let Some(token) = self.speaking.pop_front() {
            let (guest_cid, patience) = (self.guest_cid, self.patience);
            let Some(link) = self.link(token) else {
                continue;
            };
            link.queued = false;
            let Some(packet) = link.next_packet(memory, chain)? else {
                continue;
            };
            chain.write(memory, 0, &packet::encode(link.ports, packet, guest_cid))?;
            if link.connection().awaits_reset() {
                link.deadline.get_or_insert_with(|| Instant::now() + patience.close);
            }
            let timed = link.deadline.is_some();
            self.timed |= timed;
            if packet.op == Op::Reset {
                self.remove(token, registry);
            } else {
                self.speak_up(token);
            }
            return Ok(Some(HEADER_BYTES + packet.len));
        }
        Ok(None)
    }

    /// A host has named a port: ask the guest for it.
    fn request(&mut self, token: u32, guest_port: u32, registry: &mut Registry<'_>) {
        let Some(ports) = self.free_ports(guest_port) else {
            return self.remove(token, registry);
        };
        let deadline = Some(Instant::now() + self.patience.request);
        let Some(place) = self.place(token) else {
            return;
        };
        // The socket stays open and watched, under the same token.
        if let Some(Entry::Greeting { greeting, .. }) = place.entry.take() {
            let link = Link::new(ports, Connection::requested_by_host(), greeting.into_stream(), deadline);
            place.entry = Some(Entry::Link(link));
            self.by_ports.insert(ports, token);
            self.timed = true;
            self.speak_up(token);
        }
    }

    /// A guest asks for a host port: connect it, or refuse.
    fn connect(&mut self, ports: Ports, request: &Packet, registry: &mut Registry<'_>) {
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{}", ports.host));
        let connected = self
            .check_room()
            .and_then(|()| Connection::requested_by_guest(request).map_err(io::Error::other))
            .and_then(|connection| Ok((connection, HostStream::connect(Path::new(&path))?)))
            .map(|(connection, stream)| Link::new(ports, connection, stream, None))
            .and_then(|link| self.insert(Entry::Link(link), registry));
        match connected {
            Ok(token) => {
                self.by_ports.insert(ports, token);
                self.speak_up(token);
            }
            Err(error) => {
                log::debug!("vsock: guest's request for port {} refused: {error}", ports.host);
                self.reset(ports);
            }
        }
    }

    /// A host port that no connection to `guest` uses.
    fn free_ports(&mut self, guest: u32) -> Option<Ports> {
        (0..=MAX_ENTRIES).find_map(|_| {
            let host = self.next_host_port;
            self.next_host_port = if host == LAST_HOST_PORT { FIRST_HOST_PORT } else { host + 1 };
            Some(Ports { host, guest }).filter(|ports| !self.by_ports.contains_key(ports))
        })
    }

    /// Resets a connection, known or not.
    fn refuse(&mut self, ports: Ports, registry: &mut Registry<'_>) {
        match self.by_ports.get(&ports) {
            Some(&token) => self.abort(token, registry),
            None => self.reset(ports),
        }
    }

    /// Removes an entry, and tells the guest if it knows of it.
    fn abort(&mut self, token: u32, registry: &mut Registry<'_>) {
        if let Some(ports) = self.link(token).map(|link| link.ports) {
            self.reset(ports);
        }
        self.remove(token, registry);
    }

    fn reset(&mut self, ports: Ports) {
        if self.resets.len() < MAX_RESETS {
            self.resets.push_back(ports);
        }
    }

    /// Puts a link into the line if it has something to say.
    fn speak_up(&mut self, token: u32) {
        let Some(link) = self.link(token) else {
            return;
        };
        if !link.queued && link.has_output() {
            link.queued = true;
            self.speaking.push_back(token);
        }
    }

    fn free_place(&self) -> Option<usize> {
        self.places.iter().position(|place| place.entry.is_none())
    }

    fn check_room(&self) -> io::Result<()> {
        if self.places.len() < MAX_ENTRIES || self.free_place().is_some() {
            return Ok(());
        }
        Err(io::Error::other(format!("expected at most {MAX_ENTRIES} connections at a time, found one more")))
    }

    fn insert(&mut self, entry: Entry, registry: &mut Registry<'_>) -> io::Result<u32> {
        self.check_room()?;
        let index = self.free_place().unwrap_or(self.places.len());
        if index == self.places.len() {
            let token = FIRST_TOKEN + u32::try_from(index).map_err(io::Error::other)?;
            self.places.push(Place { token, entry: None });
        }
        let place = self.places.get_mut(index).ok_or(io::ErrorKind::NotFound)?;
        match &entry {
            Entry::Greeting { greeting, .. } => registry.watch(greeting, place.token, Interest::Edges)?,
            Entry::Link(link) => registry.watch(link.stream(), place.token, Interest::Edges)?,
        }
        place.entry = Some(entry);
        Ok(place.token)
    }

    fn remove(&mut self, token: u32, registry: &mut Registry<'_>) {
        let Some(place) = self.place(token) else {
            return;
        };
        // The upper half counts the uses.
        place.token = token.wrapping_add(1 << 16);
        match place.entry.take() {
            Some(Entry::Greeting { greeting, .. }) => registry.unwatch(&greeting),
            Some(Entry::Link(link)) => {
                registry.unwatch(link.stream());
                self.by_ports.remove(&link.ports);
            }
            None => {}
        }
    }

    fn place(&mut self, token: u32) -> Option<&mut Place> {
        let index = usize::try_from((token & 0xFFFF).checked_sub(FIRST_TOKEN)?).ok()?;
        self.places.get_mut(index).filter(|place| place.token == token)
    }

    fn entry(&mut self, token: u32) -> Option<&mut Entry> {
        self.place(token)?.entry.as_mut()
    }

    fn link(&mut self, token: u32) -> Option<&mut Link> {
        match self.entry(token)? {
            Entry::Link(link) => Some(link),
            Entry::Greeting { .. } => None,
        }
    }
}
