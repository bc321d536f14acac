//! A driver for tests: it sets a device up through its registers and builds rings in guest memory by hand, so
//! that it can do everything that a hostile guest can.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use virtio_bindings::virtio_config::*;
use virtio_bindings::virtio_mmio::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::VirtioDevice;
use super::host_access::HostAccess;
use super::interrupt::{Interrupt, InterruptLine};
use super::mmio::MmioTransport;

/// End of the lower of the two ranges of memory; from here to [`HIGH_BASE`] there is nothing.
pub const LOW_END: u64 = 0x10_0000;
/// Begin of the upper range, as long as the lower.
pub const HIGH_BASE: u64 = 0x20_0000;
/// Where tests put their buffers.
pub const DATA: u64 = 0x8_0000;
/// How long a device may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Flags of a descriptor (virtio 1.2, section 2.7.5).
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

const ALL_STEPS: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK;

/// Two ranges of memory with a gap.
pub fn memory() -> GuestMemoryMmap {
    let size = usize::try_from(LOW_END).unwrap();
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size), (GuestAddress(HIGH_BASE), size)]).unwrap()
}

/// A line that counts its edges.
#[derive(Default)]
pub struct Edges(AtomicU32);

impl InterruptLine for Edges {
    fn raise(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Edges {
    pub fn count(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }
}

/// A descriptor: address, length, flags, next.
pub type Descriptor = (u64, u32, u16, u16);

/// Addresses of a queue's parts.
#[derive(Clone, Copy)]
pub struct Ring {
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
    pub size: u16,
}

impl Ring {
    pub fn new(queue: u16, size: u16) -> Self {
        let base = 0x1000 + u64::from(queue) * 0x4000;
        Self { descriptors: base, available: base + 0x2000, used: base + 0x3000, size }
    }
}

pub struct Driver {
    pub memory: GuestMemoryMmap,
    pub transport: MmioTransport,
    pub edges: Arc<Edges>,
    pub rings: Vec<Ring>,
    seen: Vec<u16>,
}

impl Driver {
    /// A machine with the device that `make` makes, untouched by its driver.
    pub fn new<D: VirtioDevice + 'static>(make: impl FnOnce(Interrupt) -> D) -> Self {
        let edges = Arc::new(Edges::default());
        let interrupt = Interrupt::new(Arc::<Edges>::clone(&edges));
        let memory = memory();
        let device = Box::new(make(interrupt.clone()));
        let transport = MmioTransport::new(device, memory.clone(), interrupt).unwrap();
        Self { memory, transport, edges, rings: Vec::new(), seen: Vec::new() }
    }

    /// The same, where the host has to ask for access.
    pub fn with_host_access(mut self, access: Arc<dyn HostAccess>) -> Self {
        self.transport = self.transport.with_host_access(access);
        self
    }

    /// Goes through the whole initialisation with queues of `size`, accepting all features but `without`.
    pub fn start(&mut self, size: u16, without: u64) {
        self.negotiate(without);
        self.make_ready(size);
    }

    /// What comes after FEATURES_OK: queues of `size`, and DRIVER_OK.
    pub fn make_ready(&mut self, size: u16) {
        let queues = self.transport.kicks().len();
        for queue in 0..u16::try_from(queues).unwrap() {
            self.configure(queue, Ring::new(queue, size));
            self.set(VIRTIO_MMIO_QUEUE_READY, 1);
            assert_eq!(self.get(VIRTIO_MMIO_QUEUE_READY), 1);
        }
        self.set(VIRTIO_MMIO_STATUS, ALL_STEPS | VIRTIO_CONFIG_S_DRIVER_OK);
        assert_eq!(self.get(VIRTIO_MMIO_STATUS), ALL_STEPS | VIRTIO_CONFIG_S_DRIVER_OK);
    }

    /// Up to and including FEATURES_OK.
    pub fn negotiate(&mut self, without: u64) {
        self.rings.clear();
        self.seen.clear();
        self.set(VIRTIO_MMIO_STATUS, 0);
        self.set(VIRTIO_MMIO_STATUS, 1);
        self.set(VIRTIO_MMIO_STATUS, 3);
        for (half, without) in [(0, without & 0xFFFF_FFFF), (1, without >> 32)] {
            self.set(VIRTIO_MMIO_DEVICE_FEATURES_SEL, half);
            self.set(VIRTIO_MMIO_DRIVER_FEATURES_SEL, half);
            let offered = self.get(VIRTIO_MMIO_DEVICE_FEATURES);
            self.set(VIRTIO_MMIO_DRIVER_FEATURES, offered & !u32::try_from(without).unwrap());
        }
        self.set(VIRTIO_MMIO_STATUS, ALL_STEPS);
        assert_eq!(self.get(VIRTIO_MMIO_STATUS), ALL_STEPS);
    }

    /// Writes a queue's registers, all but QueueReady, and clears its rings.
    pub fn configure(&mut self, queue: u16, ring: Ring) {
        for base in [ring.available, ring.used] {
            for offset in (0..0x1000).step_by(8) {
                // Rings in impossible places have nothing to clear.
                let _ = self.memory.write_obj(0u64, GuestAddress(base.wrapping_add(offset)));
            }
        }
        self.set(VIRTIO_MMIO_QUEUE_SEL, queue.into());
        self.set(VIRTIO_MMIO_QUEUE_NUM, ring.size.into());
        for (low, address) in [
            (VIRTIO_MMIO_QUEUE_DESC_LOW, ring.descriptors),
            (VIRTIO_MMIO_QUEUE_AVAIL_LOW, ring.available),
            (VIRTIO_MMIO_QUEUE_USED_LOW, ring.used),
        ] {
            self.set(low, u32::try_from(address & 0xFFFF_FFFF).unwrap());
            self.set(low + 4, u32::try_from(address >> 32).unwrap());
        }
        self.rings.push(ring);
        self.seen.push(0);
    }

    pub fn get(&self, register: u32) -> u32 {
        let mut data = [0; 4];
        self.transport.read(register.into(), &mut data);
        u32::from_le_bytes(data)
    }

    pub fn set(&self, register: u32, value: u32) {
        self.transport.write(register.into(), &value.to_le_bytes());
    }

    pub fn put(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    /// Writes descriptor `index` of the table at `table`.
    pub fn describe(&self, table: u64, index: u16, (address, length, flags, next): Descriptor) {
        let mut raw = [0; 16];
        raw[0..8].copy_from_slice(&address.to_le_bytes());
        raw[8..12].copy_from_slice(&length.to_le_bytes());
        raw[12..14].copy_from_slice(&flags.to_le_bytes());
        raw[14..16].copy_from_slice(&next.to_le_bytes());
        self.put(table + 16 * u64::from(index), &raw);
    }

    /// Writes buffers as one chain from descriptor `first` on, linked in order.
    pub fn link(&self, queue: usize, first: u16, buffers: &[(u64, u32, u16)]) {
        let table = self.rings[queue].descriptors;
        for (index, &(address, length, flags)) in (first..).zip(buffers) {
            let last = usize::from(index - first) + 1 == buffers.len();
            let link = if last { 0 } else { NEXT };
            self.describe(table, index, (address, length, flags | link, index + 1));
        }
    }

    /// Makes a chain available, without notifying.
    pub fn offer(&self, queue: usize, head: u16) {
        let ring = self.rings[queue];
        let index: u16 = self.memory.read_obj(GuestAddress(ring.available + 2)).unwrap();
        let slot = ring.available + 4 + 2 * u64::from(index % ring.size);
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.set_available(queue, index.wrapping_add(1));
    }

    /// Writes the available index.
    pub fn set_available(&self, queue: usize, index: u16) {
        let address = GuestAddress(self.rings[queue].available + 2);
        self.memory.store(index, address, Ordering::Release).unwrap();
    }

    pub fn kick(&self, queue: u32) {
        self.set(VIRTIO_MMIO_QUEUE_NOTIFY, queue);
    }

    /// The next used element, waited for: head and bytes written.
    pub fn used(&mut self, queue: usize) -> (u32, u32) {
        let found = wait_for(|| self.poll_used(queue));
        found.expect("the device gave no buffer back")
    }

    /// The next used element, if there is one.
    pub fn poll_used(&mut self, queue: usize) -> Option<(u32, u32)> {
        let ring = self.rings[queue];
        let index: u16 = self.memory.load(GuestAddress(ring.used + 2), Ordering::Acquire).unwrap();
        if index == self.seen[queue] {
            return None;
        }
        let element = ring.used + 4 + 8 * u64::from(self.seen[queue] % ring.size);
        self.seen[queue] = self.seen[queue].wrapping_add(1);
        let id = self.memory.read_obj(GuestAddress(element)).unwrap();
        Some((id, self.memory.read_obj(GuestAddress(element + 4)).unwrap()))
    }

    /// Offers a chain, notifies, and waits for it to come back: bytes written.
    pub fn run(&mut self, queue: u16, buffers: &[(u64, u32, u16)]) -> u32 {
        self.link(queue.into(), 0, buffers);
        self.offer(queue.into(), 0);
        self.kick(queue.into());
        let (head, written) = self.used(queue.into());
        assert_eq!(head, 0);
        written
    }

    pub fn needs_reset(&self) -> bool {
        self.get(VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET != 0
    }

    /// Waits until the device says that it has to be reset; it must not have given anything back since.
    pub fn expect_needs_reset(&mut self, queue: usize) {
        wait_for(|| self.needs_reset().then_some(())).expect("the device did not ask for a reset");
        assert_eq!(self.poll_used(queue), None);
        assert_ne!(self.get(VIRTIO_MMIO_INTERRUPT_STATUS) & VIRTIO_MMIO_INT_CONFIG, 0);
    }
}

/// Asks again and again until there is an answer or patience ends.
pub fn wait_for<T>(mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = probe();
        if found.is_some() || Instant::now() > deadline {
            return found;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
