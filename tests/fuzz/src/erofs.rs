//! A reader of erofs images that checks that all of them is in bounds and in order, as far as the layer format goes:
//! Linux's `Documentation/filesystems/erofs.rst`, uncompressed, without shared extended attributes.
//!
//! It panics at the first thing that is not so: that is what a fuzz target is for.

use std::collections::{BTreeMap, BTreeSet};

const BLOCK: usize = 4096;
const SUPERBLOCK: usize = 1024;
const MAGIC: u64 = 0xE0F5_E1E2;
/// Feature of files in chunks.
const CHUNKED: u64 = 4;
/// A hole, in an index of chunks.
const HOLE: u64 = 0xFFFF_FFFF;

const DIRECTORY: u64 = 0o4;
const REGULAR: u64 = 0o10;
const SYMLINK: u64 = 0o12;

/// Reads the whole image; gives the number of its inodes.
///
/// # Panics
/// When the image is not sound.
#[must_use]
pub fn check(image: &[u8]) -> u64 {
    let image = Image::open(image);
    let mut names: BTreeMap<u64, u64> = BTreeMap::new();
    let mut seen = BTreeSet::from([image.root]);
    let mut open = vec![(image.root, image.root)];
    while let Some((number, parent)) = open.pop() {
        let directory = image.inode(number);
        let mut folders = 0;
        for (name, kind, child) in image.entries(&directory) {
            match &name[..] {
                b"." => assert_eq!((kind, child), (2, number)),
                b".." => assert_eq!((kind, child), (2, parent)),
                _ => {
                    let inode = image.inode(child);
                    assert_eq!(kind, directory_type(inode.kind), "{}", name.escape_ascii());
                    if inode.kind == DIRECTORY {
                        assert!(seen.insert(child), "a directory with two names");
                        folders += 1;
                        open.push((child, number));
                    } else {
                        seen.insert(child);
                        *names.entry(child).or_default() += 1;
                    }
                }
            }
        }
        assert_eq!(directory.links, 2 + folders);
    }
    for (number, count) in names {
        assert_eq!(image.inode(number).links, count);
    }
    let inodes = seen.len() as u64;
    assert_eq!(inodes, image.inodes);
    inodes
}

/// The kernel's `FT_*` number for the upper bits of a mode.
fn directory_type(kind: u64) -> u64 {
    match kind {
        REGULAR => 1,
        DIRECTORY => 2,
        0o2 => 3,
        0o6 => 4,
        0o1 => 5,
        0o14 => 6,
        SYMLINK => 7,
        _ => panic!("a mode of type {kind:o}"),
    }
}

struct Image<'i> {
    bytes: &'i [u8],
    root: u64,
    inodes: u64,
    meta: u64,
    chunked: bool,
}

struct Inode {
    kind: u64,
    links: u64,
    size: u64,
    layout: u64,
    location: u64,
    /// Where the attributes, and all before them, end.
    end: u64,
}

impl<'i> Image<'i> {
    fn open(bytes: &'i [u8]) -> Self {
        assert!(bytes.len().is_multiple_of(BLOCK) && !bytes.is_empty());
        let mut image = Self { bytes, root: 0, inodes: 0, meta: 0, chunked: false };
        let at = SUPERBLOCK as u64;
        assert_eq!(image.number(at, 4), MAGIC);
        assert_eq!(image.number(at + 4, 4), u64::from(checksum(&bytes[SUPERBLOCK..BLOCK])), "check sum");
        assert_eq!(image.number(at + 8, 4), 3, "compatible features");
        assert_eq!(image.number(at + 12, 2), 12, "block bits, extension slots");
        image.root = image.number(at + 14, 2);
        image.inodes = image.number(at + 16, 8);
        assert_eq!(image.number(at + 36, 4), (bytes.len() / BLOCK) as u64, "blocks");
        image.meta = image.number(at + 40, 4);
        assert_eq!(image.number(at + 44, 4), 0, "shared attributes");
        let features = image.number(at + 80, 4);
        assert_eq!(features & !CHUNKED, 0, "incompatible features");
        image.chunked = features & CHUNKED != 0;
        image
    }

    fn bytes(&self, at: u64, length: u64) -> &'i [u8] {
        let start = usize::try_from(at).expect("a position in the image");
        let length = usize::try_from(length).expect("a length in the image");
        &self.bytes[start..start + length]
    }

    fn number(&self, at: u64, bytes: u64) -> u64 {
        self.bytes(at, bytes).iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
    }

    fn inode(&self, number: u64) -> Inode {
        assert!(number > 0, "an inode with number 0");
        let at = self.meta * BLOCK as u64 + number * 32;
        let field = |offset, bytes| self.number(at + offset, bytes);
        let format = field(0, 2);
        let (extended, layout) = (format & 1 == 1, format >> 1);
        assert!([0, 2, 4].contains(&layout), "layout {layout}");
        let mode = field(4, 2);
        let (length, size, links) =
            if extended { (64, field(8, 8), field(44, 4)) } else { (32, field(8, 4), field(6, 2)) };
        if extended {
            assert!(field(40, 4) < 1_000_000_000, "nanoseconds");
        }
        let attributes = match field(2, 2) {
            0 => 0,
            count => 12 + 4 * (count - 1),
        };
        let kind = mode >> 12;
        let end = at + length + attributes;
        let inode = Inode { kind, links, size, layout, location: field(16, 4), end };
        self.check_attributes(at + length, attributes);
        self.check_data(&inode);
        inode
    }

    fn check_attributes(&self, at: u64, length: u64) {
        if length == 0 {
            return;
        }
        assert!(self.bytes(at, 12).iter().all(|&byte| byte == 0), "a header of attributes");
        let (mut place, end) = (at + 12, at + length);
        while place < end {
            let (name, index, value) =
                (self.number(place, 1), self.number(place + 1, 1), self.number(place + 2, 2));
            assert!([1, 2, 3, 4, 6].contains(&index), "a prefix of attributes");
            assert_eq!(name == 0, index == 2 || index == 3, "a name of attributes");
            place += (4 + name + value).next_multiple_of(4);
        }
        assert_eq!(place, end, "attributes");
    }

    fn check_data(&self, inode: &Inode) {
        let block = BLOCK as u64;
        let blocks = (self.bytes.len() as u64) / block;
        match (inode.kind, inode.layout) {
            (REGULAR, 4) => self.check_chunks(inode),
            (REGULAR, 0) if inode.size > 0 => {
                let end = inode.location + inode.size.div_ceil(block);
                assert!(inode.location > 0 && end <= self.meta, "content outside of the contents");
            }
            (DIRECTORY | SYMLINK, 0) => {
                assert!(inode.location >= self.meta && inode.location + inode.size.div_ceil(block) <= blocks);
            }
            (DIRECTORY | SYMLINK, 2) => {
                let (whole, tail) = (inode.size / block, inode.size % block);
                assert!(whole == 0 || inode.location >= self.meta && inode.location + whole <= blocks);
                assert!(tail > 0 && inode.end % block + tail <= block, "a tail across blocks");
            }
            (DIRECTORY | SYMLINK, _) => panic!("layout {}", inode.layout),
            (_, layout) => assert!(layout == 0 && inode.size == 0),
        }
        if inode.kind == SYMLINK {
            let target = self.data(inode);
            assert!((1..4096).contains(&target.len()) && !target.contains(&0), "a target");
        }
    }

    fn check_chunks(&self, inode: &Inode) {
        assert!(self.chunked && inode.size > 0 && inode.location < 32, "chunks of {:x}", inode.location);
        let chunk = 1 << inode.location;
        let mut left = inode.size.div_ceil(BLOCK as u64);
        let mut place = inode.end;
        while left > 0 {
            let (start, blocks) = (self.number(place, 4), left.min(chunk));
            assert!(
                start == HOLE || start > 0 && start + blocks <= self.meta,
                "a chunk outside of the contents"
            );
            (left, place) = (left - blocks, place + 4);
        }
    }

    /// Data of a directory or a symbolic link.
    fn data(&self, inode: &Inode) -> Vec<u8> {
        let tail = if inode.layout == 2 { inode.size % BLOCK as u64 } else { 0 };
        let head = inode.size - tail;
        let head = if head == 0 { &[] } else { self.bytes(inode.location * BLOCK as u64, head) };
        [head, self.bytes(inode.end, tail)].concat()
    }

    /// Names, types and inodes, in order.
    fn entries(&self, directory: &Inode) -> Vec<(Vec<u8>, u64, u64)> {
        assert_eq!(directory.kind, DIRECTORY);
        let data = self.data(directory);
        let mut entries: Vec<(Vec<u8>, u64, u64)> = Vec::new();
        for block in data.chunks(BLOCK) {
            let number = |at: usize, bytes: usize| {
                block[at..at + bytes].iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
            };
            let offset = |entry: usize| usize::try_from(number(entry * 12 + 8, 2)).expect("16 bits");
            let count = offset(0) / 12;
            assert!(count > 0 && offset(0) == count * 12, "directory entries");
            for entry in 0..count {
                let last = entry + 1 == count;
                let name = &block[offset(entry)..if last { block.len() } else { offset(entry + 1) }];
                // The last name of a block goes up to its end, or to the first zero.
                let name = if last { name.split(|&byte| byte == 0).next().unwrap_or_default() } else { name };
                assert!((1..=255).contains(&name.len()), "a name of {} bytes", name.len());
                assert!(!name.iter().any(|&byte| byte == 0 || byte == b'/'), "{}", name.escape_ascii());
                entries.push((name.to_vec(), number(entry * 12 + 10, 1), number(entry * 12, 8)));
            }
        }
        assert!(entries.windows(2).all(|pair| pair[0].0 < pair[1].0), "names in order, each once");
        let has = |wanted: &[u8]| entries.iter().any(|(name, ..)| name == wanted);
        assert!(has(b".") && has(b".."));
        entries
    }
}

/// The superblock's CRC-32C, without the final inversion, of a block whose own field counts as zero.
fn checksum(block: &[u8]) -> u32 {
    let field = 4..8;
    block.iter().enumerate().fold(u32::MAX, |sum, (at, &byte)| {
        let byte = if field.contains(&at) { 0 } else { byte };
        (0..8).fold(sum ^ u32::from(byte), |sum, _| sum >> 1 ^ if sum & 1 == 1 { 0x82F6_3B78 } else { 0 })
    })
}
