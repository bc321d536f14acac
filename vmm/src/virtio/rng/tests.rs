//! The entropy device through its ring.

use super::*;
use crate::event_loop::EventLoop;
use crate::virtio::testing::{DATA, Driver, WRITE};

fn started() -> (Driver, EventLoop) {
    let events = EventLoop::spawn("test-rng").unwrap();
    let mut driver = Driver::new(|_| Rng::new(events.handle()));
    driver.start(8, 0);
    (driver, events)
}

#[test]
fn requests_get_fresh_bytes_up_to_the_limit() {
    let (mut driver, _events) = started();
    assert_eq!(driver.run(0, &[(DATA, 40, WRITE), (DATA + 40, 24, WRITE)]), 64);
    let first = driver.bytes(DATA, 64);
    assert_eq!(driver.run(0, &[(DATA, 64, WRITE)]), 64);
    assert_ne!(driver.bytes(DATA, 64), first);
    assert_eq!(driver.run(0, &[(DATA, 4096, WRITE)]), 256);
    assert_eq!(driver.bytes(DATA + 256, 3840), [0; 3840]);
}

#[test]
fn requests_without_room_are_given_back_empty() {
    let (mut driver, _events) = started();
    assert_eq!(driver.run(0, &[(DATA, 64, 0)]), 0);
}

#[test]
fn broken_chains_stop_the_device() {
    let (mut driver, _events) = started();
    driver.link(0, 0, &[(u64::MAX - 3, 64, WRITE)]);
    driver.offer(0, 0);
    driver.kick(0);
    driver.expect_needs_reset(0);
}
