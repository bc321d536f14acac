//! Why a file is refused.

use boot_abi::CONFIG_GPA;

use super::MAX_IMAGE_BYTES;
use crate::reader::ReadError;

/// Why a file is no image that can be launched.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file is too long to be an image.
    #[error("IGVM file: expected at most {MAX_IMAGE_BYTES} bytes, found {0}")]
    TooLong(usize),
    /// Not an IGVM file, or a damaged one.
    #[error("IGVM file: {0}")]
    Format(#[from] ReadError),
    /// A platform, or a compatibility mask, that is not in order.
    #[error("IGVM file: {what}: expected {expected}, found {found}")]
    Header {
        /// Which header.
        what: &'static str,
        /// The rule.
        expected: &'static str,
        /// What the file has.
        found: String,
    },
    /// The image was not built for this platform.
    #[error("IGVM file: expected platform {expected}, found {found}")]
    Platform {
        /// The platform asked for.
        expected: &'static str,
        /// The platforms in the file.
        found: String,
    },
    /// A header that this loader does not know.
    #[error("IGVM file: unsupported header {0}")]
    Directive(String),
    /// A page that is not 4096 bytes of known data at an aligned address.
    #[error("IGVM file: page at {gpa:#x}: expected {expected}, found {found}")]
    Page {
        /// Where.
        gpa: u64,
        /// The rule.
        expected: &'static str,
        /// What the file has.
        found: String,
    },
    /// Two pages, parameter areas or save areas want the same place.
    #[error("IGVM file: page at {0:#x} is loaded twice")]
    Twice(u64),
    /// A parameter area that is too large, or not declared, or used twice.
    #[error("IGVM file: parameter area {index}: {problem}")]
    ParameterArea {
        /// The area's index.
        index: u32,
        /// What is wrong.
        problem: &'static str,
    },
    /// No processor state, or more than one.
    #[error("IGVM file: expected one processor context, found {0}")]
    Contexts(usize),
    /// The configuration page is not one that the stub would accept.
    #[error("IGVM file: configuration at {CONFIG_GPA:#x}: expected {expected}, found {found}")]
    Config {
        /// The rule.
        expected: &'static str,
        /// What the file has.
        found: String,
    },
    /// Something that a platform has a fixed number of.
    #[error("IGVM file: {what}: expected {expected}, found {found}")]
    Count {
        /// What.
        what: &'static str,
        /// How many there should be.
        expected: &'static str,
        /// How many there are.
        found: usize,
    },
}
