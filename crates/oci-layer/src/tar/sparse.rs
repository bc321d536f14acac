//! Maps of sparse files.
//!
//! A sparse file's data in the archive are its fragments, back to back. Where they belong is written in one
//! of four ways (GNU tar's manual, "Storing Sparse Files"): in the header and blocks that follow it (old GNU,
//! type `S`), in one record per number (PAX 0.0), in one record for all (PAX 0.1), or in front of the data
//! (PAX 1.0). All four become a [`SparseMap`], whose fragments are in order, apart, not empty and inside the
//! file.

use super::error::Fault;
use super::number;

/// Most fragments in a map: what fits a megabyte of old GNU sparse blocks, the limit that other extension
/// data have as well.
pub const MAX_FRAGMENTS: usize = (1 << 20) / ENTRY_BYTES;

/// An entry of an old GNU sparse block: offset and length, 12 bytes each.
const ENTRY_BYTES: usize = 24;
const FIELD: &str = "sparse map";

/// A run of data in a sparse file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    /// First byte in the file.
    pub offset: u64,
    /// Bytes of data, at least one.
    pub length: u64,
}

impl Fragment {
    /// First byte behind the fragment.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset + self.length
    }
}

/// Where a sparse file has data; all else reads as zeros.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SparseMap {
    size: u64,
    fragments: Vec<Fragment>,
}

impl SparseMap {
    /// Bytes in the file, holes included.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Its data, in order, without overlaps.
    #[must_use]
    pub fn fragments(&self) -> &[Fragment] {
        &self.fragments
    }
}

/// Numbers of a map as they arrive: offset, length, offset, length, …
#[derive(Debug, Default)]
pub(super) struct Numbers(Vec<u64>);

impl Numbers {
    pub(super) fn push(&mut self, number: Option<i64>, text: &[u8]) -> Result<(), Fault> {
        let number = number.and_then(|number| u64::try_from(number).ok());
        let number = number.ok_or_else(|| Fault::bytes(FIELD, "numbers from 0 to 2^63 - 1", text))?;
        if self.0.len() >= 2 * MAX_FRAGMENTS {
            return Err(Fault::new(FIELD, "at most 43690 fragments", "more"));
        }
        self.0.push(number);
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Takes the entries of an old GNU sparse area; a zero byte in front of an entry ends them.
    pub(super) fn push_old_gnu(&mut self, area: &[u8]) -> Result<(), Fault> {
        for entry in area.chunks_exact(ENTRY_BYTES).take_while(|entry| entry[0] != 0) {
            for text in entry.chunks_exact(ENTRY_BYTES / 2) {
                self.push(number::field(text), text)?;
            }
        }
        Ok(())
    }

    /// Takes a comma-separated list (PAX 0.1).
    pub(super) fn push_list(&mut self, list: &[u8]) -> Result<(), Fault> {
        if list.is_empty() {
            return Ok(());
        }
        list.split(|&byte| byte == b',').try_for_each(|text| self.push(number::decimal(text), text))
    }

    /// Checks the map of a file of `size` bytes of which the archive holds `stored`.
    pub(super) fn finish(self, size: u64, stored: u64) -> Result<SparseMap, Fault> {
        let Self(numbers) = self;
        if !numbers.len().is_multiple_of(2) {
            return Err(Fault::new(
                FIELD,
                "pairs of offset and length",
                format!("{} numbers", numbers.len()),
            ));
        }
        let pairs = numbers.chunks_exact(2).map(|pair| Fragment { offset: pair[0], length: pair[1] });
        let (mut end, mut total) = (0u64, 0u64);
        for Fragment { offset, length } in pairs.clone() {
            // No overflow: all numbers are below 2^63.
            if offset < end || offset + length > size {
                let expected = "fragments in order, apart from each other and inside the file";
                let found = format!("{length} bytes at {offset} in a file of {size} bytes");
                return Err(Fault::new(FIELD, expected, found));
            }
            end = offset + length;
            total += length;
        }
        if total != stored {
            let found = format!("{total} bytes in the map and {stored} in the archive");
            return Err(Fault::new(FIELD, "as many bytes in the map as in the archive", found));
        }
        Ok(SparseMap { size, fragments: pairs.filter(|fragment| fragment.length > 0).collect() })
    }
}

/// Reads a map in front of the data (PAX 1.0): a count, then two numbers a fragment, each on a line.
#[derive(Debug, Default)]
pub(super) struct LineParser {
    line: Vec<u8>,
    count: Option<usize>,
    numbers: Numbers,
}

impl LineParser {
    /// Longest line: 19 digits, with room for leading zeros.
    const MAX_LINE: usize = 32;

    /// Takes a block of the map; true when the map ends in it.
    pub(super) fn push_block(&mut self, block: &[u8]) -> Result<bool, Fault> {
        for &byte in block {
            if byte != b'\n' {
                if self.line.len() == Self::MAX_LINE {
                    return Err(Fault::bytes(FIELD, "lines of one number", &self.line));
                }
                self.line.push(byte);
                continue;
            }
            let line = std::mem::take(&mut self.line);
            let number = number::decimal(&line);
            match self.count {
                None => self.count = Some(count(number, &line)?),
                Some(_) => self.numbers.push(number, &line)?,
            }
            if self.is_complete() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn is_complete(&self) -> bool {
        self.count.is_some_and(|count| self.numbers.len() == 2 * count)
    }

    pub(super) fn finish(self) -> Numbers {
        self.numbers
    }
}

/// The number of fragments, as text declares it.
pub(super) fn count(number: Option<i64>, text: &[u8]) -> Result<usize, Fault> {
    let number = number.and_then(|number| usize::try_from(number).ok());
    number
        .filter(|&count| count <= MAX_FRAGMENTS)
        .ok_or_else(|| Fault::bytes("number of sparse fragments", "a number from 0 to 43690", text))
}

const _: () = assert!(MAX_FRAGMENTS == 43_690);
