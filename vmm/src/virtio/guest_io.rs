//! Positioned file I/O straight from and to guest memory.
//!
//! This file is unsafe because the kernel writes through raw pointers. The invariant that every block relies
//! on: an entry is made only from a `VolatileSlice`, which is a valid mapping for `'m`, and entries never
//! outlive `'m` nor grow. The guest may change that memory at any time, but no Rust reference to it exists.
#![allow(unsafe_code, reason = "preadv and pwritev take raw pointers into guest memory")]

use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsRawFd;

use vm_memory::VolatileSlice;

/// Pieces of memory that one call moves at most: all of a block request, so that it is one call.
pub(super) const MAX_PIECES: usize = 128;

/// Which way the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the file to the guest.
    ToGuest,
    /// From the guest to the file.
    ToFile,
}

/// Pieces of guest memory, in order.
pub(super) struct Pieces<'m> {
    entries: [libc::iovec; MAX_PIECES],
    count: usize,
    memory: PhantomData<VolatileSlice<'m>>,
}

impl<'m> Pieces<'m> {
    pub(super) fn new() -> Self {
        let nothing = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Self { entries: [nothing; MAX_PIECES], count: 0, memory: PhantomData }
    }

    pub(super) fn is_full(&self) -> bool {
        self.count == MAX_PIECES
    }

    /// Appends a piece.
    ///
    /// # Errors
    /// When there is no room for it.
    pub(super) fn push(&mut self, slice: &VolatileSlice<'m>) -> io::Result<()> {
        let entry = self.entries.get_mut(self.count).ok_or(io::ErrorKind::StorageFull)?;
        *entry = libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() };
        self.count += 1;
        Ok(())
    }

    /// Moves all bytes of all pieces from or to `file` at byte `offset`, and forgets the pieces.
    ///
    /// # Errors
    /// When the file ends early or cannot be accessed; some bytes may have been moved.
    pub(super) fn transfer(&mut self, direction: Direction, file: &File, mut offset: u64) -> io::Result<()> {
        let count = std::mem::take(&mut self.count);
        let mut left = self.entries.get_mut(..count).unwrap_or_default();
        while !left.is_empty() {
            let moved = match transfer_some(direction, file, offset, left) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(moved) => moved,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            offset = offset.saturating_add(u64::try_from(moved).unwrap_or(u64::MAX));
            left = advance(left, moved);
        }
        Ok(())
    }
}

fn transfer_some(
    direction: Direction,
    file: &File,
    offset: u64,
    entries: &[libc::iovec],
) -> io::Result<usize> {
    let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    let count = libc::c_int::try_from(entries.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let moved = match direction {
        // SAFETY: the entries are valid guest memory (see above) and `count` is their number.
        Direction::ToGuest => unsafe { libc::preadv(file.as_raw_fd(), entries.as_ptr(), count, offset) },
        // SAFETY: the entries are valid guest memory (see above) and `count` is their number.
        Direction::ToFile => unsafe { libc::pwritev(file.as_raw_fd(), entries.as_ptr(), count, offset) },
    };
    usize::try_from(moved).map_err(|_| io::Error::last_os_error())
}

/// Takes `moved` bytes off the front.
fn advance(mut entries: &mut [libc::iovec], mut moved: usize) -> &mut [libc::iovec] {
    while let Some(first) = entries.first_mut() {
        if moved < first.iov_len {
            first.iov_base = first.iov_base.cast::<u8>().wrapping_add(moved).cast();
            first.iov_len -= moved;
            break;
        }
        moved -= first.iov_len;
        entries = entries.split_at_mut(1).1;
    }
    entries
}
