//! The register file, driven as a hostile driver would.

use std::sync::Mutex;

use virtio_queue::QueueT;

use super::*;
use crate::virtio::testing::{Driver, HIGH_BASE, LOW_END, Ring};
use crate::virtio::{ActivateError, read_config_bytes};

const CONFIG: [u8; 6] = [1, 2, 3, 4, 5, 6];
const SIZES: [u16; 2] = [64, 8];
const OWN_FEATURE: u64 = 1 << 3;

#[derive(Default)]
struct Log {
    activations: Vec<Activation>,
    resets: usize,
}

struct Probe(Arc<Mutex<Log>>);

impl VirtioDevice for Probe {
    fn device_id(&self) -> u32 {
        42
    }
    fn queue_max_sizes(&self) -> &[u16] {
        &SIZES
    }
    fn device_features(&self) -> u64 {
        OWN_FEATURE
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&CONFIG, offset, data);
    }
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.0.lock().unwrap().activations.push(activation);
        Ok(())
    }
    fn reset(&mut self) {
        self.0.lock().unwrap().resets += 1;
    }
}

fn probe() -> (Driver, Arc<Mutex<Log>>) {
    let log = Arc::new(Mutex::new(Log::default()));
    (Driver::new(|_| Probe(Arc::clone(&log))), log)
}

#[test]
fn a_well_behaved_driver_gets_what_it_configured() {
    let (mut driver, log) = probe();
    assert_eq!(driver.get(VIRTIO_MMIO_MAGIC_VALUE), 0x7472_6976);
    assert_eq!(driver.get(VIRTIO_MMIO_VERSION), 2);
    assert_eq!(driver.get(VIRTIO_MMIO_DEVICE_ID), 42);
    assert_eq!(driver.get(VIRTIO_MMIO_SHM_LEN_LOW), u32::MAX);
    driver.start(8, 0);
    let log = log.lock().unwrap();
    let [activation] = &log.activations[..] else { panic!("expected one activation") };
    assert_eq!(activation.features, OWN_FEATURE | TRANSPORT_FEATURES);
    assert_eq!(activation.queues.iter().map(VirtQueue::index).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn registers_of_other_widths_and_outside_of_the_map_are_nothing() {
    let (driver, _) = probe();
    for width in [1, 2, 8] {
        let mut data = [0xEE; 8];
        driver.transport.read(0, &mut data[..width]);
        assert_eq!(data[..width], [0; 8][..width]);
    }
    driver.transport.write(u64::from(VIRTIO_MMIO_STATUS), &[1]);
    driver.transport.write(u64::from(VIRTIO_MMIO_STATUS), &[1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(driver.get(VIRTIO_MMIO_STATUS), 0);
    assert_eq!(driver.get(VIRTIO_MMIO_MAGIC_VALUE + 1), 0);
    driver.set(VIRTIO_MMIO_MAGIC_VALUE, 7);
    assert_eq!(driver.get(VIRTIO_MMIO_MAGIC_VALUE), MAGIC);
}

#[test]
fn configuration_reads_are_bounded() {
    let (driver, _) = probe();
    let read = |offset: u64, width: usize| {
        let mut data = vec![0xEE; width];
        driver.transport.read(offset, &mut data);
        data
    };
    assert_eq!(read(0x100, 4), [1, 2, 3, 4]);
    assert_eq!(read(0x104, 4), [5, 6, 0, 0]);
    assert_eq!(read(0x105, 1), [6]);
    assert_eq!(read(0x106, 8), [0; 8]);
    assert_eq!(read(u64::MAX, 8), [0; 8]);
    assert_eq!(read(0x100, 3), [0; 3]);
    driver.transport.write(0x100, &[9; 4]);
    assert_eq!(read(0x100, 2), [1, 2]);
}

#[test]
fn the_status_goes_forward_one_step_at_a_time() {
    let (driver, log) = probe();
    for jump in [2, 3, 4, 8, 15, 0x10, 0x41 & !1 | 2] {
        driver.set(VIRTIO_MMIO_STATUS, jump);
        assert_eq!(driver.get(VIRTIO_MMIO_STATUS), 0, "{jump:#x}");
    }
    driver.set(VIRTIO_MMIO_STATUS, 1);
    driver.set(VIRTIO_MMIO_STATUS, 3);
    // DRIVER_OK without FEATURES_OK; a step back; both at once.
    for wrong in [7, 2, 1, 15] {
        driver.set(VIRTIO_MMIO_STATUS, wrong);
        assert_eq!(driver.get(VIRTIO_MMIO_STATUS), 3, "{wrong:#x}");
    }
    // A driver that has given up stays there until it resets.
    driver.set(VIRTIO_MMIO_STATUS, 0x83);
    driver.set(VIRTIO_MMIO_STATUS, 0x8B);
    assert_eq!(driver.get(VIRTIO_MMIO_STATUS), 0x83);
    driver.set(VIRTIO_MMIO_STATUS, 0);
    assert_eq!(driver.get(VIRTIO_MMIO_STATUS), 0);
    let log = log.lock().unwrap();
    assert_eq!((log.activations.len(), log.resets), (0, 0));
}

#[test]
fn features_that_were_not_offered_or_lack_version_1_are_refused() {
    for (low, high) in [(0, 0), (1, 1), (0, 0x8000_0001), (8, 2)] {
        let (driver, _) = probe();
        driver.set(VIRTIO_MMIO_STATUS, 1);
        driver.set(VIRTIO_MMIO_STATUS, 3);
        for (half, value) in [(0, low), (1, high)] {
            driver.set(VIRTIO_MMIO_DRIVER_FEATURES_SEL, half);
            driver.set(VIRTIO_MMIO_DRIVER_FEATURES, value);
        }
        driver.set(VIRTIO_MMIO_STATUS, 11);
        assert_eq!(driver.get(VIRTIO_MMIO_STATUS), 3, "{low:#x} {high:#x}");
    }
}

#[test]
fn features_cannot_change_after_they_were_agreed_on() {
    let (mut driver, log) = probe();
    driver.negotiate(0);
    driver.set(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
    driver.set(VIRTIO_MMIO_DRIVER_FEATURES, u32::MAX);
    driver.set(VIRTIO_MMIO_STATUS, 15);
    assert_eq!(log.lock().unwrap().activations[0].features, OWN_FEATURE | TRANSPORT_FEATURES);
}

fn ready_after(change: impl FnOnce(&mut Ring)) -> bool {
    let (mut driver, _) = probe();
    driver.negotiate(0);
    let mut ring = Ring::new(0, 64);
    change(&mut ring);
    driver.configure(0, ring);
    driver.set(VIRTIO_MMIO_QUEUE_READY, 1);
    driver.get(VIRTIO_MMIO_QUEUE_READY) == 1
}

#[test]
fn queues_that_do_not_fit_do_not_become_ready() {
    assert!(ready_after(|_| {}));
    for size in [0, 3, 65, 128, u16::MAX] {
        assert!(!ready_after(|ring| ring.size = size), "size {size}");
    }
    assert!(!ready_after(|ring| ring.descriptors += 8));
    assert!(!ready_after(|ring| ring.available += 1));
    assert!(!ready_after(|ring| ring.used += 2));
    // Ends exactly at the end of memory; then one entry behind it, in the gap, across it, and wrapped around.
    assert!(ready_after(|ring| ring.descriptors = LOW_END - 64 * 16));
    assert!(!ready_after(|ring| ring.descriptors = LOW_END - 63 * 16));
    assert!(!ready_after(|ring| ring.used = LOW_END - 64 * 8));
    assert!(!ready_after(|ring| ring.available = HIGH_BASE - 0x1000));
    assert!(!ready_after(|ring| ring.descriptors = u64::MAX - 15));
    assert!(!ready_after(|ring| ring.available = u64::MAX - 1));
    assert!(!ready_after(|ring| ring.used = 0xFFFF_FFFF_FFFF_F000));
}

#[test]
fn a_size_beyond_16_bits_is_not_cut_to_one_that_fits() {
    let (mut driver, _) = probe();
    driver.negotiate(0);
    driver.configure(0, Ring::new(0, 64));
    driver.set(VIRTIO_MMIO_QUEUE_NUM, 0x1_0040);
    driver.set(VIRTIO_MMIO_QUEUE_READY, 1);
    assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_READY), 0);
}

#[test]
fn queues_that_do_not_exist_take_nothing() {
    let (mut driver, _) = probe();
    driver.negotiate(0);
    driver.configure(2, Ring::new(0, 8));
    driver.set(VIRTIO_MMIO_QUEUE_READY, 1);
    assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_READY), 0);
    assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
    for index in [2, u32::MAX] {
        driver.kick(index);
    }
    assert!(driver.transport.kicks().all(|kick| kick.read().is_err()));
    driver.kick(1);
    assert_eq!(driver.transport.kicks().nth(1).unwrap().read().unwrap(), 1);
}

#[test]
fn a_queue_is_fixed_before_features_ok_while_ready_and_after_driver_ok() {
    let (mut driver, log) = probe();
    driver.set(VIRTIO_MMIO_QUEUE_NUM, 8);
    driver.set(VIRTIO_MMIO_QUEUE_READY, 1);
    assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_READY), 0);
    driver.start(8, 0);
    // After DRIVER_OK nothing moves, not even QueueReady.
    driver.set(VIRTIO_MMIO_QUEUE_SEL, 0);
    for register in [VIRTIO_MMIO_QUEUE_NUM, VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_READY] {
        driver.set(register, 0);
    }
    assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_READY), 1);
    let log = log.lock().unwrap();
    let state = driver.transport.lock();
    let queue = state.queues[0].build(false).unwrap();
    assert_eq!((queue.size(), queue.desc_table()), (8, Ring::new(0, 8).descriptors));
    assert_eq!(log.activations.len(), 1);
}

#[test]
fn a_ready_queue_does_not_move() {
    let (mut driver, _) = probe();
    driver.negotiate(0);
    driver.configure(0, Ring::new(0, 8));
    driver.set(VIRTIO_MMIO_QUEUE_READY, 1);
    driver.set(VIRTIO_MMIO_QUEUE_DESC_HIGH, 0xFFFF_FFFF);
    driver.set(VIRTIO_MMIO_QUEUE_NUM, 0x8000);
    let state = driver.transport.lock();
    assert_eq!(state.queues[0].build(false).unwrap().desc_table(), Ring::new(0, 8).descriptors);
}

#[test]
fn a_reset_undoes_everything_and_allows_a_new_start() {
    let (mut driver, log) = probe();
    driver.start(8, 0);
    let interrupt = log.lock().unwrap().activations[0].interrupt.clone();
    interrupt.queue_used();
    interrupt.require_reset(&"test");
    assert_eq!(driver.get(VIRTIO_MMIO_INTERRUPT_STATUS), 3);
    assert_eq!(driver.get(VIRTIO_MMIO_STATUS), 0x4F);
    driver.set(VIRTIO_MMIO_INTERRUPT_ACK, 1);
    assert_eq!(driver.get(VIRTIO_MMIO_INTERRUPT_STATUS), 2);
    driver.set(VIRTIO_MMIO_STATUS, 0);
    assert_eq!(driver.get(VIRTIO_MMIO_STATUS), 0);
    assert_eq!(driver.get(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    assert_eq!(log.lock().unwrap().resets, 1);
    // A handle from before stays silent.
    let edges = driver.edges.count();
    interrupt.queue_used();
    assert_eq!(driver.edges.count(), edges);
    driver.start(4, 0);
    assert_eq!(log.lock().unwrap().activations.len(), 2);
}

#[test]
fn configuration_changes_are_silent_before_driver_ok_but_counted() {
    let (mut driver, _) = probe();
    driver.negotiate(0);
    let generation = driver.get(VIRTIO_MMIO_CONFIG_GENERATION);
    driver.transport.interrupt.config_changed();
    assert_eq!(driver.get(VIRTIO_MMIO_CONFIG_GENERATION), generation + 1);
    assert_eq!((driver.edges.count(), driver.get(VIRTIO_MMIO_INTERRUPT_STATUS)), (0, 0));
    driver.start(8, 0);
    driver.transport.interrupt.config_changed();
    assert_eq!(driver.get(VIRTIO_MMIO_CONFIG_GENERATION), generation + 2);
    assert_eq!((driver.edges.count(), driver.get(VIRTIO_MMIO_INTERRUPT_STATUS)), (1, 2));
}
