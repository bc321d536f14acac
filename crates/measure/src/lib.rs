//! Explains launch measurements: what is in an image, which digests it has, what makes two launches differ, and
//! which launch an attestation report is of.
//!
//! Pure: bytes in, descriptions out. Every description is a value that programs take as JSON and that prints for
//! people; nothing here trusts an image or a report to be well made.
#![forbid(unsafe_code)]

pub mod bundle;
pub mod config;
pub mod contents;
pub mod cpu;
pub mod diff;
pub mod explain;
pub mod headers;
pub mod profile;
pub mod registers;
