//! The state machine without sockets.

use super::*;

const QUIET: HostSide = HostSide { readable: false, flushed: true };
const READABLE: HostSide = HostSide { readable: true, flushed: true };
const STUCK: HostSide = HostSide { readable: false, flushed: false };

fn packet(op: Op) -> Packet {
    Packet { op, len: 0, flags: 0, buf_alloc: 1000, fwd_cnt: 0 }
}

fn data(len: u32) -> Packet {
    Packet { len, ..packet(Op::Data) }
}

fn shutdown(flags: u32) -> Packet {
    Packet { flags, ..packet(Op::Shutdown) }
}

fn open() -> Connection {
    let mut connection = Connection::requested_by_guest(&packet(Op::Request)).unwrap();
    assert_eq!(connection.next(QUIET), Some(Outgoing::Control(Op::Response)));
    connection.send(Op::Response, 0);
    assert_eq!(connection.next(QUIET), None);
    connection
}

#[test]
fn a_host_waits_for_the_answer() {
    let mut connection = Connection::requested_by_host();
    assert_eq!(connection.receive(&packet(Op::Response)), Err(Violation::Phase));
    assert_eq!(connection.next(READABLE), Some(Outgoing::Control(Op::Request)));
    let request = connection.send(Op::Request, 0);
    assert_eq!((request.buf_alloc, request.fwd_cnt), (BUFFER_BYTES, 0));
    assert_eq!(connection.next(READABLE), None);
    assert_eq!(connection.receive(&data(1)), Err(Violation::Phase));
    assert_eq!(connection.receive(&packet(Op::Response)), Ok(Incoming::Accepted));
    assert_eq!(connection.next(READABLE), Some(Outgoing::Data(1000)));
}

#[test]
fn packets_out_of_place_are_violations() {
    for op in [Op::Request, Op::Response] {
        assert_eq!(open().receive(&packet(op)), Err(Violation::Phase));
    }
    let mut accepting = Connection::requested_by_guest(&packet(Op::Request)).unwrap();
    assert_eq!(accepting.receive(&data(1)), Err(Violation::Phase));
    assert_eq!(accepting.receive(&packet(Op::Reset)), Ok(Incoming::Reset));
    for op in [Op::Request, Op::Response, Op::Shutdown, Op::CreditUpdate, Op::CreditRequest] {
        let loaded = Packet { len: 1, ..packet(op) };
        assert_eq!(open().receive(&loaded), Err(Violation::Malformed));
    }
    let loaded = Packet { len: 1, ..packet(Op::Request) };
    assert!(matches!(Connection::requested_by_guest(&loaded), Err(Violation::Malformed)));
    assert_eq!(open().receive(&shutdown(4)), Err(Violation::Malformed));
}

#[test]
fn the_guest_may_fill_the_buffer_and_not_one_byte_more() {
    let mut connection = open();
    assert_eq!(connection.receive(&data(BUFFER_BYTES)), Ok(Incoming::Data));
    assert_eq!(connection.receive(&data(1)), Err(Violation::Credit));
    connection.forward(10);
    assert_eq!(connection.receive(&data(11)), Err(Violation::Credit));
    assert_eq!(connection.receive(&data(10)), Ok(Incoming::Data));
    assert_eq!(open().receive(&data(u32::MAX)), Err(Violation::Credit));
}

#[test]
fn the_guest_learns_of_room_in_time() {
    let mut connection = open();
    connection.receive(&data(BUFFER_BYTES)).unwrap();
    connection.forward(UPDATE_AFTER - 1);
    assert_eq!(connection.next(STUCK), None);
    connection.forward(1);
    assert_eq!(connection.next(STUCK), Some(Outgoing::Control(Op::CreditUpdate)));
    assert_eq!(connection.send(Op::CreditUpdate, 0).fwd_cnt, UPDATE_AFTER);
    assert_eq!(connection.next(STUCK), None);
    connection.receive(&packet(Op::CreditRequest)).unwrap();
    assert_eq!(connection.next(STUCK), Some(Outgoing::Control(Op::CreditUpdate)));
}

#[test]
fn counters_wrap_around() {
    let mut connection = open();
    for _ in 0..70_000 {
        let full = Packet { fwd_cnt: connection.sent.0, ..data(BUFFER_BYTES) };
        assert_eq!(connection.receive(&full), Ok(Incoming::Data));
        connection.forward(BUFFER_BYTES);
        let sent = connection.send(Op::CreditUpdate, 0);
        assert_eq!(sent.fwd_cnt, connection.received.0);
        connection.send(Op::Data, 65_536);
        let taken = Packet { fwd_cnt: connection.sent.0, ..packet(Op::CreditUpdate) };
        assert_eq!(connection.receive(&taken), Ok(Incoming::Noted));
        assert_eq!(connection.credit(), 1000);
    }
}

#[test]
fn the_host_sends_no_more_than_the_guest_can_buffer() {
    let mut connection = open();
    connection.send(Op::Data, 999);
    assert_eq!(connection.next(READABLE), Some(Outgoing::Data(1)));
    connection.send(Op::Data, 1);
    // It asks once, and then waits.
    assert_eq!(connection.next(READABLE), Some(Outgoing::Control(Op::CreditRequest)));
    connection.send(Op::CreditRequest, 0);
    assert_eq!(connection.next(READABLE), None);
    let update = Packet { fwd_cnt: 600, ..packet(Op::CreditUpdate) };
    connection.receive(&update).unwrap();
    assert_eq!(connection.next(READABLE), Some(Outgoing::Data(600)));
    // A buffer that shrinks below what is under way gives no credit, and no overflow.
    let smaller = Packet { buf_alloc: 399, ..update };
    connection.receive(&smaller).unwrap();
    assert_eq!(connection.next(READABLE), Some(Outgoing::Control(Op::CreditRequest)));
}

#[test]
fn forward_counts_ahead_are_abuse_and_old_ones_are_not() {
    let mut connection = open();
    connection.send(Op::Data, 500);
    let count = |fwd_cnt| Packet { fwd_cnt, ..packet(Op::CreditUpdate) };
    assert_eq!(connection.receive(&count(400)), Ok(Incoming::Noted));
    assert_eq!(connection.receive(&count(300)), Ok(Incoming::Noted));
    assert_eq!(connection.credit(), 900);
    assert_eq!(connection.receive(&count(501)), Err(Violation::ForwardCount));
    assert_eq!(open().receive(&count(u32::MAX)), Ok(Incoming::Noted));
    assert_eq!(open().receive(&count(1)), Err(Violation::ForwardCount));
}

#[test]
fn data_after_shutdown_is_a_violation() {
    let mut connection = open();
    connection.receive(&shutdown(SHUTDOWN_SEND)).unwrap();
    assert_eq!(connection.receive(&data(1)), Err(Violation::AfterShutdown));
}

#[test]
fn a_guest_that_receives_no_more_gets_no_data() {
    let mut connection = open();
    connection.receive(&shutdown(SHUTDOWN_RECEIVE)).unwrap();
    assert_eq!(connection.next(READABLE), None);
    assert_eq!(connection.receive(&data(5)), Ok(Incoming::Data));
}

#[test]
fn a_guest_that_ends_both_ways_is_reset_once_its_data_is_delivered() {
    let mut connection = open();
    connection.receive(&data(5)).unwrap();
    connection.receive(&shutdown(SHUTDOWN_BOTH)).unwrap();
    assert_eq!(connection.next(STUCK), None);
    connection.forward(5);
    assert_eq!(connection.next(QUIET), Some(Outgoing::Control(Op::Reset)));
}

#[test]
fn a_host_that_half_closes_still_receives() {
    let mut connection = open();
    connection.host_sends_no_more();
    assert_eq!(connection.next(READABLE), Some(Outgoing::Control(Op::Shutdown)));
    assert_eq!(connection.send(Op::Shutdown, 0).flags, SHUTDOWN_SEND);
    assert!(!connection.awaits_reset());
    assert_eq!(connection.next(READABLE), None);
    assert_eq!(connection.receive(&data(5)), Ok(Incoming::Data));
    connection.host_receives_no_more();
    assert_eq!(connection.next(QUIET), Some(Outgoing::Control(Op::Shutdown)));
    assert_eq!(connection.send(Op::Shutdown, 0).flags, SHUTDOWN_BOTH);
    assert!(connection.awaits_reset());
    assert_eq!(connection.next(QUIET), None);
}
