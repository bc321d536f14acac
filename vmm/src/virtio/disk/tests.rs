//! What a disk takes and how it changes, without a device.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;

use super::*;

const BLOCK: u64 = SEGMENT_ALIGNMENT;

/// `blocks` blocks of a file that has that many.
fn segment(blocks: u64) -> Segment {
    let file = tempfile::tempfile().unwrap();
    file.set_len(blocks * BLOCK).unwrap();
    Segment { file: reopen(&file, OpenOptions::new().read(true)), offset: 0, length: blocks * BLOCK }
}

fn reopen(file: &File, options: &OpenOptions) -> File {
    options.open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap()
}

/// A disk with `blocks` blocks at each position, both counted in blocks.
fn disk(parts: &[(u64, u64)]) -> Disk {
    let add = |disk: Disk, &(at, blocks): &(u64, u64)| disk.with(at * BLOCK, vec![segment(blocks)]).unwrap();
    parts.iter().fold(Disk::empty(Access::ReadOnly), add)
}

#[test]
fn files_that_are_not_what_they_are_said_to_be_are_refused() {
    let make = |file, offset, length, access| {
        let attached = Disk::empty(access).with(0, vec![Segment { file, offset, length }]);
        attached.map(|disk| disk.size()).map_err(|error| match error {
            DiskError::Segment { index: 0, source } => source,
            other => panic!("{other}"),
        })
    };
    let file = segment(2).file;
    let open = |options: &mut OpenOptions| reopen(&file, options);
    let plain = || open(OpenOptions::new().read(true));
    let both = || open(OpenOptions::new().read(true).write(true));
    let only = Access::ReadOnly;
    assert_eq!(make(plain(), BLOCK, BLOCK, only).unwrap(), BLOCK);
    assert_eq!(make(both(), 0, 2 * BLOCK, Access::ReadWrite).unwrap(), 2 * BLOCK);
    for (offset, length) in [(BLOCK, 2 * BLOCK), (u64::MAX - BLOCK + 1, BLOCK), (2 * BLOCK, BLOCK)] {
        let refused = make(plain(), offset, length, only);
        assert!(matches!(refused, Err(SegmentError::TooShort { found: 8192, .. })), "{offset} {length}");
    }
    for (offset, length) in [(0, 0), (512, BLOCK), (0, BLOCK + 512), (1, BLOCK)] {
        let refused = make(plain(), offset, length, only);
        assert!(matches!(refused, Err(SegmentError::Unaligned { .. })), "{offset} {length}");
    }
    let wrong = [
        (both(), only),
        (plain(), Access::ReadWrite),
        (open(OpenOptions::new().write(true)), only),
        (open(OpenOptions::new().write(true)), Access::ReadWrite),
        (open(OpenOptions::new().read(true).append(true)), Access::ReadWrite),
        (open(OpenOptions::new().read(true).custom_flags(libc::O_PATH)), only),
    ];
    for (index, (file, access)) in wrong.into_iter().enumerate() {
        assert!(matches!(make(file, 0, BLOCK, access), Err(SegmentError::Mode { .. })), "{index}");
    }
    let device = File::open("/dev/zero").unwrap();
    assert!(matches!(make(device, 0, BLOCK, only), Err(SegmentError::NotAFile)));
    assert!(matches!(Disk::empty(only).with(0, Vec::new()), Err(DiskError::Empty)));
}

#[test]
fn nothing_overlaps() {
    let disk = disk(&[(2, 2), (6, 1), (4, 1)]);
    assert_eq!(disk.size(), 7 * BLOCK);
    for (at, blocks, taken) in [(0, 3, 2), (2, 1, 2), (3, 1, 2), (1, 9, 2), (4, 1, 4), (5, 2, 6), (6, 5, 6)] {
        let refused = disk.with(at * BLOCK, vec![segment(blocks)]);
        let Err(DiskError::Overlap { taken: found, .. }) = refused else {
            panic!("{at} {blocks}: {refused:?}")
        };
        assert_eq!(found, taken * BLOCK, "{at} {blocks}");
    }
    for (at, blocks, size) in [(0, 2, 7), (5, 1, 7), (7, 3, 10), (100, 1, 101)] {
        let grown = disk.with(at * BLOCK, vec![segment(blocks)]).unwrap();
        assert_eq!(grown.size(), size * BLOCK, "{at} {blocks}");
    }
}

#[test]
fn positions_are_whole_blocks_that_can_be_counted() {
    let empty = disk(&[]);
    let last = (1 << 63) - 2 * BLOCK;
    assert_eq!(empty.with(last, vec![segment(1)]).unwrap().size(), last + BLOCK);
    for at in [1, 512, last + BLOCK, 1 << 63, u64::MAX - BLOCK + 1, u64::MAX] {
        assert!(matches!(empty.with(at, vec![segment(1)]), Err(DiskError::Position(_))), "{at}");
    }
    // The second of two runs out of room.
    let refused = empty.with(last, vec![segment(1), segment(1)]);
    assert!(matches!(refused, Err(DiskError::Position(_))));
}

#[test]
fn what_came_together_goes_together() {
    let disk = disk(&[(0, 1)]).with(BLOCK, vec![segment(1), segment(2)]).unwrap();
    // The second segment's own position was never named.
    assert!(matches!(disk.without(2 * BLOCK), Err(DiskError::Nothing(_))));
    assert_eq!(disk.without(BLOCK).unwrap().size(), BLOCK);
    let without_first = disk.without(0).unwrap();
    assert_eq!(without_first.size(), 4 * BLOCK);
    let gap = without_first.transfer(Direction::ToGuest, 0, 512, std::iter::empty());
    assert!(matches!(gap, Err(TransferError::Gap { gap: 0, .. })));
}

#[test]
fn a_disk_is_full_at_some_point() {
    let file = segment(1).file;
    let many = |count| {
        let one = || Segment { file: file.try_clone().unwrap(), offset: 0, length: BLOCK };
        std::iter::repeat_with(one).take(count).collect::<Vec<_>>()
    };
    // Files count against the limit of this test's own process: the extents are made of one, in turns.
    let backing = Arc::new(Backing::new(file.try_clone().unwrap()));
    let extent = |n: u64| Extent {
        start: n * BLOCK,
        end: (n + 1) * BLOCK,
        offset: 0,
        attached: n * BLOCK,
        backing: Arc::clone(&backing),
    };
    let full = u64::try_from(MAX_ATTACHED).unwrap();
    let disk = Disk { access: Access::ReadOnly, extents: (0..full - 1).map(extent).collect() };
    let last = full * BLOCK;
    assert!(matches!(disk.with(last, many(2)), Err(DiskError::TooMany(found)) if found == MAX_ATTACHED + 1));
    assert_eq!(disk.with(last, many(1)).unwrap().size(), last + BLOCK);
}

#[test]
fn a_file_is_open_as_long_as_a_disk_shows_it() {
    let before = disk(&[(0, 1)]);
    let backing = Arc::downgrade(&before.extents[0].backing);
    let after = before.without(0).unwrap();
    assert_eq!(after.size(), 0);
    assert!(backing.upgrade().is_some());
    drop(before);
    assert!(backing.upgrade().is_none());
}

/// A buffer of one block in the middle of nowhere.
fn transfer(disk: &Disk, direction: Direction, position: u64) -> Result<Vec<u8>, TransferError> {
    let mut bytes = vec![0; 4096];
    let slice = VolatileSlice::from(&mut bytes[..]);
    disk.transfer(direction, position, BLOCK, std::iter::once(Ok(slice)))?;
    Ok(bytes)
}

#[test]
fn a_failure_of_the_host_names_its_place_and_counts_once() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(4 * BLOCK).unwrap();
    let view = reopen(&file, OpenOptions::new().read(true));
    let disk = disk(&[(0, 1), (5, 1)])
        .with(BLOCK, vec![segment(1), Segment { file: view, offset: BLOCK, length: 2 * BLOCK }]);
    let disk = disk.unwrap();
    file.set_len(2 * BLOCK).unwrap();
    assert!(transfer(&disk, Direction::ToGuest, 2 * BLOCK).is_ok());
    for first_expected in [true, false] {
        let error = transfer(&disk, Direction::ToGuest, 3 * BLOCK).unwrap_err();
        let TransferError::Host { position, offset, attached, first, .. } = error else { panic!("{error}") };
        assert_eq!((position, offset, attached, first), (3 * BLOCK, 2 * BLOCK, BLOCK, first_expected));
    }
    assert!(transfer(&disk, Direction::ToGuest, 5 * BLOCK).is_ok());
    // What grows back is read again.
    file.set_len(4 * BLOCK).unwrap();
    assert_eq!(transfer(&disk, Direction::ToGuest, 3 * BLOCK).unwrap(), [0; 4096]);
}

#[test]
fn a_write_that_the_host_refuses_is_a_failure_of_the_host() {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    let file = File::from(memfd_create("scratch", MemfdFlags::ALLOW_SEALING).unwrap());
    file.set_len(BLOCK).unwrap();
    let segment = Segment { file: file.try_clone().unwrap(), offset: 0, length: BLOCK };
    let disk = Disk::empty(Access::ReadWrite).with(0, vec![segment]).unwrap();
    assert!(transfer(&disk, Direction::ToFile, 0).is_ok());
    fcntl_add_seals(&file, SealFlags::WRITE).unwrap();
    let refused = transfer(&disk, Direction::ToFile, 0);
    assert!(matches!(refused, Err(TransferError::Host { first: true, .. })));
    assert!(transfer(&disk, Direction::ToGuest, 0).is_ok());
}
