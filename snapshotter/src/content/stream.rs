//! A stream of messages as a blocking reader.

use std::io::{self, Read};

use containerd_client::services::v1::ReadContentResponse;
use tokio::runtime::Handle;
use tonic::Streaming;

/// Reads the bytes that a `Read` call of the content service streams.
pub struct StreamReader {
    runtime: Handle,
    stream: Streaming<ReadContentResponse>,
    data: Vec<u8>,
    /// Bytes of `data` that were given out.
    used: usize,
}

impl StreamReader {
    /// Reads `stream`, which is driven by `runtime`.
    pub fn new(runtime: Handle, stream: Streaming<ReadContentResponse>) -> Self {
        Self { runtime, stream, data: Vec::new(), used: 0 }
    }
}

impl Read for StreamReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.used == self.data.len() {
            match self.runtime.block_on(self.stream.message()).map_err(io::Error::other)? {
                Some(message) => self.data = message.data,
                None => return Ok(0),
            }
            self.used = 0;
        }
        let rest = &self.data[self.used..];
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        self.used += length;
        Ok(length)
    }
}
