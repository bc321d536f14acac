//! Directories: names sorted bytewise, packed into blocks that can each be searched by halving.
//!
//! A block is an array of fixed-size entries, then the names in the same order. All blocks but the last are
//! padded with zeros; the directory's size ends with the last name.

use std::iter::{self, Peekable};

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U64};

use super::format::Dirent;
use crate::tree::arena::{Arena, file_type, index};
use crate::{BLOCK_BYTES, BLOCK_SIZE};

/// Name and node of every entry of a sorted directory, in order, with `.` and `..` among them.
pub(super) fn sorted(arena: &Arena, directory: u32, parent: u32) -> impl Iterator<Item = (&[u8], u32)> {
    let mut dots = [(&b"."[..], directory), (b"..", parent)].into_iter().peekable();
    let mut named = arena
        .children(directory)
        .map(|entry| (arena.name(entry), arena.entries[index(entry)].node))
        .peekable();
    iter::from_fn(move || {
        let dot_first = match (dots.peek(), named.peek()) {
            (Some((dot, _)), Some((name, _))) => dot < name,
            (dot, _) => dot.is_some(),
        };
        if dot_first { dots.next() } else { named.next() }
    })
}

/// Cuts entries into runs that fill a block each, as many as fit.
pub(super) struct Blocks<I: Iterator>(Peekable<I>);

impl<'n, I: Iterator<Item = (&'n [u8], u32)>> Blocks<I> {
    pub(super) fn new(entries: I) -> Self {
        Self(entries.peekable())
    }
}

impl<'n, I: Iterator<Item = (&'n [u8], u32)>> Iterator for Blocks<I> {
    type Item = Vec<(&'n [u8], u32)>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut used = 0;
        let mut fits = |(name, _): &(&[u8], u32)| {
            used += size_of::<Dirent>() + name.len();
            used <= BLOCK_SIZE
        };
        let block: Vec<_> = iter::from_fn(|| self.0.next_if(&mut fits)).collect();
        (!block.is_empty()).then_some(block)
    }
}

/// Bytes of the directory with these entries.
pub(super) fn size<'n>(entries: impl Iterator<Item = (&'n [u8], u32)>) -> u64 {
    let mut blocks = 0u64;
    let mut last = 0;
    for block in Blocks::new(entries) {
        blocks += 1;
        last = block.iter().map(|(name, _)| size_of::<Dirent>() + name.len()).sum();
    }
    blocks.saturating_sub(1) * BLOCK_BYTES + last as u64
}

/// A directory block's bytes, without padding; `slots` gives every node's number.
pub(super) fn encode(arena: &Arena, block: &[(&[u8], u32)], slots: &[u32]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BLOCK_SIZE);
    let mut name_offset = block.len() * size_of::<Dirent>();
    for &(name, node) in block {
        let entry = Dirent {
            nid: U64::new(u64::from(slots[index(node)])),
            // Less than a block, by the cut.
            name_offset: U16::new(u16::try_from(name_offset).unwrap_or(u16::MAX)),
            file_type: directory_type(arena.inodes[index(node)].file_type()),
            reserved: 0,
        };
        bytes.extend_from_slice(entry.as_bytes());
        name_offset += name.len();
    }
    for (name, _) in block {
        bytes.extend_from_slice(name);
    }
    bytes
}

/// The kernel's `FT_*` number.
fn directory_type(file_type: u16) -> u8 {
    match file_type {
        file_type::REGULAR => 1,
        file_type::DIRECTORY => 2,
        file_type::CHAR_DEVICE => 3,
        file_type::BLOCK_DEVICE => 4,
        file_type::FIFO => 5,
        file_type::SOCKET => 6,
        file_type::SYMLINK => 7,
        _ => 0,
    }
}
