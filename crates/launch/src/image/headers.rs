//! The form of an IGVM file, version 1: a fixed header, typed variable headers, and data that they refer to by
//! offset (`igvm_defs`).
//!
//! Files come from wherever an image comes from, so every length and offset in them is hostile: reading one never
//! panics, and never takes more memory than the file has bytes.

use bytes::Bytes;
use igvm_defs::{
    IGVM_FIXED_HEADER, IGVM_FORMAT_VERSION_1, IGVM_MAGIC_VALUE, IGVM_VHS_VARIABLE_HEADER,
    IgvmVariableHeaderType,
};
use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::ImageError;

/// Bytes of data that a page or a processor context refers to.
const PAGE: usize = 4096;
/// Bytes of the fixed header.
const FIXED: usize = size_of::<IGVM_FIXED_HEADER>();
/// Bytes of the checksum, the last field of the fixed header.
const CHECKSUM: usize = 4;

/// A file whose fixed header holds.
pub struct File {
    bytes: Bytes,
    /// Where variable headers are.
    headers: std::ops::Range<usize>,
}

/// One variable header.
pub struct Header<'a> {
    /// Its type's number.
    pub kind: IgvmVariableHeaderType,
    /// What it says, without padding.
    pub content: &'a [u8],
    /// Where in the file it begins.
    pub offset: usize,
}

impl File {
    /// Checks the fixed header, which covers all variable headers with its checksum.
    pub fn open(bytes: Bytes) -> Result<Self, ImageError> {
        let Ok((fixed, _)) = IGVM_FIXED_HEADER::read_from_prefix(&bytes) else {
            return Err(format_error(0, "a fixed header of 24 bytes", format!("{} bytes", bytes.len())));
        };
        for (offset, expected, found) in [
            (0, IGVM_MAGIC_VALUE, fixed.magic),
            (4, IGVM_FORMAT_VERSION_1, fixed.format_version),
            (16, u32::try_from(bytes.len()).unwrap_or(u32::MAX), fixed.total_file_size),
        ] {
            if expected != found {
                return Err(ImageError::FixedHeader { offset, expected, found });
            }
        }
        let headers = usize::try_from(fixed.variable_header_offset).ok().and_then(|start| {
            let size = usize::try_from(fixed.variable_header_size).ok()?;
            let end = start.checked_add(size)?;
            (start >= FIXED && start.is_multiple_of(8) && end <= bytes.len()).then_some(start..end)
        });
        let headers = headers.ok_or_else(|| {
            let found =
                format!("{:#x} bytes at {:#x}", fixed.variable_header_size, fixed.variable_header_offset);
            format_error(8, "variable headers behind the fixed header, within the file", found)
        })?;
        let mut crc = crc32fast::Hasher::new();
        crc.update(&bytes[..FIXED - CHECKSUM]);
        crc.update(&[0; CHECKSUM]);
        crc.update(&bytes[headers.clone()]);
        let expected = crc.finalize();
        if fixed.checksum != expected {
            return Err(ImageError::FixedHeader { offset: 20, expected, found: fixed.checksum });
        }
        Ok(Self { bytes, headers })
    }

    /// The variable headers in order. A damaged one is the last.
    pub fn headers(&self) -> impl Iterator<Item = Result<Header<'_>, ImageError>> {
        let mut at = self.headers.start;
        std::iter::from_fn(move || {
            let rest = self.bytes.get(at..self.headers.end).filter(|rest| !rest.is_empty())?;
            let offset = at;
            let header = split(rest, offset);
            at = header.as_ref().map_or(self.headers.end, |(_, used)| at.saturating_add(*used));
            Some(header.map(|(header, _)| header))
        })
    }

    /// The page of data at `offset`, shared with the file; none for offset 0, which stands for zeros.
    pub fn page(&self, offset: u32) -> Result<Bytes, ImageError> {
        if offset == 0 {
            return Ok(Bytes::new());
        }
        let range = usize::try_from(offset).ok().and_then(|start| Some(start..start.checked_add(PAGE)?));
        let range = range.filter(|range| range.start >= self.headers.end && range.end <= self.bytes.len());
        let range = range.ok_or_else(|| {
            let found = format!("a reference to {offset:#x}");
            format_error(self.bytes.len(), "4096 bytes behind the headers, within the file", found)
        })?;
        Ok(self.bytes.slice(range))
    }
}

/// The first header of `rest`, and how many bytes it takes with its padding.
fn split(rest: &[u8], offset: usize) -> Result<(Header<'_>, usize), ImageError> {
    let truncated = || format_error(offset, "a whole variable header", "a truncated one".into());
    let (header, content) = IGVM_VHS_VARIABLE_HEADER::read_from_prefix(rest).map_err(|_| truncated())?;
    let length = usize::try_from(header.length).map_err(|_| truncated())?;
    let padded = length.checked_next_multiple_of(8).ok_or_else(truncated)?;
    let padding = content.get(length..padded).ok_or_else(truncated)?;
    if padding.iter().any(|byte| *byte != 0) {
        return Err(format_error(offset, "padding of zeros", "other bytes".into()));
    }
    let used = size_of::<IGVM_VHS_VARIABLE_HEADER>() + padded;
    Ok((Header { kind: header.typ, content: &content[..length], offset }, used))
}

impl Header<'_> {
    /// The header's content as the structure that its type names.
    pub fn read<T: FromBytes + KnownLayout + Immutable>(&self) -> Result<T, ImageError> {
        T::read_from_bytes(self.content).map_err(|_| {
            let found = format!("{:?} of {} bytes", self.kind, self.content.len());
            format_error(self.offset, "a header of its type's size", found)
        })
    }
}

fn format_error(offset: usize, expected: &'static str, found: String) -> ImageError {
    ImageError::Format { offset, expected, found }
}
