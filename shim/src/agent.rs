//! The client of the guest's agent: the Kata agent protocol over ttrpc, over hybrid vsock.
//!
//! The machine's Unix socket takes `CONNECT <port>\n` and answers `OK <port>\n`; what follows is a raw stream
//! to the guest. The agent is hostile until proven otherwise: what it answers is bounded here, and only ever
//! passed on as data.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent_protocol::AGENT_PORT;
use agent_protocol::rpc::agent as proto;
use agent_protocol::rpc::agent_ttrpc::AgentServiceClient;
use agent_protocol::rpc::events::{Corruption, NextCorruptionRequest};
use agent_protocol::rpc::events_ttrpc::EventsClient;
use agent_protocol::rpc::oci;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context::{self, Context};

/// How long a connection to the agent may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// What part of its time for a change the agent may take to deliver a signal or answer a question.
const QUICK: u32 = 6;
/// Longest answer to `CONNECT`, in bytes.
const MAX_GREETING_BYTES: usize = 32;
/// Longest explanation that is passed on from the agent, in characters.
const MAX_MESSAGE_CHARS: usize = 2048;

/// Why the agent did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// No connection to the machine's vsock.
    #[error("cannot connect to the agent through {path}: {source}", path = .path.display())]
    Connect {
        /// The machine's vsock.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The machine's vsock answered something else than `OK`.
    #[error("cannot connect to the agent: expected \"OK <port>\", found {0:?}")]
    Greeting(String),
    /// The agent refused, or the connection broke.
    #[error("{}", describe(.0))]
    Call(ttrpc::Error),
    /// The agent answered what no agent may.
    #[error("the agent answered {found} bytes of output: expected at most {asked}")]
    Oversized {
        /// How much was asked for.
        asked: usize,
        /// How much came.
        found: usize,
    },
    /// The agent takes no input although it says that it did.
    #[error("the agent took {found} bytes of input: expected 1 to {offered}")]
    Unaccepted {
        /// How much was offered.
        offered: usize,
        /// How much it says that it took.
        found: u32,
    },
}

fn describe(error: &ttrpc::Error) -> String {
    match error {
        // The guest chose these words: no control characters in logs and terminals, and not many of them.
        ttrpc::Error::RpcStatus(status) => {
            status.message.chars().take(MAX_MESSAGE_CHARS).filter(|c| !c.is_control()).collect()
        }
        other => format!("the connection to the agent broke: {other}"),
    }
}

impl AgentError {
    /// Whether the agent itself said no, rather than the connection to it.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        // A deadline says nothing: the agent may still be at it.
        let deadline = ttrpc::Code::DEADLINE_EXCEEDED.into();
        matches!(self, Self::Call(ttrpc::Error::RpcStatus(status)) if status.code != deadline)
    }

    /// Whether the agent says that what the request names is not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        let not_found = ttrpc::Code::NOT_FOUND.into();
        matches!(self, Self::Call(ttrpc::Error::RpcStatus(status)) if status.code == not_found)
    }
}

/// Names a process of the pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ProcessId {
    /// Its container.
    pub container: String,
    /// Its exec id; empty for the container's first process.
    pub exec: String,
}

impl ProcessId {
    /// The process `exec` of `container`; an empty `exec` is the first one.
    #[must_use]
    pub fn new(container: &str, exec: &str) -> Self {
        Self { container: container.into(), exec: exec.into() }
    }

    /// How the protocol names it: the first process has its container's id.
    fn wire_exec(&self) -> String {
        if self.exec.is_empty() { self.container.clone() } else { self.exec.clone() }
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.container)?;
        if self.exec.is_empty() { Ok(()) } else { write!(f, "/{}", self.exec) }
    }
}

/// Which of a process's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A connection to the agent of one machine; clones share it.
#[derive(Clone)]
pub struct Agent {
    client: AgentServiceClient,
    events: EventsClient,
    limit: Duration,
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Agent")
    }
}

fn within(limit: Duration) -> Context {
    context::with_duration(limit)
}

/// Runs a call to its end even when nobody waits for it any more: a request that is dropped while it is being
/// written takes the connection, and with it the pod, along.
async fn whole<T: Send + 'static>(
    call: impl Future<Output = ttrpc::Result<T>> + Send + 'static,
) -> Result<T, AgentError> {
    let ended = tokio::spawn(call).await;
    ended
        .map_err(|error| AgentError::Call(ttrpc::Error::Others(error.to_string())))?
        .map_err(AgentError::Call)
}

/// For calls that last as long as a process does.
fn unbounded() -> Context {
    Context::default()
}

impl Agent {
    /// Connects to the agent through the hybrid vsock socket `vsock`. The agent listens already: it has said
    /// so in its handshake. It may take `limit` for a request that changes something.
    ///
    /// # Errors
    /// When there is no connection within five seconds.
    pub async fn connect(vsock: &Path, limit: Duration) -> Result<Self, AgentError> {
        let failed = |source| AgentError::Connect { path: vsock.into(), source };
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, open_port(vsock, AGENT_PORT))
            .await
            .map_err(|_| failed(io::ErrorKind::TimedOut.into()))??;
        let connection = Client::new(Socket::from(stream));
        let events = EventsClient::new(connection.clone());
        Ok(Self { client: AgentServiceClient::new(connection), events, limit })
    }

    /// Gives the pod its name and what belongs to the whole of it.
    ///
    /// # Errors
    /// When the agent refuses or does not answer.
    pub async fn create_sandbox(
        &self,
        id: &str,
        hostname: &str,
        storages: Vec<proto::Storage>,
    ) -> Result<(), AgentError> {
        let request = proto::CreateSandboxRequest {
            hostname: hostname.into(),
            sandbox_id: id.into(),
            storages,
            ..Default::default()
        };
        self.client.create_sandbox(within(self.limit), &request).await.map_err(AgentError::Call)?;
        Ok(())
    }

    /// Creates a container.
    ///
    /// # Errors
    /// When the agent refuses or does not answer.
    pub async fn create_container(&self, request: &proto::CreateContainerRequest) -> Result<(), AgentError> {
        self.client.create_container(within(self.limit), request).await.map_err(AgentError::Call)?;
        Ok(())
    }

    /// Runs a created container's first process.
    ///
    /// # Errors
    /// When the agent refuses or does not answer.
    pub async fn start_container(&self, container: &str) -> Result<(), AgentError> {
        let request = proto::StartContainerRequest { container_id: container.into(), ..Default::default() };
        self.client.start_container(within(self.limit), &request).await.map_err(AgentError::Call)?;
        Ok(())
    }

    /// Removes what is left of a container, its mounts included.
    ///
    /// # Errors
    /// When the agent refuses or does not answer.
    pub async fn remove_container(&self, container: &str) -> Result<(), AgentError> {
        let request = proto::RemoveContainerRequest { container_id: container.into(), ..Default::default() };
        self.client.remove_container(within(self.limit), &request).await.map_err(AgentError::Call)?;
        Ok(())
    }

    /// Creates and runs an additional process of a container.
    ///
    /// # Errors
    /// When the agent refuses or does not answer.
    pub async fn exec(&self, process: &ProcessId, spec: oci::Process) -> Result<(), AgentError> {
        let request = proto::ExecProcessRequest {
            container_id: process.container.clone(),
            exec_id: process.wire_exec(),
            process: Some(spec).into(),
            ..Default::default()
        };
        self.client.exec_process(within(self.limit), &request).await.map_err(AgentError::Call)?;
        Ok(())
    }

    /// Sends a signal to one process.
    ///
    /// # Errors
    /// When the agent refuses or does not answer.
    pub async fn signal(&self, process: &ProcessId, signal: u32) -> Result<(), AgentError> {
        self.signal_wire(&process.container, process.wire_exec(), signal).await
    }

    /// Sends a signal to all processes of a container.
    ///
    /// # Errors
    /// When the agent refuses or does not answer.
    pub async fn signal_all(&self, container: &str, signal: u32) -> Result<(), AgentError> {
        self.signal_wire(container, String::new(), signal).await
    }

    async fn signal_wire(&self, container: &str, exec_id: String, signal: u32) -> Result<(), AgentError> {
        let container_id = container.into();
        let request = proto::SignalProcessRequest { container_id, exec_id, signal, ..Default::default() };
        self.client.signal_process(within(self.limit / QUICK), &request).await.map_err(AgentError::Call)?;
        Ok(())
    }

    /// Waits for a process to end and gives its exit code, or 128 + the signal.
    ///
    /// # Errors
    /// When the agent refuses, or the connection to it breaks.
    pub async fn wait(&self, process: &ProcessId) -> Result<u32, AgentError> {
        let request = proto::WaitProcessRequest {
            container_id: process.container.clone(),
            exec_id: process.wire_exec(),
            ..Default::default()
        };
        let answer = self.client.wait_process(unbounded(), &request).await.map_err(AgentError::Call)?;
        // What no process exits with is reported as the status that stands for "unknown".
        Ok(u32::try_from(answer.status).ok().filter(|status| *status <= 255).unwrap_or(255))
    }

    /// Reads at most `length` bytes of a process's output, waiting for the first; nothing means its end.
    ///
    /// # Errors
    /// When the agent refuses, the connection breaks, or more comes than was asked for.
    pub async fn read(
        &self,
        process: &ProcessId,
        which: Output,
        length: usize,
    ) -> Result<Vec<u8>, AgentError> {
        let request = proto::ReadStreamRequest {
            container_id: process.container.clone(),
            exec_id: process.wire_exec(),
            len: u32::try_from(length).unwrap_or(u32::MAX),
            ..Default::default()
        };
        let client = self.client.clone();
        let answer = whole(async move {
            match which {
                Output::Stdout => client.read_stdout(unbounded(), &request).await,
                Output::Stderr => client.read_stderr(unbounded(), &request).await,
            }
        });
        let data = answer.await?.data;
        if data.len() > length {
            return Err(AgentError::Oversized { asked: length, found: data.len() });
        }
        Ok(data)
    }

    /// Writes all of `data` to a process's input.
    ///
    /// # Errors
    /// When the agent refuses, the connection breaks, or nothing is taken.
    pub async fn write_stdin(&self, process: &ProcessId, mut data: &[u8]) -> Result<(), AgentError> {
        while !data.is_empty() {
            let request = proto::WriteStreamRequest {
                container_id: process.container.clone(),
                exec_id: process.wire_exec(),
                data: data.into(),
                ..Default::default()
            };
            let client = self.client.clone();
            let taken = whole(async move { client.write_stdin(unbounded(), &request).await }).await?.len;
            let rest = usize::try_from(taken).ok().filter(|taken| *taken > 0).and_then(|n| data.get(n..));
            data = rest.ok_or(AgentError::Unaccepted { offered: data.len(), found: taken })?;
        }
        Ok(())
    }

    /// Ends a process's input.
    ///
    /// # Errors
    /// When the agent refuses or does not answer.
    pub async fn close_stdin(&self, process: &ProcessId) -> Result<(), AgentError> {
        let request = proto::CloseStdinRequest {
            container_id: process.container.clone(),
            exec_id: process.wire_exec(),
            ..Default::default()
        };
        let (client, limit) = (self.client.clone(), within(self.limit / QUICK));
        whole(async move { client.close_stdin(limit, &request).await }).await?;
        Ok(())
    }

    /// Changes the size of a process's terminal, in characters.
    ///
    /// # Errors
    /// When the agent refuses or does not answer.
    pub async fn resize(&self, process: &ProcessId, rows: u32, columns: u32) -> Result<(), AgentError> {
        let request = proto::TtyWinResizeRequest {
            container_id: process.container.clone(),
            exec_id: process.wire_exec(),
            row: rows,
            column: columns,
            ..Default::default()
        };
        self.client.tty_win_resize(within(self.limit / QUICK), &request).await.map_err(AgentError::Call)?;
        Ok(())
    }

    /// Freezes a container.
    ///
    /// # Errors
    /// When the agent refuses or does not answer.
    pub async fn pause(&self, container: &str) -> Result<(), AgentError> {
        let request = proto::PauseContainerRequest { container_id: container.into(), ..Default::default() };
        self.client.pause_container(within(self.limit / QUICK), &request).await.map_err(AgentError::Call)?;
        Ok(())
    }

    /// Thaws a container.
    ///
    /// # Errors
    /// When the agent refuses or does not answer.
    pub async fn resume(&self, container: &str) -> Result<(), AgentError> {
        let request = proto::ResumeContainerRequest { container_id: container.into(), ..Default::default() };
        self.client.resume_container(within(self.limit / QUICK), &request).await.map_err(AgentError::Call)?;
        Ok(())
    }

    /// Changes a container's limits.
    ///
    /// # Errors
    /// When the agent refuses or does not answer.
    pub async fn update(&self, container: &str, resources: oci::LinuxResources) -> Result<(), AgentError> {
        let request = proto::UpdateContainerRequest {
            container_id: container.into(),
            resources: Some(resources).into(),
            ..Default::default()
        };
        self.client.update_container(within(self.limit / QUICK), &request).await.map_err(AgentError::Call)?;
        Ok(())
    }

    /// What a container uses.
    ///
    /// # Errors
    /// When the agent refuses or does not answer.
    pub async fn stats(&self, container: &str) -> Result<proto::StatsContainerResponse, AgentError> {
        let request = proto::StatsContainerRequest { container_id: container.into(), ..Default::default() };
        self.client.stats_container(within(self.limit / QUICK), &request).await.map_err(AgentError::Call)
    }

    /// Puts a piece of a file into the guest's shared directory.
    ///
    /// # Errors
    /// When the agent refuses or does not answer.
    pub async fn copy_file(&self, request: &proto::CopyFileRequest) -> Result<(), AgentError> {
        self.client.copy_file(within(self.limit / QUICK), request).await.map_err(AgentError::Call)?;
        Ok(())
    }

    /// Waits until a container runs out of memory, and names it.
    ///
    /// # Errors
    /// When the agent refuses, or the connection to it breaks.
    pub async fn oom_event(&self) -> Result<String, AgentError> {
        let request = proto::GetOOMEventRequest::default();
        Ok(self.client.get_oom_event(unbounded(), &request).await.map_err(AgentError::Call)?.container_id)
    }

    /// Waits until a block of a layer does not match the layer's hash tree.
    ///
    /// # Errors
    /// When the agent refuses, or the connection to it breaks.
    pub async fn corruption(&self) -> Result<Corruption, AgentError> {
        let request = NextCorruptionRequest::default();
        self.events.next_corruption(unbounded(), &request).await.map_err(AgentError::Call)
    }
}

/// Opens a stream to `port` of the guest through the hybrid vsock socket `vsock`.
async fn open_port(vsock: &Path, port: u32) -> Result<UnixStream, AgentError> {
    let failed = |source| AgentError::Connect { path: vsock.into(), source };
    let mut stream = UnixStream::connect(vsock).await.map_err(failed)?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await.map_err(failed)?;
    // One byte at a time: what follows the line belongs to the stream.
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') && line.len() < MAX_GREETING_BYTES {
        line.push(stream.read_u8().await.map_err(failed)?);
    }
    if line.starts_with(b"OK ") && line.ends_with(b"\n") {
        return Ok(stream);
    }
    Err(AgentError::Greeting(String::from_utf8_lossy(&line).into_owned()))
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    async fn answer(reply: &'static [u8]) -> Result<UnixStream, AgentError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vsock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = [0; 13];
            stream.read_exact(&mut asked).await.unwrap();
            assert_eq!(&asked, b"CONNECT 1024\n");
            stream.write_all(reply).await.unwrap();
        });
        let stream = open_port(&path, 1024).await;
        server.await.unwrap();
        stream
    }

    #[tokio::test]
    async fn the_stream_begins_after_the_greeting() {
        let mut stream = answer(b"OK 7\nrest").await.unwrap();
        let mut rest = [0; 4];
        stream.read_exact(&mut rest).await.unwrap();
        assert_eq!(&rest, b"rest");
    }

    #[tokio::test]
    async fn other_greetings_are_refused() {
        for reply in [b"NO\n".as_slice(), b"", b"OK", b"OK 7 and no end of line, for longer than any port is"]
        {
            assert!(answer(reply).await.is_err(), "{reply:?}");
        }
    }

    #[test]
    fn the_first_process_has_its_containers_id() {
        assert_eq!(ProcessId::new("c", "").wire_exec(), "c");
        assert_eq!(ProcessId::new("c", "e").wire_exec(), "e");
    }
}
