//! What a node is: file type, metadata, and where in the image its content lies.

use std::collections::BTreeMap;

use crate::BLOCK_BYTES;
use crate::erofs::xattr::{self, XattrError};

/// Longest name of a directory entry in bytes (`NAME_MAX`).
pub const MAX_NAME: usize = 255;
/// Longest target of a symbolic link in bytes (`PATH_MAX` without its terminating zero).
pub const MAX_SYMLINK: usize = 4095;
/// Largest binary logarithm of a chunk's size in blocks: the 5 bits that erofs has for it.
const MAX_CHUNK_BITS: u32 = 31;

/// Extended attributes by full name, `user.mime_type` for example.
pub type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// A point in time; negative seconds lie before 1970.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timestamp {
    /// Seconds since the Unix epoch.
    pub seconds: i64,
    /// Nanoseconds within the second, below 1 000 000 000.
    pub nanoseconds: u32,
}

/// What every node has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Permission bits with set-user-ID, set-group-ID and sticky: at most `0o7777`.
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of last modification.
    pub mtime: Timestamp,
    /// Extended attributes.
    pub xattrs: Xattrs,
}

/// A run of blocks of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First block; of no meaning if there are none.
    pub first_block: u32,
    /// Number of blocks of 4096 bytes.
    pub blocks: u32,
}

impl Extent {
    /// No blocks: where the content of an empty file lies.
    pub const EMPTY: Self = Self { first_block: 0, blocks: 0 };
}

/// Where in the image the content of a regular file lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// In one run of as many blocks as its size takes.
    Flat(Extent),
    /// In chunks of equal size, of which those that hold only zeros are left out: a sparse file.
    Chunked {
        /// Blocks in a chunk, a power of two.
        chunk_blocks: u32,
        /// First block of each chunk in order, `None` for a hole. The last chunk ends with the file.
        starts: Vec<Option<u32>>,
    },
}

/// The file type of a node and what belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory; nodes are put into it with [`Tree::add`](super::Tree::add).
    Directory,
    /// A regular file.
    Regular {
        /// Size in bytes.
        size: u64,
        /// Where its bytes lie.
        data: Data,
    },
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// A character device. Number 0:0 is overlayfs's mark of a deleted name.
    CharDevice(DeviceNumber),
    /// A block device.
    BlockDevice(DeviceNumber),
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
}

/// A device number as Linux encodes it in 32 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceNumber {
    /// Major number, 12 bits.
    pub major: u32,
    /// Minor number, 20 bits.
    pub minor: u32,
}

impl DeviceNumber {
    const MAX_MAJOR: u32 = 0xFFF;
    const MAX_MINOR: u32 = 0xF_FFFF;

    /// The kernel's 32-bit encoding (`new_encode_dev`).
    #[must_use]
    pub(crate) const fn encode(self) -> u32 {
        (self.minor & 0xFF) | (self.major << 8) | ((self.minor & !0xFF) << 12)
    }

    /// The number that [`Self::encode`] gives `encoded` for.
    #[must_use]
    pub(crate) const fn decode(encoded: u32) -> Self {
        Self { major: (encoded >> 8) & 0xFFF, minor: (encoded & 0xFF) | ((encoded >> 12) & 0xF_FF00) }
    }
}

/// A node to be added to a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Permissions, owner, time, extended attributes.
    pub metadata: Metadata,
    /// File type and what belongs to it.
    pub kind: Kind,
}

/// What is wrong with a node, before its path is known.
pub(super) enum Fault {
    Field { what: &'static str, expected: String, found: String },
    Xattr(XattrError),
}

impl Fault {
    fn field<T>(what: &'static str, expected: impl ToString, found: impl ToString) -> Result<T, Self> {
        Err(Self::Field { what, expected: expected.to_string(), found: found.to_string() })
    }
}

pub(super) fn check_metadata(metadata: &Metadata) -> Result<(), Fault> {
    let Metadata { permissions, mtime, xattrs, .. } = metadata;
    if *permissions > 0o7777 {
        return Fault::field("permissions", "at most 0o7777", format!("{permissions:#o}"));
    }
    if mtime.nanoseconds >= 1_000_000_000 {
        return Fault::field("mtime", "fewer than 1000000000 nanoseconds", mtime.nanoseconds);
    }
    xattr::check(xattrs).map_err(Fault::Xattr)
}

pub(super) fn check_kind(kind: &Kind) -> Result<(), Fault> {
    match kind {
        Kind::Regular { size, .. } if i64::try_from(*size).is_err() => {
            Fault::field("size", "at most 2^63 - 1 bytes", size)
        }
        Kind::Regular { size, data } => check_data(*size, data),
        Kind::Symlink(target) if !(1..=MAX_SYMLINK).contains(&target.len()) => {
            Fault::field("symbolic link", "a target of 1 to 4095 bytes", target.len())
        }
        Kind::Symlink(target) if target.contains(&0) => {
            Fault::field("symbolic link", "a target without zero bytes", "one")
        }
        Kind::CharDevice(number) | Kind::BlockDevice(number)
            if number.major > DeviceNumber::MAX_MAJOR || number.minor > DeviceNumber::MAX_MINOR =>
        {
            let found = format!("{}:{}", number.major, number.minor);
            Fault::field("device number", "at most 4095:1048575", found)
        }
        _ => Ok(()),
    }
}

fn check_data(size: u64, data: &Data) -> Result<(), Fault> {
    let blocks = size.div_ceil(BLOCK_BYTES);
    match data {
        Data::Flat(extent) if u64::from(extent.blocks) != blocks => {
            let expected = format!("{blocks} blocks for a size of {size} bytes");
            Fault::field("content", expected, extent.blocks)
        }
        Data::Flat(_) => Ok(()),
        Data::Chunked { .. } if size == 0 => Fault::field("content", "no chunks in an empty file", "some"),
        Data::Chunked { chunk_blocks, .. }
            if !chunk_blocks.is_power_of_two() || chunk_blocks.ilog2() > MAX_CHUNK_BITS =>
        {
            Fault::field("content", "a power of two of blocks in a chunk", chunk_blocks)
        }
        Data::Chunked { chunk_blocks, starts } => {
            let chunks = blocks.div_ceil(u64::from(*chunk_blocks));
            if starts.len() as u64 == chunks {
                return Ok(());
            }
            Fault::field("content", format!("{chunks} chunks of {chunk_blocks} blocks"), starts.len())
        }
    }
}

/// Whether a directory entry can have this name.
pub(super) fn is_entry_name(name: &[u8]) -> bool {
    !name.is_empty()
        && name.len() <= MAX_NAME
        && !matches!(name, b"." | b"..")
        && !name.iter().any(|&byte| matches!(byte, b'/' | 0))
}
