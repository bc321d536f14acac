//! The image as a stream of bytes that knows where it is.

use std::fs::File;

use super::leaves::Leaves;
use super::pool::{BUFFER_SIZE, Pool};
use super::{Settings, WriteError};
use crate::{BLOCK_BYTES, BLOCK_SIZE};

const ZEROS: [u8; BLOCK_SIZE] = [0; BLOCK_SIZE];

/// Cuts the image into buffers of [`BUFFER_SIZE`] bytes, which the [`Pool`] stores. Cuts depend on the place
/// alone, not on how the bytes come.
pub(crate) struct BlockStream {
    pool: Pool,
    buffer: Vec<u8>,
    /// Where the buffer begins.
    start: u64,
}

impl BlockStream {
    /// A stream to the empty file `out`, which is written by offset.
    pub(super) fn new(out: &File, settings: &Settings) -> Result<Self, WriteError> {
        let length = out.metadata().map_err(WriteError::Output)?.len();
        if length > 0 {
            return Err(WriteError::NotEmpty(length));
        }
        let file = out.try_clone().map_err(WriteError::Output)?;
        let leaves = Leaves::new(settings.spool.clone());
        let mut pool = Pool::new(file, leaves, settings.threads());
        let buffer = pool.buffer()?;
        Ok(Self { pool, buffer, start: 0 })
    }

    /// Bytes that have been put.
    pub(crate) fn position(&self) -> u64 {
        self.start + self.buffer.len() as u64
    }

    pub(crate) fn put(&mut self, mut bytes: &[u8]) -> Result<(), WriteError> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BUFFER_SIZE - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() == BUFFER_SIZE {
                let next = self.pool.buffer()?;
                let full = std::mem::replace(&mut self.buffer, next);
                self.pool.submit(self.start / BLOCK_BYTES, full)?;
                self.start += BUFFER_SIZE as u64;
            }
        }
        Ok(())
    }

    /// Puts zeros up to `position`; none if it is there or beyond.
    pub(crate) fn pad_to(&mut self, position: u64) -> Result<(), WriteError> {
        loop {
            let gap = usize::try_from(position.saturating_sub(self.position())).unwrap_or(usize::MAX);
            if gap == 0 {
                return Ok(());
            }
            self.put(&ZEROS[..gap.min(ZEROS.len())])?;
        }
    }

    /// Puts zeros up to the next block.
    pub(crate) fn align(&mut self) -> Result<(), WriteError> {
        self.pad_to(self.position().next_multiple_of(BLOCK_BYTES))
    }

    /// Ends the stream at a block boundary; returns the file, the digests of its blocks, and their number.
    pub(super) fn finish(mut self) -> Result<(File, Leaves, u64), WriteError> {
        self.align()?;
        let blocks = self.position() / BLOCK_BYTES;
        let (file, leaves) = self.pool.finish(self.start / BLOCK_BYTES, self.buffer)?;
        Ok((file, leaves, blocks))
    }
}

const _: () = assert!(BUFFER_SIZE.is_multiple_of(BLOCK_SIZE));
