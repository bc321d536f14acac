//! The block device, driven through its rings as a hostile guest would.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::*;
use crate::event_loop::EventLoop;
use crate::virtio::disk::SegmentError;
use crate::virtio::testing::{DATA, Driver, HIGH_BASE, INDIRECT, LOW_END, NEXT, WRITE, wait_for};

const STATUS: u64 = DATA + 0x100;
const BUFFER: u64 = DATA + 0x1000;
const SIZE: u16 = 16;
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

fn pattern(sectors: u64) -> Vec<u8> {
    (0..sectors * SECTOR).map(|at| u8::try_from((at / SECTOR * 7 + at) % 251).unwrap()).collect()
}

fn file(bytes: &[u8], access: Access) -> File {
    let mut named = tempfile::NamedTempFile::new().unwrap();
    named.write_all(bytes).unwrap();
    OpenOptions::new().read(true).write(access == Access::ReadWrite).open(named.path()).unwrap()
}

fn segment(bytes: &[u8], access: Access) -> Segment {
    Segment { file: file(bytes, access), offset: 0, length: u64::try_from(bytes.len()).unwrap() }
}

struct Bench {
    driver: Driver,
    slot: BlockSlot,
    _events: EventLoop,
}

impl Bench {
    fn new(access: Access, queues: u16) -> Self {
        let events = EventLoop::spawn("test-block").unwrap();
        let mut slot = None;
        let driver = Driver::new(|interrupt| {
            let (block, handle) = Block::new("slot-7", access, queues, interrupt, events.handle());
            slot = Some(handle);
            block
        });
        Self { driver, slot: slot.unwrap(), _events: events }
    }

    fn started(access: Access, bytes: &[u8]) -> Self {
        let mut bench = Self::new(access, 1);
        bench.slot.attach(0, vec![segment(bytes, access)]).unwrap();
        bench.driver.start(SIZE, 0);
        bench
    }

    fn header(&self, kind: u32, sector: u64) {
        self.driver.put(DATA, &kind.to_le_bytes());
        self.driver.put(DATA + 4, &[0; 4]);
        self.driver.put(DATA + 8, &sector.to_le_bytes());
        self.driver.put(STATUS, &[0xEE]);
    }

    /// Runs one request with `data` buffers: status and bytes written.
    fn request(&mut self, kind: u32, sector: u64, data: &[(u64, u32, u16)]) -> (u8, u32) {
        self.header(kind, sector);
        let mut chain = vec![(DATA, HEADER_BYTES, 0)];
        chain.extend_from_slice(data);
        chain.push((STATUS, 1, WRITE));
        let written = self.driver.run(0, &chain);
        (self.driver.bytes(STATUS, 1)[0], written)
    }
}

#[test]
fn reads_are_scattered_over_buffers_and_memory_ranges() {
    let bytes = pattern(16);
    let mut bench = Bench::started(Access::ReadOnly, &bytes);
    let data = [(BUFFER, 700, WRITE), (LOW_END - 100, 100, WRITE), (HIGH_BASE, 736, WRITE)];
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, 3, &data), (OK, 1537));
    let mut read = bench.driver.bytes(BUFFER, 700);
    read.extend(bench.driver.bytes(LOW_END - 100, 100));
    read.extend(bench.driver.bytes(HIGH_BASE, 736));
    assert_eq!(read, bytes[3 * 512..6 * 512]);
    assert_eq!(bench.driver.get(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_VRING);
}

#[test]
fn headers_and_status_may_be_cut_anywhere() {
    let bytes = pattern(8);
    let mut bench = Bench::started(Access::ReadOnly, &bytes);
    bench.header(VIRTIO_BLK_T_IN, 1);
    // The status is the last byte of a buffer that data shares.
    let written = bench
        .driver
        .run(0, &[(DATA, 5, 0), (DATA + 5, 11, 0), (BUFFER, 100, WRITE), (BUFFER + 100, 413, WRITE)]);
    assert_eq!(written, 513);
    assert_eq!(bench.driver.bytes(BUFFER, 512), bytes[512..1024]);
    assert_eq!(bench.driver.bytes(BUFFER + 512, 1), [OK]);
}

#[test]
fn reads_cross_segments() {
    let bytes = pattern(24);
    let mut segments = Vec::new();
    for (offset, length) in [(4096, 4096), (0, 8192), (8192, 4096)] {
        segments.push(Segment { file: file(&bytes, Access::ReadOnly), offset, length });
    }
    let mut bench = Bench::new(Access::ReadOnly, 1);
    bench.slot.attach(0, segments).unwrap();
    bench.driver.start(SIZE, 0);
    assert_eq!(capacity(&bench.driver), 32);
    // Borders of buffers and of segments fall apart, at both ends too.
    let data: Vec<_> =
        (0..13).map(|n| (BUFFER + n * 1221, if n < 12 { 1221 } else { 1220 }, WRITE)).collect();
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, 1, &data), (OK, 15873));
    let mut expected = bytes[4096..8192].to_vec();
    expected.extend_from_slice(&bytes[..8192]);
    expected.extend_from_slice(&bytes[8192..]);
    assert!(bench.driver.bytes(BUFFER, 15872) == expected[512..]);
}

#[test]
fn many_small_buffers_in_an_indirect_table() {
    let bytes = pattern(8);
    let mut bench = Bench::new(Access::ReadOnly, 1);
    bench.slot.attach(0, vec![segment(&bytes, Access::ReadOnly)]).unwrap();
    bench.driver.start(128, 0);
    bench.header(VIRTIO_BLK_T_IN, 0);
    let table = DATA + 0x8000;
    bench.driver.describe(table, 0, (DATA, HEADER_BYTES, NEXT, 1));
    for n in 0..64u16 {
        bench.driver.describe(table, n + 1, (BUFFER + 16 * u64::from(n), 16, NEXT | WRITE, n + 2));
    }
    bench.driver.describe(table, 65, (STATUS, 1, WRITE, 0));
    assert_eq!(bench.driver.run(0, &[(table, 66 * 16, INDIRECT)]), 1025);
    assert_eq!(bench.driver.bytes(BUFFER, 1024), bytes[..1024]);
}

#[test]
fn writes_reach_the_file() {
    let mut bench = Bench::new(Access::ReadWrite, 1);
    let backing = file(&pattern(24), Access::ReadWrite);
    let mut view = backing.try_clone().unwrap();
    let segment = Segment { file: backing, offset: 4096, length: 4096 };
    bench.slot.attach(0, vec![segment]).unwrap();
    bench.driver.start(SIZE, 1 << VIRTIO_RING_F_EVENT_IDX);
    bench.driver.put(BUFFER, &[0x5A; 1024]);
    assert_eq!(bench.request(VIRTIO_BLK_T_OUT, 1, &[(BUFFER, 1024, 0)]), (OK, 1));
    // A write that reaches past the end, or has no room for a status, changes nothing.
    bench.driver.put(BUFFER, &[0xA5; 1024]);
    assert_eq!(bench.request(VIRTIO_BLK_T_OUT, 7, &[(BUFFER, 1024, 0)]).0, IOERR);
    bench.header(VIRTIO_BLK_T_OUT, 0);
    bench.driver.link(0, 0, &[(DATA, HEADER_BYTES, 0), (BUFFER, 512, 0)]);
    bench.driver.offer(0, 0);
    bench.driver.kick(0);
    bench.driver.expect_needs_reset(0);
    let mut expected = pattern(24);
    expected[4096 + 512..4096 + 1536].fill(0x5A);
    let mut found = Vec::new();
    view.seek(SeekFrom::Start(0)).unwrap();
    view.read_to_end(&mut found).unwrap();
    assert!(found == expected);
}

#[test]
fn a_read_only_slot_refuses_writes_whatever_was_negotiated() {
    let mut bench = Bench::new(Access::ReadOnly, 1);
    bench.slot.attach(0, vec![segment(&pattern(8), Access::ReadOnly)]).unwrap();
    bench.driver.start(SIZE, 1 << VIRTIO_BLK_F_RO);
    assert_eq!(bench.request(VIRTIO_BLK_T_OUT, 0, &[(BUFFER, 512, 0)]), (IOERR, 1));
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, 0, &[(BUFFER, 512, WRITE)]), (OK, 513));
}

#[test]
fn a_read_only_disk_refuses_writes_before_its_file_does() {
    let disk = Disk::empty(Access::ReadOnly).with(0, vec![segment(&pattern(8), Access::ReadOnly)]).unwrap();
    let refused = disk.transfer(Direction::ToFile, 0, 512, std::iter::empty());
    assert!(matches!(refused, Err(TransferError::ReadOnly)));
    let mut bytes = [0; 512];
    let slice = vm_memory::VolatileSlice::from(&mut bytes[..]);
    assert!(disk.transfer(Direction::ToGuest, 0, 512, std::iter::once(Ok(slice))).is_ok());
    assert_eq!(bytes[..], pattern(1));
}

#[test]
fn requests_past_the_end_fail() {
    let mut bench = Bench::started(Access::ReadOnly, &pattern(8));
    let one = [(BUFFER, 512, WRITE)];
    let two = [(BUFFER, 1024, WRITE)];
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, 7, &one), (OK, 513));
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, 8, &one), (IOERR, 0));
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, 7, &two), (IOERR, 0));
    for sector in [u64::MAX, u64::MAX / 512, u64::MAX / 512 + 1, 1 << 55] {
        assert_eq!(bench.request(VIRTIO_BLK_T_IN, sector, &one), (IOERR, 0), "{sector}");
    }
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, 0, &[(BUFFER, 511, WRITE)]), (IOERR, 0));
    assert!(!bench.driver.needs_reset());
}

#[test]
fn unknown_requests_are_unsupported_and_the_name_is_given() {
    let mut bench = Bench::started(Access::ReadOnly, &pattern(8));
    for kind in [VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES, 2, 0xFFFF_FFFF] {
        assert_eq!(bench.request(kind, 0, &[]), (UNSUPP, 1), "{kind}");
    }
    assert_eq!(bench.request(VIRTIO_BLK_T_GET_ID, 0, &[(BUFFER, 20, WRITE)]), (OK, 21));
    assert_eq!(bench.driver.bytes(BUFFER, 20), *b"slot-7\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
}

#[test]
fn a_file_that_shrank_fails_the_read() {
    let writable = file(&pattern(8), Access::ReadWrite);
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&writable));
    let segment = Segment { file: File::open(path).unwrap(), offset: 0, length: 4096 };
    let mut bench = Bench::new(Access::ReadOnly, 1);
    bench.slot.attach(0, vec![segment]).unwrap();
    bench.driver.start(SIZE, 0);
    writable.set_len(1000).unwrap();
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, 0, &[(BUFFER, 1024, WRITE)]), (IOERR, 0));
}

/// What is wrong, and how to make it so.
type Case = (&'static str, fn(&Bench));

#[test]
fn broken_chains_stop_the_device_until_it_is_reset() {
    let cases: [Case; 12] = [
        ("no status", |b| b.driver.link(0, 0, &[(DATA, 16, 0)])),
        ("short header", |b| b.driver.link(0, 0, &[(DATA, 15, 0), (STATUS, 1, WRITE)])),
        ("loop", |b| {
            b.driver.describe(b.driver.rings[0].descriptors, 0, (DATA, 16, NEXT, 1));
            b.driver.describe(b.driver.rings[0].descriptors, 1, (STATUS, 1, NEXT | WRITE, 1));
        }),
        ("link out of the table", |b| {
            b.driver.describe(b.driver.rings[0].descriptors, 0, (DATA, 16, NEXT, SIZE));
        }),
        ("past the end of memory", |b| {
            b.driver.link(0, 0, &[(DATA, 16, 0), (LOW_END - 511, 512, WRITE), (STATUS, 1, WRITE)]);
        }),
        ("wraps", |b| {
            b.driver.link(0, 0, &[(DATA, 16, 0), (u64::MAX - 511, 513, WRITE), (STATUS, 1, WRITE)]);
        }),
        ("ends at 2^64", |b| {
            b.driver.link(0, 0, &[(DATA, 16, 0), (u64::MAX - 511, 512, WRITE), (STATUS, 1, WRITE)]);
        }),
        ("readable behind writable", |b| {
            b.driver.link(0, 0, &[(DATA, 16, 0), (STATUS, 1, WRITE), (BUFFER, 512, 0), (STATUS, 1, WRITE)]);
        }),
        ("nested indirect table", |b| {
            let table = DATA + 0x8000;
            b.driver.describe(table, 0, (DATA, 16, NEXT, 1));
            b.driver.describe(table, 1, (table, 32, INDIRECT, 0));
            b.driver.link(0, 0, &[(table, 32, INDIRECT)]);
        }),
        ("indirect table cut inside an entry", |b| {
            let table = DATA + 0x8000;
            b.driver.describe(table, 0, (DATA, 16, NEXT, 1));
            b.driver.describe(table, 1, (STATUS, 1, WRITE, 0));
            b.driver.link(0, 0, &[(table, 33, INDIRECT)]);
        }),
        ("indirect table outside of memory", |b| b.driver.link(0, 0, &[(LOW_END, 32, INDIRECT)])),
        ("more buffers than descriptors", |b| {
            let table = DATA + 0x8000;
            b.driver.describe(table, 0, (DATA, 16, NEXT, 1));
            for n in 1..17 {
                b.driver.describe(table, n, (BUFFER, 512, NEXT | WRITE, n + 1));
            }
            b.driver.describe(table, 17, (STATUS, 1, WRITE, 0));
            b.driver.link(0, 0, &[(table, 18 * 16, INDIRECT)]);
        }),
    ];
    let bytes = pattern(32);
    for (name, build) in cases {
        let mut bench = Bench::started(Access::ReadOnly, &bytes);
        bench.header(VIRTIO_BLK_T_IN, 0);
        build(&bench);
        bench.driver.offer(0, 0);
        bench.driver.kick(0);
        bench.driver.expect_needs_reset(0);
        assert_eq!(bench.driver.bytes(STATUS, 1), [0xEE], "{name}");
        // It stands still, even for good requests, and works again after a reset.
        bench.driver.link(0, 0, &[(DATA, 16, 0), (BUFFER, 512, WRITE), (STATUS, 1, WRITE)]);
        bench.driver.offer(0, 0);
        bench.driver.kick(0);
        bench.driver.expect_needs_reset(0);
        bench.driver.start(SIZE, 0);
        assert_eq!(bench.request(VIRTIO_BLK_T_IN, 0, &[(BUFFER, 512, WRITE)]), (OK, 513), "{name}");
    }
}

#[test]
fn broken_rings_stop_the_device() {
    let cases: [fn(&Bench); 2] = [
        // The index claims more entries than the ring has.
        |b| b.driver.set_available(0, SIZE + 1),
        // The head is not in the table.
        |b| b.driver.offer(0, SIZE),
    ];
    for break_it in cases {
        let mut bench = Bench::started(Access::ReadOnly, &pattern(8));
        break_it(&bench);
        bench.driver.kick(0);
        bench.driver.expect_needs_reset(0);
    }
}

#[test]
fn requests_larger_than_announced_are_refused() {
    let mut bench = Bench::started(Access::ReadOnly, &pattern(8));
    bench.header(VIRTIO_BLK_T_IN, 0);
    // The same megabyte over and over: within the ring, inside memory, but far beyond SEG_MAX * SIZE_MAX.
    let mut chain = vec![(DATA, HEADER_BYTES, 0)];
    chain.extend([(0, 0x10_0000, WRITE); 9]);
    chain.push((STATUS, 1, WRITE));
    bench.driver.link(0, 0, &chain);
    bench.driver.offer(0, 0);
    bench.driver.kick(0);
    bench.driver.expect_needs_reset(0);
}

fn capacity(driver: &Driver) -> u64 {
    let mut data = [0; 8];
    driver.transport.read(0x100, &mut data);
    u64::from_le_bytes(data)
}

#[test]
fn a_disk_grows_and_shrinks_while_the_driver_runs() {
    let mut bench = Bench::new(Access::ReadOnly, 1);
    bench.driver.start(SIZE, 0);
    let one = [(BUFFER, 512, WRITE)];
    assert_eq!(capacity(&bench.driver), 0);
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, 0, &one), (IOERR, 0));
    let generation = bench.driver.get(VIRTIO_MMIO_CONFIG_GENERATION);
    bench.slot.attach(8192, vec![segment(&pattern(8), Access::ReadOnly)]).unwrap();
    assert_eq!(capacity(&bench.driver), 24);
    assert_eq!(bench.driver.get(VIRTIO_MMIO_CONFIG_GENERATION), generation + 1);
    assert_ne!(bench.driver.get(VIRTIO_MMIO_INTERRUPT_STATUS) & VIRTIO_MMIO_INT_CONFIG, 0);
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, 23, &one), (OK, 513));
    // Into the gap: the capacity stays, so there is nothing to tell.
    bench.slot.attach(0, vec![segment(&pattern(8), Access::ReadOnly)]).unwrap();
    assert_eq!(bench.driver.get(VIRTIO_MMIO_CONFIG_GENERATION), generation + 1);
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, 0, &one), (OK, 513));
    bench.slot.detach(8192).unwrap();
    assert_eq!(capacity(&bench.driver), 8);
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, 23, &one), (IOERR, 0));
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, 7, &one), (OK, 513));
    assert!(matches!(bench.slot.detach(8192), Err(DiskError::Nothing(8192))));
    bench.slot.detach(0).unwrap();
    assert_eq!(capacity(&bench.driver), 0);
    let wrong = bench.slot.attach(0, vec![segment(&pattern(8), Access::ReadWrite)]);
    assert!(matches!(wrong, Err(DiskError::Segment { index: 0, source: SegmentError::Mode { .. } })));
}

#[test]
fn a_change_while_the_driver_starts_is_told_when_it_has() {
    let mut bench = Bench::new(Access::ReadWrite, 1);
    bench.driver.negotiate(0);
    assert_eq!(capacity(&bench.driver), 0);
    bench.slot.attach(0, vec![segment(&pattern(8), Access::ReadWrite)]).unwrap();
    assert_eq!((bench.driver.get(VIRTIO_MMIO_INTERRUPT_STATUS), bench.driver.edges.count()), (0, 0));
    bench.driver.make_ready(SIZE);
    assert_eq!(bench.driver.get(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_CONFIG);
    assert_eq!((bench.driver.edges.count(), capacity(&bench.driver)), (1, 8));
    // A driver that starts after a change has nothing to be told.
    bench.driver.start(SIZE, 0);
    assert_eq!((bench.driver.get(VIRTIO_MMIO_INTERRUPT_STATUS), bench.driver.edges.count()), (0, 1));
}

#[test]
fn requests_that_touch_a_gap_fail() {
    let mut bench = Bench::new(Access::ReadOnly, 1);
    for at in [0, 8192] {
        bench.slot.attach(at, vec![segment(&pattern(8), Access::ReadOnly)]).unwrap();
    }
    bench.driver.start(SIZE, 0);
    for (sector, bytes, expected) in [
        (7, 512, (OK, 513)),
        (7, 1024, (IOERR, 0)),
        (8, 512, (IOERR, 0)),
        (15, 1024, (IOERR, 0)),
        (0, 24 * 512, (IOERR, 0)),
        (16, 4096, (OK, 4097)),
    ] {
        assert_eq!(bench.request(VIRTIO_BLK_T_IN, sector, &[(BUFFER, bytes, WRITE)]), expected, "{sector}");
    }
}

#[test]
fn attaching_and_detaching_disturbs_nothing_else() {
    let mut bench = Bench::new(Access::ReadOnly, 1);
    let stays = pattern(8);
    bench.slot.attach(8192, vec![segment(&stays, Access::ReadOnly)]).unwrap();
    bench.driver.start(SIZE, 0);
    let (slot, going) = (bench.slot.clone(), Arc::new(AtomicBool::new(true)));
    let go_on = Arc::clone(&going);
    let storm = std::thread::spawn(move || {
        let file = file(&[0xC0; 4096], Access::ReadOnly);
        while go_on.load(Ordering::Relaxed) {
            for at in [0, 12288, 4096] {
                let file = file.try_clone().unwrap();
                slot.attach(at, vec![Segment { file, offset: 0, length: 4096 }]).unwrap();
            }
            for at in [12288, 4096, 0] {
                slot.detach(at).unwrap();
            }
        }
    });
    // Across both of the parts that come and go: all of it is there, or none of it counts.
    let (mut whole, mut failed) = (0, 0);
    let deadline = Instant::now() + Duration::from_secs(20);
    while (whole < 20 || failed < 20) && Instant::now() < deadline {
        assert_eq!(bench.request(VIRTIO_BLK_T_IN, 16, &[(BUFFER, 4096, WRITE)]), (OK, 4097));
        assert!(bench.driver.bytes(BUFFER, 4096) == stays);
        match bench.request(VIRTIO_BLK_T_IN, 0, &[(BUFFER, 8192, WRITE)]) {
            (OK, 8193) => {
                assert!(bench.driver.bytes(BUFFER, 8192) == [0xC0; 8192]);
                whole += 1;
            }
            (IOERR, 0) => failed += 1,
            other => panic!("{other:?}"),
        }
    }
    going.store(false, Ordering::Relaxed);
    storm.join().unwrap();
    assert!(whole >= 20 && failed >= 20, "{whole} {failed}");
    assert_eq!(capacity(&bench.driver), 24);
    assert!(!bench.driver.needs_reset());
}

#[test]
fn hostile_writes_change_nothing() {
    let mut bench = Bench::new(Access::ReadWrite, 1);
    bench.driver.start(SIZE, 0);
    let one = [(BUFFER, 512, 0)];
    assert_eq!(bench.request(VIRTIO_BLK_T_OUT, 0, &one), (IOERR, 1), "nothing is attached");
    let backing = file(&pattern(16), Access::ReadWrite);
    let view = backing.try_clone().unwrap();
    bench.slot.attach(0, vec![Segment { file: backing, offset: 0, length: 4096 }]).unwrap();
    bench.driver.put(BUFFER, &[0x66; 8192]);
    for sector in [8, u64::MAX, u64::MAX / 512, u64::MAX / 512 + 1, 1 << 55, 1 << 54] {
        assert_eq!(bench.request(VIRTIO_BLK_T_OUT, sector, &one), (IOERR, 1), "{sector}");
    }
    for length in [1, 511, 513, 4097, 4608] {
        assert_eq!(bench.request(VIRTIO_BLK_T_OUT, 0, &[(BUFFER, length, 0)]), (IOERR, 1), "{length}");
    }
    // A write without data is none, and data in the writable part is not the device's to read.
    assert_eq!(bench.request(VIRTIO_BLK_T_OUT, 0, &[]), (OK, 1));
    assert_eq!(bench.request(VIRTIO_BLK_T_OUT, 0, &[(BUFFER, 512, WRITE)]), (OK, 0));
    let mut found = vec![0; 8192];
    std::os::unix::fs::FileExt::read_exact_at(&view, &mut found, 0).unwrap();
    assert!(found == pattern(16));
    assert!(!bench.driver.needs_reset());
}

#[test]
fn every_queue_is_served() {
    let mut bench = Bench::new(Access::ReadOnly, 4);
    bench.slot.attach(0, vec![segment(&pattern(8), Access::ReadOnly)]).unwrap();
    bench.driver.start(SIZE, 0);
    let mut queues = [0; 2];
    bench.driver.transport.read(0x100 + 34, &mut queues);
    assert_eq!(u16::from_le_bytes(queues), 4);
    for queue in 0..4 {
        bench.header(VIRTIO_BLK_T_IN, queue.into());
        let chain = [(DATA, HEADER_BYTES, 0), (BUFFER, 512, WRITE), (STATUS, 1, WRITE)];
        assert_eq!(bench.driver.run(queue, &chain), 513);
    }
}

#[test]
fn full_rings_are_worked_off() {
    let mut bench = Bench::started(Access::ReadOnly, &pattern(8));
    bench.header(VIRTIO_BLK_T_IN, 0);
    bench.driver.link(0, 0, &[(DATA, HEADER_BYTES, 0), (BUFFER, 512, WRITE), (STATUS, 1, WRITE)]);
    for round in 0..100 {
        for _ in 0..SIZE {
            bench.driver.offer(0, 0);
        }
        bench.driver.kick(0);
        for request in 0..SIZE {
            assert_eq!(bench.driver.used(0), (0, 513), "{round} {request}");
        }
    }
    assert!(wait_for(|| (bench.driver.edges.count() > 0).then_some(())).is_some());
}
