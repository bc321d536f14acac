//! Parts of files, checked before a disk shows them.
//!
//! The files come from the VMM's parent, which may be wrong about them: nothing is shown that is not an ordinary
//! file, long enough, and open in exactly the way that the disk is used. What happens to a file afterwards is the
//! host's business; its transfers then fail, and nothing else does.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use launch::control::SEGMENT_ALIGNMENT;
use rustix::fs::OFlags;

/// Whether the guest may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reads only; every file must be open for reading only.
    ReadOnly,
    /// Reads and writes; every file must be open for both.
    ReadWrite,
}

/// A part of a file, in bytes; offset and length are multiples of [`SEGMENT_ALIGNMENT`].
#[derive(Debug)]
pub struct Segment {
    /// An ordinary file.
    pub file: File,
    /// Where the part begins.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
}

/// Why a segment is refused.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// Offset or length are not whole blocks, or the length is zero.
    #[error("expected whole blocks of {SEGMENT_ALIGNMENT} bytes, found {length} bytes at {offset}")]
    Unaligned {
        /// Its offset.
        offset: u64,
        /// Its length.
        length: u64,
    },
    /// The file ends before the segment does.
    #[error("expected {length} bytes at {offset}, found a file of {found} bytes")]
    TooShort {
        /// Its offset.
        offset: u64,
        /// Its length.
        length: u64,
        /// Bytes in the file.
        found: u64,
    },
    /// A pipe, socket, directory or device.
    #[error("expected an ordinary file")]
    NotAFile,
    /// The file is open in another way than the disk is used.
    #[error(
        "expected a file open for {expected:?}, at any position and through the page cache; found {found:?}"
    )]
    Mode {
        /// The disk's access.
        expected: Access,
        /// The flags that say otherwise.
        found: OFlags,
    },
    /// The file cannot be examined.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Segment {
    /// Whether a disk with `access` may show this.
    pub(super) fn check(&self, access: Access) -> Result<(), SegmentError> {
        let &Self { ref file, offset, length } = self;
        if length == 0
            || !offset.is_multiple_of(SEGMENT_ALIGNMENT)
            || !length.is_multiple_of(SEGMENT_ALIGNMENT)
        {
            return Err(SegmentError::Unaligned { offset, length });
        }
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(SegmentError::NotAFile);
        }
        if offset.checked_add(length).is_none_or(|end| end > metadata.len()) {
            return Err(SegmentError::TooShort { offset, length, found: metadata.len() });
        }
        // Appending ignores positions, direct transfers refuse a guest's buffers, and a path cannot be read.
        let examined = OFlags::ACCMODE | OFlags::APPEND | OFlags::DIRECT | OFlags::PATH;
        let found = rustix::fs::fcntl_getfl(file).map_err(io::Error::from)? & examined;
        let wanted = match access {
            Access::ReadOnly => OFlags::RDONLY,
            Access::ReadWrite => OFlags::RDWR,
        };
        if found != wanted {
            return Err(SegmentError::Mode { expected: access, found });
        }
        Ok(())
    }
}

/// The file behind a segment that is shown.
#[derive(Debug)]
pub(super) struct Backing {
    pub(super) file: File,
    failed: AtomicBool,
}

impl Backing {
    pub(super) fn new(file: File) -> Self {
        Self { file, failed: AtomicBool::new(false) }
    }

    /// Notes a failure; whether it is the first. A guest may run into the same one over and over, and the host's
    /// log is not its to fill.
    pub(super) fn fails(&self) -> bool {
        !self.failed.swap(true, Ordering::Relaxed)
    }
}
