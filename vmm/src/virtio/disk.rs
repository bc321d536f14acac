//! What a block device shows: parts of files, one after another.

use std::fs::File;
use std::io;

use rustix::fs::OFlags;
use vm_memory::{GuestMemoryError, VolatileSlice};

use super::guest_io::{Direction, Pieces};

/// Bytes in a sector, the unit of every request.
pub const SECTOR: u64 = 512;

/// Whether the guest may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reads only; every file must be open for reading only.
    ReadOnly,
    /// Reads and writes; every file must be open for both.
    ReadWrite,
}

/// A part of a file, in bytes; offset and length are multiples of [`SECTOR`].
#[derive(Debug)]
pub struct Segment {
    /// An ordinary file.
    pub file: File,
    /// Where the part begins.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
}

/// Why a disk is refused.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// No segments.
    #[error("disk: expected at least one segment, found none")]
    Empty,
    /// Offset or length are not whole sectors, or the length is zero.
    #[error(
        "disk segment {index}: expected whole sectors of {SECTOR} bytes, found {length} bytes at {offset}"
    )]
    Unaligned {
        /// Which segment.
        index: usize,
        /// Its offset.
        offset: u64,
        /// Its length.
        length: u64,
    },
    /// The file ends before the segment does, or the segments together are too long to count.
    #[error("disk segment {index}: expected {length} bytes at {offset}, found a file of {found} bytes")]
    TooShort {
        /// Which segment.
        index: usize,
        /// Its offset.
        offset: u64,
        /// Its length.
        length: u64,
        /// Bytes in the file.
        found: u64,
    },
    /// A pipe, socket, directory or device.
    #[error("disk segment {index}: expected an ordinary file")]
    NotAFile {
        /// Which segment.
        index: usize,
    },
    /// The file is open in another way than the disk is to be used.
    #[error("disk segment {index}: expected a file open for {expected:?}, found it open otherwise")]
    Mode {
        /// Which segment.
        index: usize,
        /// The disk's access.
        expected: Access,
    },
    /// The file cannot be examined.
    #[error("disk segment {index}: {source}")]
    Io {
        /// Which segment.
        index: usize,
        /// Why.
        source: io::Error,
    },
}

/// Why a transfer fails.
#[derive(Debug, thiserror::Error)]
pub(super) enum TransferError {
    #[error("expected at most {size} bytes, found a request for {length} at {position}")]
    PastEnd { position: u64, length: u64, size: u64 },
    #[error("expected reads only, found a write")]
    ReadOnly,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Memory(#[from] GuestMemoryError),
}

/// A segment at its place on the disk.
#[derive(Debug)]
struct Extent {
    end: u64,
    segment: Segment,
}

/// Segments shown one after another as one disk.
#[derive(Debug)]
pub struct Disk {
    extents: Vec<Extent>,
    access: Access,
}

impl Disk {
    /// Puts `segments` together.
    ///
    /// # Errors
    /// When a segment is not whole sectors of an ordinary file that is long enough and opened as `access` says.
    pub fn new(segments: Vec<Segment>, access: Access) -> Result<Self, DiskError> {
        let mut end = 0u64;
        let mut extents = Vec::with_capacity(segments.len());
        for (index, segment) in segments.into_iter().enumerate() {
            check(index, &segment, access)?;
            let Segment { offset, length, .. } = segment;
            // Sizes are off_t: positions on the disk stay within them too.
            end = end
                .checked_add(length)
                .filter(|&end| i64::try_from(end).is_ok())
                .ok_or(DiskError::TooShort { index, offset, length, found: 0 })?;
            extents.push(Extent { end, segment });
        }
        if extents.is_empty() {
            return Err(DiskError::Empty);
        }
        Ok(Self { extents, access })
    }

    /// Size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.extents.last().map_or(0, |extent| extent.end)
    }

    /// Whether the guest may write.
    #[must_use]
    pub fn access(&self) -> Access {
        self.access
    }

    /// Makes what was written durable.
    ///
    /// # Errors
    /// When a file cannot be synchronised.
    pub(super) fn flush(&self) -> io::Result<()> {
        match self.access {
            Access::ReadOnly => Ok(()),
            Access::ReadWrite => self.extents.iter().try_for_each(|extent| extent.segment.file.sync_data()),
        }
    }

    /// Moves `length` bytes between byte `position` of the disk and the memory `slices`, which are as long.
    pub(super) fn transfer<'m>(
        &self,
        direction: Direction,
        position: u64,
        length: u64,
        slices: impl Iterator<Item = Result<VolatileSlice<'m>, GuestMemoryError>>,
    ) -> Result<(), TransferError> {
        if direction == Direction::ToFile && self.access == Access::ReadOnly {
            return Err(TransferError::ReadOnly);
        }
        let size = self.size();
        if position.checked_add(length).is_none_or(|end| end > size) {
            return Err(TransferError::PastEnd { position, length, size });
        }
        let mut run = Run { disk: self, direction, start: position, end: position, pieces: Pieces::new() };
        for slice in slices {
            run.add(slice?)?;
        }
        Ok(run.flush()?)
    }

    /// The extent that byte `position` is in.
    fn extent(&self, position: u64) -> Option<&Extent> {
        self.extents.get(self.extents.partition_point(|extent| extent.end <= position))
    }
}

/// Pieces of memory that belong to neighbouring bytes of one extent, not yet moved.
struct Run<'d, 'm> {
    disk: &'d Disk,
    direction: Direction,
    start: u64,
    end: u64,
    pieces: Pieces<'m>,
}

impl<'m> Run<'_, 'm> {
    fn add(&mut self, mut slice: VolatileSlice<'m>) -> io::Result<()> {
        while !slice.is_empty() {
            let extent = self.disk.extent(self.end).ok_or(io::ErrorKind::UnexpectedEof)?;
            let room = usize::try_from(extent.end - self.end).unwrap_or(usize::MAX);
            let (now, later) = slice.split_at(slice.len().min(room)).map_err(io::Error::other)?;
            if self.pieces.is_full() {
                self.flush()?;
            }
            self.pieces.push(&now)?;
            self.end += u64::try_from(now.len()).map_err(io::Error::other)?;
            if self.end == extent.end {
                self.flush()?;
            }
            slice = later;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let start = std::mem::replace(&mut self.start, self.end);
        if start == self.end {
            return Ok(());
        }
        let Extent { end, segment } = self.disk.extent(start).ok_or(io::ErrorKind::UnexpectedEof)?;
        let within = segment.length - (end - start);
        self.pieces.transfer(self.direction, &segment.file, segment.offset + within)
    }
}

fn check(index: usize, segment: &Segment, access: Access) -> Result<(), DiskError> {
    let &Segment { ref file, offset, length } = segment;
    if length == 0 || !offset.is_multiple_of(SECTOR) || !length.is_multiple_of(SECTOR) {
        return Err(DiskError::Unaligned { index, offset, length });
    }
    let metadata = file.metadata().map_err(|source| DiskError::Io { index, source })?;
    if !metadata.is_file() {
        return Err(DiskError::NotAFile { index });
    }
    if offset.checked_add(length).is_none_or(|end| end > metadata.len()) {
        return Err(DiskError::TooShort { index, offset, length, found: metadata.len() });
    }
    let flags =
        rustix::fs::fcntl_getfl(file).map_err(|error| DiskError::Io { index, source: error.into() })?;
    let wanted = match access {
        Access::ReadOnly => OFlags::RDONLY,
        Access::ReadWrite => OFlags::RDWR,
    };
    if flags & OFlags::ACCMODE != wanted {
        return Err(DiskError::Mode { index, expected: access });
    }
    Ok(())
}
