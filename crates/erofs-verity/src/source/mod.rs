//! Where the contents of files come from.

use std::io::{self, Read};

pub mod dir;

/// The bytes of a regular file, read once, when the image is written.
pub trait Content {
    /// Opens the content at its beginning.
    ///
    /// # Errors
    /// When it cannot be had (any more).
    fn open(&self) -> io::Result<Box<dyn Read + '_>>;
}

impl Content for Vec<u8> {
    fn open(&self) -> io::Result<Box<dyn Read + '_>> {
        Ok(Box::new(self.as_slice()))
    }
}
