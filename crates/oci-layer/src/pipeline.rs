//! Buffers that travel from thread to thread.
//!
//! A stage fills a buffer and sends it to one or more others, which share it and read it where it is. The
//! number of buffers is fixed, and a buffer returns to its stage when the last reader lets go of it: that
//! bounds memory and holds a fast stage back.

use std::io::{self, BufRead, Read};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

/// Bytes in a buffer.
pub(crate) const BUFFER_SIZE: usize = 256 << 10;
/// Buffers of one stage: some with each reader, some on the way.
const BUFFERS: usize = 12;

/// The buffers of one stage.
pub(crate) struct Buffers {
    free: Receiver<Vec<u8>>,
    home: Sender<Vec<u8>>,
    made: usize,
}

impl Buffers {
    pub(crate) fn new() -> Self {
        let (home, free) = channel();
        Self { free, home, made: 0 }
    }

    /// Fills a buffer from `source`, to the brim unless the source ends; `None` at the end. Waits while all
    /// buffers are with readers.
    pub(crate) fn fill(&mut self, source: &mut impl Read) -> io::Result<Option<Chunk>> {
        let mut bytes = self.take();
        let mut filled = 0;
        while filled < bytes.len() {
            match source.read(&mut bytes[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let buffer = Buffer { bytes, filled, home: self.home.clone() };
        Ok((filled > 0).then(|| Chunk(Arc::new(buffer))))
    }

    fn take(&mut self) -> Vec<u8> {
        if self.made < BUFFERS {
            self.made += 1;
            return vec![0; BUFFER_SIZE];
        }
        // Never fails: this stage holds a sender as well.
        self.free.recv().unwrap_or_else(|_| vec![0; BUFFER_SIZE])
    }
}

/// A filled part of a stream, shared by its readers.
#[derive(Clone)]
pub(crate) struct Chunk(Arc<Buffer>);

struct Buffer {
    bytes: Vec<u8>,
    filled: usize,
    home: Sender<Vec<u8>>,
}

impl Deref for Chunk {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0.bytes[..self.0.filled]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // The stage may be done; then nobody wants it.
        let _ = self.home.send(std::mem::take(&mut self.bytes));
    }
}

/// What a stage sends: chunks, then an end. A stage that fails ends without one.
pub(crate) enum Message {
    /// The next part of the stream.
    Chunk(Chunk),
    /// The stream is complete.
    End,
}

/// A stream as it arrives from another thread.
pub(crate) struct Incoming {
    messages: Receiver<Message>,
    chunk: Option<Chunk>,
    consumed: usize,
    is_complete: bool,
}

impl Incoming {
    pub(crate) fn new(messages: Receiver<Message>) -> Self {
        Self { messages, chunk: None, consumed: 0, is_complete: false }
    }

    /// Passes over everything up to the end of the stream.
    pub(crate) fn drain(&mut self) -> io::Result<()> {
        loop {
            let length = self.fill_buf()?.len();
            if length == 0 {
                return Ok(());
            }
            self.consume(length);
        }
    }
}

impl BufRead for Incoming {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let is_used_up = self.chunk.as_ref().is_none_or(|chunk| self.consumed == chunk.len());
        if is_used_up && !self.is_complete {
            self.chunk = None;
            self.consumed = 0;
            match self.messages.recv() {
                Ok(Message::Chunk(chunk)) => self.chunk = Some(chunk),
                Ok(Message::End) => self.is_complete = true,
                Err(_) => return Err(interrupted()),
            }
        }
        Ok(self.chunk.as_ref().map_or(&[], |chunk| &chunk[self.consumed..]))
    }

    fn consume(&mut self, amount: usize) {
        self.consumed += amount;
    }
}

impl Read for Incoming {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut available = self.fill_buf()?;
        let count = available.read(bytes)?;
        self.consume(count);
        Ok(count)
    }
}

/// The stage that sends has failed; it says itself how.
fn interrupted() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the stream ends without its end being told")
}
