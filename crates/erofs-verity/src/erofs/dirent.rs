//! Directories: names sorted bytewise, packed into blocks that can each be searched by halving.
//!
//! A block is an array of fixed-size entries, then the names in the same order. All blocks but the last are
//! padded with zeros; the directory's size ends with the last name.

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U64};

use super::format::Dirent;
use crate::tree::{Kind, NodeId, Tree};
use crate::{BLOCK_BYTES, BLOCK_SIZE};

/// Name and node of every entry of a directory, in order, with `.` and `..` among them.
pub(super) fn sorted<C>(tree: &Tree<C>, directory: NodeId) -> Vec<(&[u8], NodeId)> {
    let slot = tree.slot(directory);
    let mut entries: Vec<(&[u8], NodeId)> = Vec::with_capacity(slot.entries.len() + 2);
    entries.extend([(&b"."[..], directory), (b"..", slot.parent)]);
    entries.extend(slot.entries.iter().map(|(name, &id)| (&name[..], id)));
    entries.sort_unstable_by_key(|&(name, _)| name);
    entries
}

/// Bytes of the directory with these entries.
pub(super) fn size(entries: &[(&[u8], NodeId)]) -> u64 {
    let mut blocks = 0u64;
    let mut last = 0;
    for block in Blocks(entries) {
        blocks += 1;
        last = block.iter().map(|(name, _)| size_of::<Dirent>() + name.len()).sum();
    }
    blocks.saturating_sub(1) * BLOCK_BYTES + last as u64
}

/// The directory's bytes; `nid` gives every node's number.
pub(super) fn encode<C>(tree: &Tree<C>, entries: &[(&[u8], NodeId)], nid: impl Fn(NodeId) -> u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for block in Blocks(entries) {
        bytes.resize(bytes.len().next_multiple_of(BLOCK_SIZE), 0);
        let mut name_offset = block.len() * size_of::<Dirent>();
        for &(name, id) in block {
            let entry = Dirent {
                nid: U64::new(nid(id)),
                // Less than a block, by the cut.
                name_offset: U16::new(u16::try_from(name_offset).unwrap_or(u16::MAX)),
                file_type: file_type(&tree.node(id).kind),
                reserved: 0,
            };
            bytes.extend_from_slice(entry.as_bytes());
            name_offset += name.len();
        }
        for (name, _) in block {
            bytes.extend_from_slice(name);
        }
    }
    bytes
}

/// Cuts entries into runs that fill a block each, as many as fit.
struct Blocks<'e, 'n>(&'e [(&'n [u8], NodeId)]);

impl<'e, 'n> Iterator for Blocks<'e, 'n> {
    type Item = &'e [(&'n [u8], NodeId)];

    fn next(&mut self) -> Option<Self::Item> {
        let mut used = 0;
        let fits = self.0.iter().take_while(|(name, _)| {
            used += size_of::<Dirent>() + name.len();
            used <= BLOCK_SIZE
        });
        let (block, rest) = self.0.split_at(fits.count());
        self.0 = rest;
        (!block.is_empty()).then_some(block)
    }
}

/// The kernel's `FT_*` number.
fn file_type<C>(kind: &Kind<C>) -> u8 {
    match kind {
        Kind::Regular { .. } => 1,
        Kind::Directory => 2,
        Kind::CharDevice(_) => 3,
        Kind::BlockDevice(_) => 4,
        Kind::Fifo => 5,
        Kind::Socket => 6,
        Kind::Symlink(_) => 7,
    }
}
