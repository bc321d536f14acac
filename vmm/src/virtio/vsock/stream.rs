//! The host's end of a connection: a Unix socket that never blocks, and what it did not take yet.
//!
//! Sockets are watched for changes only (edge-triggered), so their state is remembered here until a call says
//! that it is used up. Writing to a socket that the other side has closed must give an error, not a signal:
//! Rust programs ignore SIGPIPE from the start.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use vm_memory::{GuestMemoryError, ReadVolatile, VolatileMemoryError, VolatileSlice, WriteVolatile};

use super::conn::HostSide;
use crate::event_loop::Readiness;

/// Longest `CONNECT <port>\n`.
const MAX_LINE: usize = "CONNECT 4294967295\n".len();

/// What a read gave.
#[derive(Debug, PartialEq, Eq)]
pub enum ReadOutcome {
    /// So many bytes.
    Bytes(u32),
    /// Nothing for now.
    Nothing,
    /// Nothing, ever again.
    End,
}

/// A socket and its backlog.
#[derive(Debug)]
pub struct HostStream {
    socket: UnixStream,
    backlog: VecDeque<u8>,
    readable: bool,
    writable: bool,
}

impl HostStream {
    /// Takes a connected socket that does not block.
    fn new(socket: UnixStream) -> Self {
        // Whether it is readable and writable is found out by trying.
        Self { socket, backlog: VecDeque::new(), readable: true, writable: true }
    }

    /// Connects to whoever listens at `path`, without waiting: a listener that is busy counts as none.
    ///
    /// # Errors
    /// When nobody listens there.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(Self::new(socket.into()))
    }

    /// Notes an event.
    pub fn note(&mut self, readiness: Readiness) {
        self.readable |= readiness.readable();
        self.writable |= readiness.writable();
    }

    /// How the socket is doing.
    #[must_use]
    pub fn side(&self) -> HostSide {
        HostSide { readable: self.readable, flushed: self.backlog.is_empty() }
    }

    /// Reads into `slices` until they are full or the socket has no more.
    ///
    /// # Errors
    /// When the socket fails, or memory that was checked is not there.
    pub fn read<'m>(
        &mut self,
        slices: impl Iterator<Item = Result<VolatileSlice<'m>, GuestMemoryError>>,
    ) -> Result<ReadOutcome, VolatileMemoryError> {
        let mut total = 0;
        for slice in slices {
            let mut slice = slice.map_err(|error| VolatileMemoryError::IOError(io::Error::other(error)))?;
            let wanted = slice.len();
            let got = match self.socket.read_volatile(&mut slice) {
                Err(VolatileMemoryError::IOError(error)) if is_temporary(&error) => {
                    self.readable = error.kind() == io::ErrorKind::Interrupted;
                    break;
                }
                Err(error) if total == 0 => return Err(error),
                // The error comes again when there is nothing else to report.
                Err(_) => break,
                Ok(0) if total == 0 => return Ok(ReadOutcome::End),
                Ok(got) => got,
            };
            total += got;
            if got < wanted {
                break;
            }
        }
        Ok(match u32::try_from(total) {
            Ok(0) | Err(_) => ReadOutcome::Nothing,
            Ok(total) => ReadOutcome::Bytes(total),
        })
    }

    /// Passes on what is in `slices`, and keeps in the backlog what the socket does not take now. Gives back
    /// how many bytes it took.
    ///
    /// # Errors
    /// When the socket fails, or memory that was checked is not there.
    pub fn write<'m>(
        &mut self,
        slices: impl Iterator<Item = Result<VolatileSlice<'m>, GuestMemoryError>>,
    ) -> Result<u32, VolatileMemoryError> {
        let mut taken = 0;
        for slice in slices {
            let slice = slice.map_err(|error| VolatileMemoryError::IOError(io::Error::other(error)))?;
            let mut now = 0;
            if self.backlog.is_empty() && self.writable {
                now = match self.socket.write_volatile(&slice) {
                    Ok(now) => now,
                    Err(VolatileMemoryError::IOError(error)) if is_temporary(&error) => {
                        self.writable = error.kind() == io::ErrorKind::Interrupted;
                        0
                    }
                    Err(error) => return Err(error),
                };
            }
            taken += u32::try_from(now).unwrap_or(u32::MAX);
            self.keep(&slice.offset(now)?);
        }
        // What was kept only because the call was interrupted would wait for an event that never comes.
        Ok(taken + self.flush().map_err(VolatileMemoryError::IOError)?)
    }

    fn keep(&mut self, slice: &VolatileSlice<'_>) {
        let mut chunk = [0; 512];
        let mut rest = *slice;
        while !rest.is_empty() {
            let copied = rest.copy_to(&mut chunk);
            self.backlog.extend(chunk.iter().take(copied));
            match rest.offset(copied) {
                Ok(later) => rest = later,
                // Not more was copied than there was.
                Err(_) => break,
            }
        }
    }

    /// Passes on the backlog as far as the socket takes it: how many bytes.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn flush(&mut self) -> io::Result<u32> {
        let mut taken = 0;
        while self.writable && !self.backlog.is_empty() {
            let (front, _) = self.backlog.as_slices();
            match self.socket.write(front) {
                Ok(now) => {
                    self.backlog.drain(..now);
                    taken += u32::try_from(now).unwrap_or(u32::MAX);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_temporary(&error) => self.writable = false,
                Err(error) => return Err(error),
            }
        }
        if self.backlog.is_empty() {
            // An idle connection holds no memory.
            self.backlog = VecDeque::new();
        }
        Ok(taken)
    }

    /// Forgets the backlog.
    pub fn discard(&mut self) {
        self.backlog = VecDeque::new();
    }

    /// Shuts one direction down.
    pub fn shut_down(&self, direction: Shutdown) {
        // It fails only when the other side is gone, and then there is nobody to tell.
        let _ = self.socket.shutdown(direction);
    }

    /// Sends the line that tells the host that the guest has accepted.
    ///
    /// # Errors
    /// When the socket does not take so few bytes as the first of all.
    pub fn greet(&mut self, host_port: u32) -> io::Result<()> {
        self.socket.write_all(format!("OK {host_port}\n").as_bytes())
    }
}

impl AsRawFd for HostStream {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// A host that has connected and not yet said where to.
#[derive(Debug)]
pub struct Greeting {
    socket: UnixStream,
    line: Vec<u8>,
}

impl Greeting {
    /// Takes an accepted socket.
    ///
    /// # Errors
    /// When it cannot be made non-blocking.
    pub fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self { socket, line: Vec::with_capacity(MAX_LINE) })
    }

    /// Reads on: the guest port once the line is complete. Bytes behind the line stay in the socket.
    ///
    /// # Errors
    /// When the host closes the socket or sends another line.
    pub fn port(&mut self) -> io::Result<Option<u32>> {
        let mut byte = [0];
        while self.line.len() < MAX_LINE {
            match self.socket.read(&mut byte) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) if byte == *b"\n" => return parse_line(&self.line).map(Some),
                Ok(_) => self.line.extend_from_slice(&byte),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_temporary(&error) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Err(bad_line(&self.line))
    }

    /// The socket, for the connection.
    #[must_use]
    pub fn into_stream(self) -> HostStream {
        HostStream::new(self.socket)
    }
}

impl AsRawFd for Greeting {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

fn parse_line(line: &[u8]) -> io::Result<u32> {
    let digits = line.strip_prefix(b"CONNECT ").unwrap_or_default();
    let port = digits.iter().try_fold(0u32, |port, digit| {
        let digit = digit.is_ascii_digit().then(|| u32::from(digit - b'0'))?;
        port.checked_mul(10)?.checked_add(digit)
    });
    port.filter(|_| !digits.is_empty()).ok_or_else(|| bad_line(line))
}

fn bad_line(line: &[u8]) -> io::Error {
    let found = String::from_utf8_lossy(line);
    io::Error::new(io::ErrorKind::InvalidData, format!("expected `CONNECT <port>`, found {found:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_name_a_port_and_nothing_else() {
        assert_eq!(parse_line(b"CONNECT 1024").unwrap(), 1024);
        assert_eq!(parse_line(b"CONNECT 4294967295").unwrap(), u32::MAX);
        for bad in ["", "CONNECT", "CONNECT ", "CONNECT 4294967296", "CONNECT -1", "CONNECT 1 ", "connect 1"]
        {
            assert!(parse_line(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_line_is_bounded_and_leaves_what_follows() {
        let (host, ours) = UnixStream::pair().unwrap();
        let mut greeting = Greeting::new(ours).unwrap();
        (&host).write_all(b"CONN").unwrap();
        assert_eq!(greeting.port().unwrap(), None);
        (&host).write_all(b"ECT 5\nhello").unwrap();
        assert_eq!(greeting.port().unwrap(), Some(5));
        let mut rest = [0; 5];
        greeting.socket.read_exact(&mut rest).unwrap();
        assert_eq!(rest, *b"hello");
        let (host, ours) = UnixStream::pair().unwrap();
        (&host).write_all(&[b'1'; 64]).unwrap();
        let mut greeting = Greeting::new(ours).unwrap();
        assert_eq!(greeting.port().unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(greeting.line.len(), MAX_LINE);
    }
}
