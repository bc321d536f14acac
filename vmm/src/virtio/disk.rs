//! What a block device shows: parts of files, each at its own position, with gaps between them.
//!
//! A [`Disk`] is a value. Attaching and detaching make a new one that shares the files with the old: a request
//! ends on the disk that it began with, and a file is closed when the last disk that shows it is gone.
//! Invariant: extents are sorted by position and do not overlap; all ends are within `off_t`.

mod segment;

use std::io;
use std::sync::Arc;

use launch::control::{MAX_ATTACHED, SEGMENT_ALIGNMENT};
use vm_memory::{GuestMemoryError, VolatileSlice};

use self::segment::Backing;
pub use self::segment::{Access, Segment, SegmentError};
use super::guest_io::{Direction, Pieces};

/// Bytes in a sector, the unit of every request.
pub const SECTOR: u64 = 512;

/// Why a disk does not become what was asked.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Nothing to attach.
    #[error("expected at least one segment, found none")]
    Empty,
    /// A segment is not fit to be shown.
    #[error("segment {index}: {source}")]
    Segment {
        /// Which, counted from 0.
        index: usize,
        /// What is wrong with it.
        source: SegmentError,
    },
    /// Not a whole block, or so far up that positions cannot be counted.
    #[error("expected a position in whole blocks of {SEGMENT_ALIGNMENT} bytes and room behind it, found {0}")]
    Position(u64),
    /// Something is there already.
    #[error("expected bytes {at} to {end} to be free, found something attached at {taken}")]
    Overlap {
        /// Where the new part was to begin.
        at: u64,
        /// Where it was to end.
        end: u64,
        /// Where what is there was attached.
        taken: u64,
    },
    /// The disk is full of segments.
    #[error("expected at most {MAX_ATTACHED} segments on a disk, found {0}")]
    TooMany(usize),
    /// Nothing was attached at this position.
    #[error("expected something attached at byte {0}, found nothing")]
    Nothing(u64),
}

/// Why a transfer fails.
#[derive(Debug, thiserror::Error)]
pub(super) enum TransferError {
    #[error("expected at most {size} bytes, found a request for {length} at {position}")]
    PastEnd { position: u64, length: u64, size: u64 },
    #[error("expected bytes {position} to {end} to be attached, found a gap at {gap}")]
    Gap { position: u64, end: u64, gap: u64 },
    #[error("expected reads only, found a write")]
    ReadOnly,
    /// The host's file or its storage failed.
    #[error("byte {position} of the disk, byte {offset} of the file attached at {attached}: {source}")]
    Host {
        position: u64,
        offset: u64,
        attached: u64,
        source: io::Error,
        /// Whether this file has failed for the first time.
        first: bool,
    },
    #[error(transparent)]
    Memory(#[from] GuestMemoryError),
}

/// A segment at its position on the disk. Cloned with every change: it stays small.
#[derive(Debug, Clone)]
struct Extent {
    start: u64,
    end: u64,
    /// Where it begins in its file.
    offset: u64,
    /// Where what it was attached with begins.
    attached: u64,
    backing: Arc<Backing>,
}
const _: () = assert!(size_of::<Extent>() == 40, "a full disk's table is to stay below 2 MiB");

/// Parts of files, shown as one disk.
#[derive(Debug)]
pub struct Disk {
    access: Access,
    extents: Vec<Extent>,
}

impl Disk {
    /// A disk of no bytes.
    #[must_use]
    pub fn empty(access: Access) -> Self {
        Self { access, extents: Vec::new() }
    }

    /// This disk with `segments` on it too, one after another from byte `at` on.
    ///
    /// # Errors
    /// When a segment is not whole blocks of an ordinary file that is long enough and open as the disk is used,
    /// when something is there already, or when the disk would show more than [`MAX_ATTACHED`] segments.
    pub fn with(&self, at: u64, segments: Vec<Segment>) -> Result<Self, DiskError> {
        let new = place(at, segments, self.access)?;
        let end = new.last().ok_or(DiskError::Empty)?.end;
        let count = self.extents.len() + new.len();
        if count > MAX_ATTACHED {
            return Err(DiskError::TooMany(count));
        }
        let (before, after) = self.extents.split_at(self.extents.partition_point(|extent| extent.end <= at));
        if let Some(taken) = after.first().filter(|extent| extent.start < end) {
            return Err(DiskError::Overlap { at, end, taken: taken.attached });
        }
        let mut extents = Vec::with_capacity(count);
        extents.extend_from_slice(before);
        extents.extend(new);
        extents.extend_from_slice(after);
        Ok(Self { access: self.access, extents })
    }

    /// This disk without what was attached at byte `at`.
    ///
    /// # Errors
    /// When nothing was.
    pub fn without(&self, at: u64) -> Result<Self, DiskError> {
        let left = self.extents.iter().filter(|extent| extent.attached != at);
        let extents: Vec<Extent> = left.cloned().collect();
        if extents.len() == self.extents.len() {
            return Err(DiskError::Nothing(at));
        }
        Ok(Self { access: self.access, extents })
    }

    /// Size in bytes: where the last part ends.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.extents.last().map_or(0, |extent| extent.end)
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
        let extents = self.covering(position, length)?;
        let end = position + length;
        let mut memory = Memory { slices, cut: None };
        let mut pieces = Pieces::new();
        let mut position = position;
        for extent in extents {
            while position < extent.end.min(end) {
                let taken = memory.take(&mut pieces, extent.end.min(end) - position)?;
                extent.transfer(direction, position, &mut pieces)?;
                position += taken;
            }
        }
        Ok(())
    }

    /// The extents that bytes `position` to `position + length` lie in, without a gap.
    fn covering(&self, position: u64, length: u64) -> Result<&[Extent], TransferError> {
        let size = self.size();
        let past_end = TransferError::PastEnd { position, length, size };
        let end = position.checked_add(length).filter(|&end| end <= size).ok_or(past_end)?;
        let (_, extents) =
            self.extents.split_at(self.extents.partition_point(|extent| extent.end <= position));
        let mut reached = position;
        let mut count = 0;
        while reached < end {
            let next = extents.get(count).filter(|extent| extent.start <= reached);
            reached = next.ok_or(TransferError::Gap { position, end, gap: reached })?.end;
            count += 1;
        }
        Ok(extents.split_at(count).0)
    }
}

/// Checks `segments` and puts them one after another from byte `at` on.
fn place(at: u64, segments: Vec<Segment>, access: Access) -> Result<Vec<Extent>, DiskError> {
    if !at.is_multiple_of(SEGMENT_ALIGNMENT) {
        return Err(DiskError::Position(at));
    }
    let mut start = at;
    let place = |(index, segment): (usize, Segment)| {
        segment.check(access).map_err(|source| DiskError::Segment { index, source })?;
        let Segment { file, offset, length } = segment;
        let end = start.checked_add(length).filter(|&end| i64::try_from(end).is_ok());
        let end = end.ok_or(DiskError::Position(at))?;
        let start = std::mem::replace(&mut start, end);
        Ok(Extent { start, end, offset, attached: at, backing: Arc::new(Backing::new(file)) })
    };
    segments.into_iter().enumerate().map(place).collect()
}

impl Extent {
    /// Moves `pieces` from or to the file, for byte `position` of the disk on.
    fn transfer(
        &self,
        direction: Direction,
        position: u64,
        pieces: &mut Pieces<'_>,
    ) -> Result<(), TransferError> {
        let offset = self.offset + (position - self.start);
        pieces.transfer(direction, &self.backing.file, offset).map_err(|source| TransferError::Host {
            position,
            offset,
            attached: self.attached,
            source,
            first: self.backing.fails(),
        })
    }
}

/// A request's memory, handed out from the front.
struct Memory<'m, I> {
    slices: I,
    /// The rest of a slice of which a part has been handed out.
    cut: Option<VolatileSlice<'m>>,
}

impl<'m, I: Iterator<Item = Result<VolatileSlice<'m>, GuestMemoryError>>> Memory<'m, I> {
    /// Puts the next `most` bytes into `pieces`, or as many as it has room for. Returns how many; never none.
    fn take(&mut self, pieces: &mut Pieces<'m>, most: u64) -> Result<u64, GuestMemoryError> {
        let mut taken = 0;
        while taken < most && !pieces.is_full() {
            let next = self.cut.take().map(Ok).or_else(|| self.slices.next());
            let slice = next.ok_or(GuestMemoryError::HostAddressNotAvailable)??;
            let room = usize::try_from(most - taken).unwrap_or(usize::MAX);
            let (now, later) = slice.split_at(slice.len().min(room))?;
            pieces.push(&now).map_err(GuestMemoryError::IOError)?;
            taken += u64::try_from(now.len()).unwrap_or(most);
            self.cut = (!later.is_empty()).then_some(later);
        }
        Ok(taken)
    }
}

#[cfg(test)]
mod tests;
