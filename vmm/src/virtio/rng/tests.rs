//! The entropy device through its ring.

use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_config::*;
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;

use super::*;
use crate::event_loop::EventLoop;
use crate::virtio::host_access::{HostAccess, Refusal};
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

/// A guest that shares all memory below an address.
#[derive(Debug)]
struct Sharing {
    end: u64,
    asked: Mutex<Vec<(u64, u64)>>,
}

impl HostAccess for Sharing {
    fn acquire(&self, address: u64, length: u64) -> Result<(), Refusal> {
        self.asked.lock().unwrap().push((address, length));
        if address + length <= self.end { Ok(()) } else { Err("private".into()) }
    }
}

fn asking(end: u64) -> (Driver, Arc<Sharing>, EventLoop) {
    let events = EventLoop::spawn("test-rng").unwrap();
    let sharing = Arc::new(Sharing { end, asked: Mutex::default() });
    let driver = Driver::new(|_| Rng::new(events.handle())).with_host_access(Arc::clone(&sharing) as _);
    (driver, sharing, events)
}

#[test]
fn rings_and_buffers_are_asked_for_before_they_are_touched() {
    let (mut driver, sharing, _events) = asking(u64::MAX);
    driver.start(8, 0);
    assert_eq!(driver.run(0, &[(DATA, 40, WRITE), (DATA + 0x1000, 24, WRITE)]), 64);
    let asked = sharing.asked.lock().unwrap().clone();
    assert_eq!(asked, [(0x1000, 128), (0x3000, 22), (0x4000, 70), (DATA, 40), (DATA + 0x1000, 24)]);
}

#[test]
fn memory_that_is_not_shared_is_not_touched() {
    let (mut driver, _sharing, _events) = asking(DATA + 32);
    driver.start(8, 0);
    driver.link(0, 0, &[(DATA, 64, WRITE)]);
    driver.offer(0, 0);
    driver.kick(0);
    driver.expect_needs_reset(0);
    assert_eq!(driver.bytes(DATA, 64), [0; 64]);
}

#[test]
fn rings_that_are_not_shared_start_nothing() {
    let (mut driver, _sharing, _events) = asking(0x4000);
    driver.negotiate(0);
    driver.configure(0, crate::virtio::testing::Ring::new(0, 8));
    driver.set(VIRTIO_MMIO_QUEUE_READY, 1);
    driver.set(VIRTIO_MMIO_STATUS, driver.get(VIRTIO_MMIO_STATUS) | VIRTIO_CONFIG_S_DRIVER_OK);
    assert!(driver.needs_reset());
}

#[test]
fn indirect_tables_are_not_offered_where_they_could_not_be_asked_for() {
    let (driver, _sharing, _events) = asking(u64::MAX);
    driver.set(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
    assert_eq!(driver.get(VIRTIO_MMIO_DEVICE_FEATURES) & 1 << VIRTIO_RING_F_INDIRECT_DESC, 0);
}
