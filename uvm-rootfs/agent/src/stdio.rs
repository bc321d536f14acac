//! Standard streams of a container's process.
//!
//! The agent buffers nothing: it reads a pipe only while someone asks for data, so a process whose output is
//! not fetched blocks, as it would at a slow terminal, and memory stays bounded. With a terminal, one
//! pseudo-terminal carries input and output, and there is no separate error stream.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use agent_protocol::MAX_STREAM_CHUNK;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::unix::AsyncFd;

use crate::error::{AgentError, Context, Result};
use crate::poll::register;

type Stream = Arc<AsyncFd<OwnedFd>>;

/// The agent's ends of a process's streams.
#[derive(Debug)]
pub struct Stdio {
    /// `None` once closed.
    stdin: Mutex<Option<Stream>>,
    stdout: Stream,
    /// `None` with a terminal.
    stderr: Option<Stream>,
    terminal: bool,
}

/// The process's ends of its streams.
#[derive(Debug)]
pub struct ProcessEnds {
    /// Standard input.
    pub stdin: OwnedFd,
    /// Standard output.
    pub stdout: OwnedFd,
    /// Standard error.
    pub stderr: OwnedFd,
}

/// Which output of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stdio {
    /// Three pipes whose process ends belong to `uid` and `gid`, so that a process of that user may reopen
    /// `/dev/stdout`.
    ///
    /// # Errors
    /// If descriptors run out.
    pub fn pipes(uid: u32, gid: u32) -> Result<(Self, ProcessEnds)> {
        let pipe = || pipe_with(PipeFlags::CLOEXEC).doing(|| "make a pipe".to_owned());
        let (stdin, write) = pipe()?;
        let (out_read, stdout) = pipe()?;
        let (err_read, stderr) = pipe()?;
        let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
        for end in [&stdin, &stdout, &stderr] {
            rustix::fs::fchown(end, Some(uid), Some(gid))
                .doing(|| "give a pipe to the process".to_owned())?;
        }
        let stdio = Self {
            stdin: Mutex::new(Some(stream(write)?)),
            stdout: stream(out_read)?,
            stderr: Some(stream(err_read)?),
            terminal: false,
        };
        Ok((stdio, ProcessEnds { stdin, stdout, stderr }))
    }

    /// The master side of a pseudo-terminal.
    ///
    /// # Errors
    /// If the descriptor cannot be polled.
    pub fn terminal(master: OwnedFd) -> Result<Self> {
        let master = stream(master)?;
        Ok(Self { stdin: Mutex::new(Some(master.clone())), stdout: master, stderr: None, terminal: true })
    }

    /// Waits for output, at most `limit` bytes; empty at end of file.
    ///
    /// # Errors
    /// If reading fails.
    pub async fn read(&self, output: Output, limit: usize) -> Result<Vec<u8>> {
        let stream = match (output, &self.stderr) {
            (Output::Stdout, _) => &self.stdout,
            (Output::Stderr, Some(stderr)) => stderr,
            (Output::Stderr, None) => return Ok(Vec::new()),
        };
        if limit == 0 {
            return Err(AgentError::Invalid("a read of 0 bytes: expected a length above 0".to_owned()));
        }
        let mut data = vec![0; limit.min(MAX_STREAM_CHUNK)];
        loop {
            let mut ready = stream.readable().await.doing(|| "wait for output".to_owned())?;
            match ready.try_io(|fd| rustix::io::read(fd.get_ref(), &mut data[..]).map_err(io::Error::from)) {
                Ok(Ok(length)) => {
                    data.truncate(length);
                    return Ok(data);
                }
                // A terminal whose last user has gone.
                Ok(Err(error)) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => {
                    return Ok(Vec::new());
                }
                Ok(Err(error)) => return Err(error).doing(|| "read output".to_owned()),
                Err(_would_block) => {}
            }
        }
    }

    /// Writes to standard input and says how many bytes were taken, at least one unless `data` is empty.
    ///
    /// # Errors
    /// If standard input is closed on either side.
    pub async fn write(&self, data: &[u8]) -> Result<usize> {
        let closed = || AgentError::State("standard input is closed".to_owned());
        let stream = self.stdin.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or_else(closed)?;
        if data.is_empty() {
            return Ok(0);
        }
        loop {
            let mut ready = stream.writable().await.doing(|| "wait for standard input".to_owned())?;
            match ready.try_io(|fd| rustix::io::write(fd.get_ref(), data).map_err(io::Error::from)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => return Err(closed()),
                Ok(result) => return result.doing(|| "write standard input".to_owned()),
                Err(_would_block) => {}
            }
        }
    }

    /// Ends standard input: the process reads end of file. A terminal stays open; its user types ^D.
    pub fn close_stdin(&self) {
        self.stdin.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Sets the terminal's size in characters.
    ///
    /// # Errors
    /// If the process has no terminal.
    pub fn resize(&self, rows: u32, columns: u32) -> Result<()> {
        let fit = |size: u32| {
            u16::try_from(size)
                .map_err(|_| AgentError::Invalid(format!("terminal size {size}: expected below 65536")))
        };
        if !self.terminal {
            return Err(AgentError::State("the process has no terminal".to_owned()));
        }
        let size = Winsize { ws_row: fit(rows)?, ws_col: fit(columns)?, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(self.stdout.get_ref().as_fd(), size).doing(|| "set the terminal's size".to_owned())
    }
}

/// Prepares the agent's end of a pipe or terminal for asynchronous use.
fn stream(fd: OwnedFd) -> Result<Stream> {
    let flags = rustix::fs::fcntl_getfl(&fd).doing(|| "read a stream's flags".to_owned())?;
    rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK).doing(|| "set a stream's flags".to_owned())?;
    register(fd).map(Arc::new).doing(|| "watch a stream".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> (u32, u32) {
        (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw())
    }

    #[tokio::test]
    async fn data_passes_and_ends() {
        let (stdio, ends) = Stdio::pipes(own().0, own().1).unwrap();
        rustix::io::write(&ends.stdout, b"hello world").unwrap();
        assert_eq!(stdio.read(Output::Stdout, 5).await.unwrap(), b"hello");
        assert_eq!(stdio.read(Output::Stdout, 100).await.unwrap(), b" world");
        drop(ends.stdout);
        assert!(stdio.read(Output::Stdout, 100).await.unwrap().is_empty());
        assert!(stdio.read(Output::Stdout, 0).await.is_err());

        assert_eq!(stdio.write(b"in").await.unwrap(), 2);
        stdio.close_stdin();
        assert!(matches!(stdio.write(b"x").await, Err(AgentError::State(_))));
        let mut buffer = [0; 8];
        assert_eq!(rustix::io::read(&ends.stdin, &mut buffer).unwrap(), 2);
        assert_eq!(rustix::io::read(&ends.stdin, &mut buffer).unwrap(), 0);
        assert!(stdio.resize(1, 1).is_err());
    }

    #[tokio::test]
    async fn a_full_pipe_takes_no_more_than_it_holds() {
        let (stdio, ends) = Stdio::pipes(own().0, own().1).unwrap();
        let taken = stdio.write(&vec![0; 1 << 20]).await.unwrap();
        assert!(taken > 0 && taken < 1 << 20, "{taken}");
        drop(ends);
        assert!(matches!(stdio.write(b"x").await, Err(AgentError::State(_))));
    }
}
