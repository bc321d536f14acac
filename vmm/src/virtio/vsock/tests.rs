//! The socket device through its rings, with real Unix sockets on the host's side.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use virtio_bindings::virtio_mmio::VIRTIO_MMIO_STATUS;

use super::muxer::MAX_ENTRIES;
use super::packet::*;
use super::*;
use crate::event_loop::EventLoop;
use crate::virtio::testing::{DATA, Driver, HIGH_BASE, WRITE, wait_for};

const CID: u64 = 3;
const SIZE: u16 = 8;
const BUFFER: u32 = 4096;
const PAYLOAD: u64 = DATA + 0x1000;

struct Bench {
    driver: Driver,
    path: PathBuf,
    _directory: tempfile::TempDir,
    _events: EventLoop,
}

/// A connection that a test made, from the guest's point of view.
struct Peer {
    ports: Ports,
    host: UnixStream,
}

impl Bench {
    fn new() -> Self {
        Self::with_patience(PATIENCE)
    }

    fn with_patience(patience: Patience) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vsock");
        let events = EventLoop::spawn("test-vsock").unwrap();
        let driver = Driver::new(|_| {
            let device = Vsock::new(CID, &path, events.handle()).unwrap();
            Vsock { patience, ..device }
        });
        let mut bench = Self { driver, path, _directory: directory, _events: events };
        bench.start();
        bench
    }

    fn start(&mut self) {
        self.driver.start(SIZE, 0);
        for index in 0..SIZE {
            let address = HIGH_BASE + u64::from(index) * u64::from(BUFFER);
            self.driver.link(0, index, &[(address, BUFFER, WRITE)]);
            self.driver.offer(0, index);
        }
        self.driver.kick(0);
    }

    fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(format!("{}_{port}", self.path.display())).unwrap()
    }

    fn send_raw(&mut self, header: &HeaderBytes, room: u32) {
        self.driver.put(DATA, header);
        let chain = [(DATA, HEADER_BYTES, 0), (PAYLOAD, room, 0)];
        assert_eq!(self.driver.run(1, &chain[..if room == 0 { 1 } else { 2 }]), 0);
    }

    fn send(&mut self, ports: Ports, packet: Packet) {
        self.send_raw(&header(ports, packet), packet.len);
    }

    fn send_op(&mut self, ports: Ports, op: Op) {
        self.send(ports, packet(op));
    }

    fn send_data(&mut self, ports: Ports, bytes: &[u8]) {
        self.driver.put(PAYLOAD, bytes);
        self.send(ports, Packet { len: u32::try_from(bytes.len()).unwrap(), ..packet(Op::Data) });
    }

    /// The next packet for the guest: ports, operation, flags, payload. Its buffer is offered again.
    fn receive(&mut self) -> (Ports, Op, u32, Vec<u8>) {
        let (index, written) = self.driver.used(0);
        self.take(index, written)
    }

    fn take(&mut self, index: u32, written: u32) -> (Ports, Op, u32, Vec<u8>) {
        let address = HIGH_BASE + u64::from(index) * u64::from(BUFFER);
        let mut bytes = self.driver.bytes(address, usize::try_from(written).unwrap());
        let payload = bytes.split_off(44);
        // What the host sends reads like what a guest sends with the addresses swapped.
        let mut header: HeaderBytes = bytes.try_into().unwrap();
        header[..16].rotate_left(8);
        header[16..24].rotate_left(4);
        let Parsed::Packet(ports, packet) = parse(header, CID) else { panic!("not a packet") };
        assert_eq!(usize::try_from(packet.len).unwrap(), payload.len());
        self.driver.offer(0, u16::try_from(index).unwrap());
        self.driver.kick(0);
        (ports, packet.op, packet.flags, payload)
    }

    fn expect(&mut self, ports: Ports, op: Op) -> (u32, Vec<u8>) {
        let (found, found_op, flags, payload) = self.receive();
        assert_eq!((found, found_op), (ports, op));
        (flags, payload)
    }

    /// Nothing comes for the guest: a request that must be refused is answered first.
    fn expect_silence(&mut self) {
        let probe = Ports { host: 9999, guest: 9999 };
        self.send_op(probe, Op::Request);
        self.expect(probe, Op::Reset);
    }

    fn dial(&self, port: u32) -> UnixStream {
        let mut host = UnixStream::connect(&self.path).unwrap();
        host.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        host.set_write_timeout(Some(Duration::from_secs(10))).unwrap();
        host.write_all(format!("CONNECT {port}\n").as_bytes()).unwrap();
        host
    }

    /// A connection that the host asked for, with a guest that buffers `buf_alloc` bytes.
    fn connected(&mut self, buf_alloc: u32) -> Peer {
        let mut host = self.dial(1024);
        let (ports, op, _, _) = self.receive();
        assert_eq!((ports.guest, op), (1024, Op::Request));
        self.send(ports, Packet { buf_alloc, ..packet(Op::Response) });
        let expected = format!("OK {}\n", ports.host);
        let mut line = vec![0; expected.len()];
        host.read_exact(&mut line).unwrap();
        assert_eq!(line, expected.as_bytes());
        Peer { ports, host }
    }
}

fn packet(op: Op) -> Packet {
    Packet { op, len: 0, flags: 0, buf_alloc: 1 << 16, fwd_cnt: 0 }
}

/// The header of a packet from the guest.
fn header(ports: Ports, packet: Packet) -> HeaderBytes {
    let mut header = encode(ports, packet, CID);
    header[..16].rotate_left(8);
    header[16..24].rotate_left(4);
    header
}

fn is_closed(host: &mut UnixStream) -> bool {
    matches!(host.read(&mut [0; 16]), Ok(0))
}

#[test]
fn a_host_reaches_the_guest_and_bytes_go_both_ways() {
    let mut bench = Bench::new();
    let mut cid = [0; 8];
    bench.driver.transport.read(0x100, &mut cid);
    assert_eq!(u64::from_le_bytes(cid), CID);
    let mut peer = bench.connected(1 << 16);
    peer.host.write_all(b"to the guest").unwrap();
    assert_eq!(bench.expect(peer.ports, Op::Data).1, b"to the guest");
    bench.send_data(peer.ports, b"to the host");
    let mut read = [0; 11];
    peer.host.read_exact(&mut read).unwrap();
    assert_eq!(read, *b"to the host");
    drop(peer.host);
    // The host may be seen to close in one step or in two.
    while bench.expect(peer.ports, Op::Shutdown).0 != SHUTDOWN_BOTH {}
    bench.send_op(peer.ports, Op::Reset);
    bench.expect_silence();
}

#[test]
fn bytes_behind_the_line_wait_for_the_guest() {
    let mut bench = Bench::new();
    let mut host = bench.dial(5);
    host.write_all(b"early").unwrap();
    let (ports, ..) = bench.receive();
    bench.send_op(ports, Op::Response);
    assert_eq!(bench.expect(ports, Op::Data).1, b"early");
}

#[test]
fn a_host_that_the_guest_refuses_is_closed() {
    let mut bench = Bench::new();
    let mut host = bench.dial(5);
    let (ports, ..) = bench.receive();
    bench.send_op(ports, Op::Reset);
    assert!(is_closed(&mut host));
    let mut rude = UnixStream::connect(&bench.path).unwrap();
    rude.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert!(wait_for(|| rude.read(&mut [0]).is_ok_and(|n| n == 0).then_some(())).is_some());
    bench.expect_silence();
}

#[test]
fn a_guest_reaches_who_listens_and_nobody_else() {
    let mut bench = Bench::new();
    let listener = bench.listen(1030);
    let ports = Ports { host: 1030, guest: 700 };
    bench.send_op(ports, Op::Request);
    bench.expect(ports, Op::Response);
    let (mut host, _) = listener.accept().unwrap();
    bench.send_data(ports, b"ready");
    bench.send(ports, Packet { flags: SHUTDOWN_BOTH, ..packet(Op::Shutdown) });
    bench.expect(ports, Op::Reset);
    let mut read = String::new();
    host.read_to_string(&mut read).unwrap();
    assert_eq!(read, "ready");
    let nobody = Ports { host: 1031, guest: 700 };
    bench.send_op(nobody, Op::Request);
    bench.expect(nobody, Op::Reset);
}

#[test]
fn half_closed_connections_carry_the_other_half() {
    let mut bench = Bench::new();
    let mut peer = bench.connected(1 << 16);
    peer.host.write_all(b"question").unwrap();
    peer.host.shutdown(Shutdown::Write).unwrap();
    assert_eq!(bench.expect(peer.ports, Op::Data).1, b"question");
    assert_eq!(bench.expect(peer.ports, Op::Shutdown).0, SHUTDOWN_SEND);
    bench.send_data(peer.ports, b"answer");
    bench.send(peer.ports, Packet { flags: SHUTDOWN_SEND, ..packet(Op::Shutdown) });
    let mut read = String::new();
    peer.host.read_to_string(&mut read).unwrap();
    assert_eq!(read, "answer");
    // Both directions are over: the rest is one reset (the host's end may have been seen first).
    loop {
        let (ports, op, ..) = bench.receive();
        assert_eq!(ports, peer.ports);
        if op == Op::Reset {
            break;
        }
        assert_eq!(op, Op::Shutdown);
    }
}

#[test]
fn a_host_is_read_only_as_far_as_the_guest_has_room() {
    let mut bench = Bench::new();
    let mut peer = bench.connected(100);
    let bytes: Vec<u8> = (0..=255).cycle().take(1000).collect();
    peer.host.write_all(&bytes).unwrap();
    let mut got = bench.expect(peer.ports, Op::Data).1;
    assert_eq!(got.len(), 100);
    while got.len() < bytes.len() {
        bench.expect(peer.ports, Op::CreditRequest);
        bench.expect_silence();
        let fwd_cnt = u32::try_from(got.len()).unwrap();
        bench.send(peer.ports, Packet { buf_alloc: 100, fwd_cnt, ..packet(Op::CreditUpdate) });
        let more = bench.expect(peer.ports, Op::Data).1;
        assert!(more.len() <= 100);
        got.extend(more);
    }
    assert!(got == bytes);
}

#[test]
fn a_guest_that_ignores_credit_is_reset_and_others_go_on() {
    let mut bench = Bench::new();
    let mut slow = bench.connected(1 << 16);
    let mut other = bench.connected(1 << 16);
    let chunk = [7; 16 * 1024];
    let mut sent = 0;
    let reset = loop {
        bench.send_data(slow.ports, &chunk);
        sent += chunk.len();
        match bench.driver.poll_used(0) {
            Some((index, written)) => match bench.take(index, written) {
                // What the socket itself takes is forwarded, and announced as such.
                (ports, Op::CreditUpdate, ..) => assert_eq!(ports, slow.ports),
                (ports, op, ..) => break (ports, op),
            },
            None => assert!(sent < 4 << 20, "the guest's data is buffered without bounds"),
        }
    };
    assert_eq!(reset, (slow.ports, Op::Reset));
    bench.send_data(other.ports, b"still here");
    let mut read = [0; 10];
    other.host.read_exact(&mut read).unwrap();
    // The slow host gets what its socket took, then the end.
    let mut taken = Vec::new();
    slow.host.read_to_end(&mut taken).unwrap();
    assert!(taken.len() < sent);
}

#[test]
fn a_slow_host_gets_everything_from_a_guest_that_waits_for_credit() {
    let mut bench = Bench::new();
    let mut peer = bench.connected(1 << 16);
    let total = 2 << 20;
    let mut reader = peer.host.try_clone().unwrap();
    let (mut sent, mut announced) = (0u32, 0u32);
    let mut thread = None;
    let mut next = 0u8;
    while sent < total {
        if sent - announced + 8192 <= 64 * 1024 {
            let chunk = vec![next; 8192];
            next = next.wrapping_add(1);
            bench.send_data(peer.ports, &chunk);
            sent += 8192;
            continue;
        }
        // Out of credit: only now the host begins to read.
        thread.get_or_insert_with(|| {
            let mut reader = reader.try_clone().unwrap();
            std::thread::spawn(move || {
                let mut all = vec![0; usize::try_from(total).unwrap()];
                reader.read_exact(&mut all).unwrap();
                all
            })
        });
        let (index, written) = bench.driver.used(0);
        let address = HIGH_BASE + u64::from(index) * u64::from(BUFFER);
        let raw = bench.driver.bytes(address + 40, 4);
        announced = u32::from_le_bytes(raw.try_into().unwrap());
        assert_eq!(bench.take(index, written).1, Op::CreditUpdate);
    }
    let all = match thread {
        Some(thread) => thread.join().unwrap(),
        None => {
            let mut all = vec![0; usize::try_from(total).unwrap()];
            reader.read_exact(&mut all).unwrap();
            all
        }
    };
    assert!(all.chunks(8192).zip(0..=255u8).all(|(chunk, value)| chunk.iter().all(|&byte| byte == value)));
    peer.host.write_all(b"x").unwrap();
}

#[test]
fn data_after_shutdown_resets_the_connection() {
    let mut bench = Bench::new();
    let mut peer = bench.connected(1 << 16);
    bench.send(peer.ports, Packet { flags: SHUTDOWN_SEND, ..packet(Op::Shutdown) });
    bench.send_data(peer.ports, b"late");
    bench.expect(peer.ports, Op::Reset);
    assert!(is_closed(&mut peer.host));
}

#[test]
fn packets_from_or_for_strangers_are_dropped() {
    let mut bench = Bench::new();
    let _listener = bench.listen(80);
    let ports = Ports { host: 80, guest: 80 };
    for (range, cid) in [(0..8, CID + 1), (0..8, 0), (8..16, CID), (8..16, 1), (8..16, u64::MAX)] {
        let mut bytes = header(ports, packet(Op::Request));
        bytes[range].copy_from_slice(&cid.to_le_bytes());
        bench.send_raw(&bytes, 0);
    }
    bench.expect_silence();
}

#[test]
fn malformed_packets_cost_their_own_connection_only() {
    let mut bench = Bench::new();
    let mut other = bench.connected(1 << 16);
    let lies: [fn(&mut HeaderBytes); 5] = [
        |bytes| bytes[24..28].copy_from_slice(&u32::MAX.to_le_bytes()),
        |bytes| bytes[24..28].copy_from_slice(&11u32.to_le_bytes()),
        |bytes| bytes[28..30].copy_from_slice(&2u16.to_le_bytes()),
        |bytes| bytes[30..32].copy_from_slice(&8u16.to_le_bytes()),
        |bytes| bytes[30..32].copy_from_slice(&0u16.to_le_bytes()),
    ];
    for lie in lies {
        let mut peer = bench.connected(1 << 16);
        let mut bytes = header(peer.ports, Packet { len: 10, ..packet(Op::Data) });
        lie(&mut bytes);
        bench.send_raw(&bytes, 10);
        bench.expect(peer.ports, Op::Reset);
        assert!(is_closed(&mut peer.host));
    }
    // Data for a connection that does not exist; a header that is cut short.
    let unknown = Ports { host: 1, guest: 1 };
    bench.send_data(unknown, b"x");
    bench.expect(unknown, Op::Reset);
    assert_eq!(bench.driver.run(1, &[(DATA, HEADER_BYTES - 1, 0)]), 0);
    bench.send_op(unknown, Op::Reset);
    bench.expect_silence();
    bench.send_data(other.ports, b"fine");
    other.host.read_exact(&mut [0; 4]).unwrap();
}

#[test]
fn a_second_request_for_the_same_ports_ends_the_connection() {
    let mut bench = Bench::new();
    let listener = bench.listen(80);
    let ports = Ports { host: 80, guest: 80 };
    bench.send_op(ports, Op::Request);
    bench.expect(ports, Op::Response);
    let (mut host, _) = listener.accept().unwrap();
    bench.send_op(ports, Op::Request);
    bench.expect(ports, Op::Reset);
    assert!(is_closed(&mut host));
}

#[test]
fn connections_are_bounded_and_places_are_used_again() {
    let mut bench = Bench::new();
    let listener = bench.listen(80);
    let mut hosts = Vec::new();
    for guest in 0..u32::try_from(MAX_ENTRIES).unwrap() {
        let ports = Ports { host: 80, guest };
        bench.send_op(ports, Op::Request);
        bench.expect(ports, Op::Response);
        hosts.push(listener.accept().unwrap().0);
    }
    let one_more = Ports { host: 80, guest: 5000 };
    bench.send_op(one_more, Op::Request);
    bench.expect(one_more, Op::Reset);
    // A host that comes now is turned away too.
    let mut host = UnixStream::connect(&bench.path).unwrap();
    assert!(is_closed(&mut host));
    bench.send_op(Ports { host: 80, guest: 17 }, Op::Reset);
    assert!(is_closed(&mut hosts[17]));
    bench.send_op(one_more, Op::Request);
    bench.expect(one_more, Op::Response);
}

#[test]
fn floods_without_receive_buffers_are_bounded() {
    let mut bench = Bench::new();
    let nobody = Ports { host: 1, guest: 1 };
    // The guest never gives a buffer back, and asks for many more resets than are remembered.
    for _ in 0..2000 {
        bench.send_op(nobody, Op::Request);
    }
    let mut resets = 0;
    while let Some((index, written)) = wait_for_brief(&mut bench) {
        assert_eq!(bench.take(index, written).1, Op::Reset);
        resets += 1;
    }
    assert_eq!(resets, 256 + usize::from(SIZE));
}

fn wait_for_brief(bench: &mut Bench) -> Option<(u32, u32)> {
    for _ in 0..200 {
        let found = bench.driver.poll_used(0);
        if found.is_some() {
            return found;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    None
}

#[test]
fn useless_receive_buffers_stop_the_device_and_close_its_sockets() {
    for bad in [(DATA, BUFFER, 0), (DATA, HEADER_BYTES, WRITE), (u64::MAX - 100, BUFFER, WRITE)] {
        let mut bench = Bench::new();
        // Begin anew, with no other buffer than the bad one.
        bench.driver.start(SIZE, 0);
        bench.driver.link(0, 0, &[bad]);
        bench.driver.offer(0, 0);
        bench.driver.kick(0);
        let mut host = bench.dial(1024);
        bench.driver.expect_needs_reset(0);
        assert!(is_closed(&mut host));
    }
}

#[test]
fn a_reset_closes_connections_and_the_device_starts_again() {
    let mut bench = Bench::new();
    let mut peer = bench.connected(1 << 16);
    bench.driver.set(VIRTIO_MMIO_STATUS, 0);
    assert!(is_closed(&mut peer.host));
    // A host that comes while the driver is away waits for it.
    let mut host = bench.dial(7);
    bench.start();
    let (ports, op, ..) = bench.receive();
    assert_eq!((ports.guest, op), (7, Op::Request));
    bench.send_op(ports, Op::Response);
    host.read_exact(&mut [0; 4]).unwrap();
}

#[test]
fn patience_with_silent_hosts_and_guests_ends() {
    let short = Duration::from_millis(400);
    let mut bench = Bench::with_patience(Patience { greeting: short, request: short, close: short });
    // A host that never finishes its line.
    let mut host = UnixStream::connect(&bench.path).unwrap();
    host.write_all(b"CONNECT 1").unwrap();
    assert!(is_closed(&mut host));
    // A guest that never answers.
    let mut host = bench.dial(7);
    let (ports, ..) = bench.receive();
    bench.expect(ports, Op::Reset);
    assert!(is_closed(&mut host));
    // A guest that does not let go of a connection that the host has closed.
    let peer = bench.connected(1 << 16);
    drop(peer.host);
    while bench.expect(peer.ports, Op::Shutdown).0 != SHUTDOWN_BOTH {}
    bench.expect(peer.ports, Op::Reset);
    // One that is open has no deadline.
    let mut peer = bench.connected(1 << 16);
    std::thread::sleep(TICK + 2 * short);
    bench.send_data(peer.ports, b"here");
    peer.host.read_exact(&mut [0; 4]).unwrap();
}
