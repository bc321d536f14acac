//! What is wrong with an archive, and where.

use std::io;

/// Why an archive is refused. Offsets are bytes from the start of the uncompressed archive.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The stream that carries the archive failed.
    #[error("tar: reading the archive at byte {offset}: {source}")]
    Input {
        /// Bytes read before the failure.
        offset: u64,
        /// What the stream says.
        source: io::Error,
    },
    /// The archive ends too early.
    #[error("tar: expected {missing} more bytes of {within} at byte {offset}, found the end of the archive")]
    Truncated {
        /// Length of the archive.
        offset: u64,
        /// What was being read.
        within: &'static str,
        /// Bytes that are missing.
        missing: u64,
    },
    /// A field has a value that the formats do not allow, or that this reader refuses.
    #[error("tar: entry at byte {offset}: {field}: expected {expected}, found {found}")]
    Field {
        /// Offset of the header that the field belongs to.
        offset: u64,
        /// Name of the field or record.
        field: &'static str,
        /// What is allowed.
        expected: &'static str,
        /// What is there.
        found: String,
    },
}

/// A fault in one field, before the place of its header is known.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) field: &'static str,
    pub(super) expected: &'static str,
    pub(super) found: String,
}

impl Fault {
    pub(super) fn new(field: &'static str, expected: &'static str, found: impl ToString) -> Self {
        Self { field, expected, found: found.to_string() }
    }

    /// A fault whose finding is raw bytes, shown escaped and not longer than a line.
    pub(super) fn bytes(field: &'static str, expected: &'static str, found: &[u8]) -> Self {
        const SHOWN: usize = 64;
        let shown = found[..found.len().min(SHOWN)].escape_ascii();
        let ellipsis = if found.len() > SHOWN { "…" } else { "" };
        Self { field, expected, found: format!("\"{shown}{ellipsis}\"") }
    }

    pub(super) fn at(self, offset: u64) -> TarError {
        let Self { field, expected, found } = self;
        TarError::Field { offset, field, expected, found }
    }
}
