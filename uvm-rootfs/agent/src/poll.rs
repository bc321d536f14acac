#![allow(unsafe_code, reason = "tokio asks for a promise about the descriptor")]
//! Waiting for descriptors.
//!
//! Unsafe: tokio's registration trusts that the value keeps its descriptor open and the same. An `OwnedFd` does.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

/// Registers a descriptor with the running tokio runtime.
///
/// # Errors
/// If the descriptor cannot be polled.
pub fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd always refers to its one open descriptor, until it is dropped with the AsyncFd.
    unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)
}
