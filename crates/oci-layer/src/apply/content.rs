//! The content of files, from the archive into the image.
//!
//! A file with holes is stored in chunks of equal size, of which those without data are left out. The chunk
//! size is the one with which index and stored chunks take the least room, the smaller of two that are equal;
//! it is between 4 KiB and 1 GiB, and an index has at most 65536 entries.

use std::io::BufRead;

use erofs_verity::layer::LayerWriter;
use erofs_verity::tree::{Data, Extent, Kind};

use super::error::ApplyError;
use crate::tar::{Fragment, Reader, SparseMap};

const BLOCK_BYTES: u64 = 4096;
/// Largest binary logarithm of a chunk's blocks: 1 GiB.
const MAX_CHUNK_BITS: u32 = 18;
/// Most chunks in a file.
const MAX_CHUNKS: u64 = 1 << 16;
/// Bytes of an index entry.
const INDEX_ENTRY: u64 = 8;

/// Stores the `size` bytes that are the rest of the current entry's data.
pub(super) fn store<R: BufRead>(
    archive: &mut Reader<R>,
    writer: &mut LayerWriter,
    size: u64,
) -> Result<Kind, ApplyError> {
    if size == 0 {
        return Ok(Kind::Regular { size, data: Data::Flat(Extent::EMPTY) });
    }
    writer.begin()?;
    archive.read_data(size, |piece| writer.write(piece).map_err(ApplyError::from))?;
    Ok(Kind::Regular { size, data: Data::Flat(writer.end()?) })
}

/// How a sparse file is cut.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chunking {
    chunk_bits: u32,
    /// Chunks in the file.
    chunks: u64,
    /// Chunks with data.
    stored: u64,
}

impl Chunking {
    /// The best chunk size for a file, or `None` if it is too large for any.
    pub(super) fn best(map: &SparseMap) -> Option<Self> {
        let candidates = (0..=MAX_CHUNK_BITS).map(|chunk_bits| Self {
            chunk_bits,
            chunks: map.size().div_ceil(BLOCK_BYTES << chunk_bits),
            stored: stored_chunks(map.fragments(), BLOCK_BYTES << chunk_bits),
        });
        // `min_by_key` takes the first of equals, which is the smallest chunk.
        candidates.filter(|chunking| chunking.chunks <= MAX_CHUNKS).min_by_key(Self::cost)
    }

    /// Bytes that the file takes in the image, at most.
    pub(super) fn cost(&self) -> u64 {
        // At most 2^16 chunks of 2^30 bytes.
        self.chunks * INDEX_ENTRY + self.stored * self.chunk_bytes()
    }

    fn chunk_bytes(&self) -> u64 {
        BLOCK_BYTES << self.chunk_bits
    }
}

/// Chunks of `chunk_bytes` in which fragments lie.
fn stored_chunks(fragments: &[Fragment], chunk_bytes: u64) -> u64 {
    let mut next = 0;
    let mut stored = 0;
    for fragment in fragments {
        let first = (fragment.offset / chunk_bytes).max(next);
        let end = fragment.end().div_ceil(chunk_bytes);
        stored += end.saturating_sub(first);
        next = end.max(next);
    }
    stored
}

/// Stores the chunks of a sparse file whose fragments are the current entry's data.
pub(super) fn store_sparse<R: BufRead>(
    archive: &mut Reader<R>,
    writer: &mut LayerWriter,
    map: &SparseMap,
    chunking: &Chunking,
) -> Result<Kind, ApplyError> {
    let size = map.size();
    if size == 0 {
        return Ok(Kind::Regular { size, data: Data::Flat(Extent::EMPTY) });
    }
    let chunk_bytes = chunking.chunk_bytes();
    let mut sparse = SparseWriter { writer, chunk_bytes, size, position: 0, starts: Vec::new(), stored: 0 };
    sparse.writer.begin()?;
    for fragment in map.fragments() {
        sparse.advance_to(fragment.offset)?;
        archive.read_data(fragment.length, |piece| sparse.write(piece))?;
    }
    sparse.advance_to(size)?;
    let SparseWriter { starts, stored, .. } = sparse;
    let extent = writer.end()?;
    let data = if stored == chunking.chunks {
        Data::Flat(extent)
    } else {
        let chunk_blocks = 1u32 << chunking.chunk_bits;
        let start = |nth: Option<u32>| nth.map(|nth| extent.first_block + nth * chunk_blocks);
        Data::Chunked { chunk_blocks, starts: starts.into_iter().map(start).collect() }
    };
    Ok(Kind::Regular { size, data })
}

/// Writes the chunks with data, one behind another.
struct SparseWriter<'w> {
    writer: &'w mut LayerWriter,
    chunk_bytes: u64,
    /// Bytes in the file.
    size: u64,
    /// Where in the file the next byte goes.
    position: u64,
    /// For each chunk that has begun, which of the stored ones it is.
    starts: Vec<Option<u32>>,
    /// Chunks stored so far.
    stored: u64,
}

impl SparseWriter<'_> {
    /// Writes data at the position.
    fn write(&mut self, bytes: &[u8]) -> Result<(), ApplyError> {
        // Chunks begin where the position enters them.
        let end = self.position + bytes.len() as u64;
        let last = (end - 1) / self.chunk_bytes;
        while (self.starts.len() as u64) <= last {
            // Bounded by the number of chunks.
            self.starts.push(u32::try_from(self.stored).ok());
            self.stored += 1;
        }
        self.writer.write(bytes)?;
        self.position = end;
        Ok(())
    }

    /// Moves to `offset`: with zeros in the chunk that has begun and in the one where `offset` lies, without
    /// anything in chunks between them. At the end of the file only the former is filled.
    fn advance_to(&mut self, offset: u64) -> Result<(), ApplyError> {
        let begun = (self.starts.len() as u64 * self.chunk_bytes).min(self.size);
        let filled = begun.min(offset);
        if self.position < filled {
            self.zeros(filled - self.position)?;
            self.position = filled;
        }
        if self.position == offset {
            return Ok(());
        }
        let chunk =
            if offset == self.size { offset.div_ceil(self.chunk_bytes) } else { offset / self.chunk_bytes };
        while (self.starts.len() as u64) < chunk {
            self.starts.push(None);
        }
        self.position = (chunk * self.chunk_bytes).min(self.size);
        if self.position < offset {
            self.starts.push(u32::try_from(self.stored).ok());
            self.stored += 1;
            self.zeros(offset - self.position)?;
            self.position = offset;
        }
        Ok(())
    }

    fn zeros(&mut self, mut count: u64) -> Result<(), ApplyError> {
        const ZEROS: [u8; 4096] = [0; 4096];
        while count > 0 {
            let piece = usize::try_from(count).unwrap_or(usize::MAX).min(ZEROS.len());
            self.writer.write(&ZEROS[..piece])?;
            count -= piece as u64;
        }
        Ok(())
    }
}
