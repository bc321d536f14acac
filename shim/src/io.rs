//! A process's standard streams: between the FIFOs that containerd names and the guest.
//!
//! An output is read from the guest only as fast as its FIFO takes it, so a slow reader slows its process and
//! nothing else. FIFOs for output are opened for reading too, so that a reader which goes away (a detached
//! client, a restarted containerd) ends neither the stream nor this program. A FIFO for input is opened for
//! reading only: its last writer's close is the end of input.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tracing::debug;

use crate::agent::{Agent, AgentError, Output, ProcessId};

/// Most bytes that travel in one message, either way.
const CHUNK_BYTES: usize = 32 * 1024;

/// How long a FIFO's reader may take for what is left in it when its process has ended.
const SETTLE: Duration = Duration::from_secs(1);
/// How often that is looked at.
const SETTLE_STEP: Duration = Duration::from_millis(5);

/// Where a process's streams go, as containerd names it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stdio {
    /// FIFO that input comes from; empty for none.
    pub stdin: String,
    /// Where output goes; empty to discard it.
    pub stdout: String,
    /// Where errors go; empty to discard them. Unused with a terminal.
    pub stderr: String,
    /// Whether the process has a terminal, whose output is all on `stdout`.
    pub terminal: bool,
}

/// Why a stream cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StdioError {
    /// The system refuses.
    #[error("cannot open {stream} {path}: {source}", path = .path.display())]
    Open {
        /// Which stream.
        stream: &'static str,
        /// Its file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A kind of destination that is not served.
    #[error("{stream}: expected the path of a FIFO or a file:// URI, found {found:?}")]
    Scheme {
        /// Which stream.
        stream: &'static str,
        /// What containerd names.
        found: String,
    },
}

/// What a stream's name means.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Null,
    Fifo(PathBuf),
    File(PathBuf),
}

impl Place {
    fn parse(stream: &'static str, name: &str) -> Result<Self, StdioError> {
        let path = |text: &str| text.starts_with('/').then(|| PathBuf::from(text));
        let place = match name.split_once("://") {
            None if name.is_empty() => Some(Self::Null),
            None => path(name).map(Self::Fifo),
            Some(("fifo", rest)) => path(rest).map(Self::Fifo),
            Some(("file", rest)) => path(rest).map(Self::File),
            Some(_) => None,
        };
        place.ok_or_else(|| StdioError::Scheme { stream, found: name.into() })
    }
}

#[derive(Debug)]
enum Sink {
    Null,
    Fifo(pipe::Sender),
    File(File),
}

impl Sink {
    async fn open(stream: &'static str, name: &str) -> Result<Self, StdioError> {
        match Place::parse(stream, name)? {
            Place::Null => Ok(Self::Null),
            Place::Fifo(path) => pipe::OpenOptions::new()
                .read_write(true)
                .open_sender(&path)
                .map(Self::Fifo)
                .map_err(|source| StdioError::Open { stream, path, source }),
            Place::File(path) => File::options()
                .create(true)
                .append(true)
                .open(&path)
                .await
                .map(Self::File)
                .map_err(|source| StdioError::Open { stream, path, source }),
        }
    }

    async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Null => Ok(()),
            Self::Fifo(fifo) => fifo.write_all(bytes).await,
            Self::File(file) => {
                file.write_all(bytes).await?;
                file.flush().await
            }
        }
    }
}

impl Sink {
    /// Waits for a reader to take what is left: a FIFO whose last descriptor is closed forgets its contents, so
    /// a client that is slow to open its end would get nothing of a short-lived process.
    async fn settle(&self) {
        let Self::Fifo(fifo) = self else { return };
        let empty = async {
            while rustix::io::ioctl_fionread(fifo).is_ok_and(|left| left > 0) {
                tokio::time::sleep(SETTLE_STEP).await;
            }
        };
        // What nobody has taken by then, nobody wants.
        let _ = tokio::time::timeout(SETTLE, empty).await;
    }
}

/// Streams that are open and carry nothing yet.
#[derive(Debug)]
pub struct OpenStdio {
    stdin: Option<pipe::Receiver>,
    stdout: Sink,
    stderr: Option<Sink>,
}

impl Stdio {
    /// Opens all streams.
    ///
    /// # Errors
    /// When one cannot be opened, or is of a kind that is not served.
    pub async fn open(&self) -> Result<OpenStdio, StdioError> {
        let stdin = match Place::parse("stdin", &self.stdin)? {
            Place::Null => None,
            Place::Fifo(path) => {
                Some(pipe::OpenOptions::new().open_receiver(&path).map_err(|source| StdioError::Open {
                    stream: "stdin",
                    path,
                    source,
                })?)
            }
            Place::File(_) => {
                return Err(StdioError::Scheme { stream: "stdin", found: self.stdin.clone() });
            }
        };
        let stdout = Sink::open("stdout", &self.stdout).await?;
        let stderr = if self.terminal { None } else { Some(Sink::open("stderr", &self.stderr).await?) };
        Ok(OpenStdio { stdin, stdout, stderr })
    }
}

/// The tasks that carry one process's streams.
#[derive(Debug)]
pub struct Relays {
    outputs: Vec<JoinHandle<()>>,
    stdin: Option<JoinHandle<()>>,
    close: Arc<Notify>,
}

impl OpenStdio {
    /// Ends the input before it has begun.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Starts to carry the streams of `process`, which the guest has created.
    #[must_use]
    pub fn relay(self, agent: &Agent, process: &ProcessId) -> Relays {
        let output = |which, sink| tokio::spawn(carry_output(agent.clone(), process.clone(), which, sink));
        let mut outputs = vec![output(Output::Stdout, self.stdout)];
        outputs.extend(self.stderr.map(|sink| output(Output::Stderr, sink)));
        let close = Arc::new(Notify::new());
        // A process without input gets its end at once, or it would wait for it for ever.
        let stdin = tokio::spawn(carry_input(agent.clone(), process.clone(), self.stdin, Arc::clone(&close)));
        Relays { outputs, stdin: Some(stdin), close }
    }
}

impl Relays {
    /// Ends the input after what its FIFO holds now.
    pub fn close_stdin(&self) {
        self.close.notify_one();
    }

    /// Waits until all output has been passed on, for at most `limit`; what a process in the background still
    /// holds open after that is cut off.
    pub async fn finish(mut self, limit: Duration) {
        let outputs = std::mem::take(&mut self.outputs);
        let aborts: Vec<_> = outputs.iter().map(JoinHandle::abort_handle).collect();
        let all = async {
            for output in outputs {
                // A task that panicked has nothing more to pass on.
                let _ = output.await;
            }
        };
        if tokio::time::timeout(limit, all).await.is_err() {
            for abort in aborts {
                abort.abort();
            }
        }
    }
}

impl Drop for Relays {
    fn drop(&mut self) {
        for task in self.outputs.iter().chain(&self.stdin) {
            task.abort();
        }
    }
}

async fn carry_output(agent: Agent, process: ProcessId, which: Output, mut sink: Sink) {
    loop {
        match agent.read(&process, which, CHUNK_BYTES).await {
            Ok(bytes) if bytes.is_empty() => break,
            Ok(bytes) => {
                if let Err(error) = sink.write_all(&bytes).await {
                    // The process must not block on an output that nobody can take any more.
                    debug!(%process, ?which, %error, "output is discarded from here on");
                    sink = Sink::Null;
                }
            }
            Err(error) => {
                debug!(%process, ?which, %error, "output ends");
                break;
            }
        }
    }
    sink.settle().await;
}

async fn carry_input(agent: Agent, process: ProcessId, fifo: Option<pipe::Receiver>, close: Arc<Notify>) {
    let passed_on = match fifo {
        None => Ok(()),
        Some(fifo) => pass_on_input(&agent, &process, fifo, &close).await,
    };
    let ended = match passed_on {
        Ok(()) => agent.close_stdin(&process).await,
        Err(error) => Err(error),
    };
    if let Err(error) = ended {
        debug!(%process, %error, "input ends");
    }
}

async fn pass_on_input(
    agent: &Agent,
    process: &ProcessId,
    mut fifo: pipe::Receiver,
    close: &Notify,
) -> Result<(), AgentError> {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let read = tokio::select! {
            biased;
            read = fifo.read(&mut buffer) => read,
            () = close.notified() => break,
        };
        match read {
            // A FIFO that cannot be read has come to its end as far as the process is concerned.
            Ok(0) | Err(_) => return Ok(()),
            Ok(length) => agent.write_stdin(process, &buffer[..length]).await?,
        }
    }
    // The request to close overtakes what was written before it: take that first.
    while let Ok(length @ 1..) = fifo.try_read(&mut buffer) {
        agent.write_stdin(process, &buffer[..length]).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn fifo(dir: &std::path::Path, name: &str) -> String {
        let path = dir.join(name);
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
        path.display().to_string()
    }

    #[test]
    fn places() {
        assert_eq!(Place::parse("stdout", "").unwrap(), Place::Null);
        assert_eq!(Place::parse("stdout", "/a").unwrap(), Place::Fifo("/a".into()));
        assert_eq!(Place::parse("stdout", "file:///a").unwrap(), Place::File("/a".into()));
        for refused in ["binary:///bin/logger?id=x", "npipe://x", "relative", "file://relative"] {
            let error = Place::parse("stdout", refused).unwrap_err().to_string();
            assert!(error.contains("stdout") && error.contains(refused), "{error}");
        }
    }

    #[tokio::test]
    async fn a_sink_outlives_its_readers() {
        let dir = tempfile::tempdir().unwrap();
        let name = fifo(dir.path(), "out");
        let mut sink = Sink::open("stdout", &name).await.unwrap();
        let reader = pipe::OpenOptions::new().open_receiver(&name).unwrap();
        drop(reader);
        sink.write_all(b"after").await.unwrap();
        let mut reader = pipe::OpenOptions::new().open_receiver(&name).unwrap();
        let mut bytes = [0; 5];
        reader.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"after");
        drop(sink);
        assert_eq!(reader.read(&mut bytes).await.unwrap(), 0, "the reader sees the end of the stream");
    }

    #[tokio::test]
    async fn a_late_reader_gets_all() {
        let dir = tempfile::tempdir().unwrap();
        let name = fifo(dir.path(), "out");
        let mut sink = Sink::open("stdout", &name).await.unwrap();
        sink.write_all(b"short").await.unwrap();
        let settled = tokio::spawn(async move { sink.settle().await });
        tokio::time::sleep(SETTLE_STEP * 4).await;
        assert!(!settled.is_finished(), "the stream stays open for its reader");
        let mut reader = pipe::OpenOptions::new().open_receiver(&name).unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "short");
        settled.await.unwrap();
    }

    #[tokio::test]
    async fn a_file_is_appended_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "old ").unwrap();
        let mut sink = Sink::open("stdout", &format!("file://{}", path.display())).await.unwrap();
        sink.write_all(b"new").await.unwrap();
        let mut text = String::new();
        std::fs::File::open(path).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "old new");
    }

    #[tokio::test]
    async fn a_missing_fifo_is_named() {
        let stdio = Stdio { stdout: "/nonexistent/fifo".into(), ..Stdio::default() };
        let error = stdio.open().await.unwrap_err().to_string();
        assert!(error.contains("stdout /nonexistent/fifo"), "{error}");
    }

    #[tokio::test]
    async fn a_plain_file_is_no_fifo() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plain");
        std::fs::write(&path, "").unwrap();
        let stdio = Stdio { stdin: path.display().to_string(), ..Stdio::default() };
        assert!(stdio.open().await.is_err());
    }
}
