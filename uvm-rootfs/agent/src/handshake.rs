//! The guest's end of the handshake with the host ([`agent_protocol::handshake`]): hearing the host data, and
//! saying once that the agent serves, or why it does not.

use std::time::Duration;

use agent_protocol::handshake::{MAX_LEN, Ready, guest};
use agent_protocol::tee::Tee;
use agent_protocol::{HANDSHAKE_PORT, HOST_CID};
use rustix::time::{ClockId, clock_gettime};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_vsock::{VsockAddr, VsockStream};

use crate::error::{AgentError, Context, Result};

/// The host listens before it starts the guest and answers at once; it must not hang the guest for ever.
const LIMIT: Duration = Duration::from_secs(10);
/// How long the host gets to take in a refusal before the guest powers off.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Microseconds since the kernel's clock started.
#[must_use]
pub fn now_us() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let microseconds = u64::try_from(time.tv_nsec / 1000).unwrap_or(0);
    seconds.saturating_mul(1_000_000).saturating_add(microseconds)
}

/// A connection to whoever started this guest.
#[derive(Debug)]
pub struct Host<S = VsockStream>(S);

impl Host {
    /// Dials the host.
    ///
    /// # Errors
    /// If nobody listens there.
    pub async fn connect() -> Result<Self> {
        let dial = VsockStream::connect(VsockAddr::new(HOST_CID, HANDSHAKE_PORT));
        let doing = || format!("dial vsock port {HANDSHAKE_PORT} of the host");
        Ok(Self(within(LIMIT, dial).await.doing(doing)?))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Host<S> {
    /// Says what isolation this guest was measured for, and gives the host data that it is said to have.
    ///
    /// # Errors
    /// If the host does not answer, or answers something else.
    pub async fn host_data(&mut self, tee: Tee) -> Result<[u8; 32]> {
        let hello = guest::hello(tee).map_err(runtime)?;
        let talk = async {
            self.0.write_all(hello.as_bytes()).await?;
            read_line(&mut self.0).await
        };
        let line = within(LIMIT, talk).await.doing(|| "hear the host data".to_owned())?;
        guest::host_data(&line).map_err(runtime)
    }

    /// Says that the agent serves; `init_us` is when PID 1 started.
    ///
    /// # Errors
    /// If the host has gone.
    pub async fn ready(mut self, init_us: u64) -> Result<()> {
        let init_to_ready_us = now_us().saturating_sub(init_us);
        let line = guest::ready(Ready { kernel_to_init_us: init_us, init_to_ready_us }).map_err(runtime)?;
        let send = async {
            self.0.write_all(line.as_bytes()).await?;
            self.0.shutdown().await
        };
        within(LIMIT, send).await.doing(|| "announce that the agent serves".to_owned())
    }

    /// Says why the agent does not serve, and waits a moment until the host has heard.
    ///
    /// # Errors
    /// If the host has gone.
    pub async fn refuse(mut self, reason: &str) -> Result<()> {
        let line = guest::refused(reason).map_err(runtime)?;
        let send = async {
            self.0.write_all(line.as_bytes()).await?;
            // The host closes the connection when it has read the line.
            self.0.read(&mut [0]).await.map(drop)
        };
        within(LAST_WORD, send).await.doing(|| "tell the host of the refusal".to_owned())
    }
}

fn runtime(error: agent_protocol::handshake::HandshakeError) -> AgentError {
    AgentError::Runtime(error.to_string())
}

async fn within<T>(limit: Duration, work: impl Future<Output = std::io::Result<T>>) -> std::io::Result<T> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}

/// One line with its newline, or what there was before the end of the stream, or one byte more than a line has.
async fn read_line(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Vec<u8>> {
    let mut line = Vec::new();
    // Byte by byte: this is one short line in the life of a guest.
    while line.last() != Some(&b'\n') && line.len() <= MAX_LEN {
        let mut byte = [0];
        if stream.read(&mut byte).await? == 0 {
            break;
        }
        line.push(byte[0]);
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use agent_protocol::handshake::{HandshakeError, Host as HostEnd};
    use tokio::io::{DuplexStream, duplex};

    use super::*;

    fn pair() -> (Host<DuplexStream>, DuplexStream) {
        let (guest, host) = duplex(MAX_LEN);
        (Host(guest), host)
    }

    #[tokio::test]
    async fn host_data_is_heard_and_readiness_said() {
        let (mut guest, mut host) = pair();
        let guest_end = async {
            let data = guest.host_data(Tee::Sim).await.unwrap();
            guest.ready(1).await.unwrap();
            data
        };
        let host_end = async {
            let hello = read_line(&mut host).await.unwrap();
            let answer = HostEnd::new(Tee::Sim, [3; 32]).answer(&hello).unwrap();
            host.write_all(answer.as_bytes()).await.unwrap();
            HostEnd::verdict(&read_line(&mut host).await.unwrap()).unwrap()
        };
        let (data, ready) = tokio::join!(guest_end, host_end);
        assert_eq!((data, ready.kernel_to_init_us), ([3; 32], 1));
    }

    #[tokio::test]
    async fn a_refusal_waits_until_it_is_heard() {
        let (guest, mut host) = pair();
        let host_end = async move {
            let line = read_line(&mut host).await.unwrap();
            HostEnd::verdict(&line).unwrap_err()
        };
        let (refused, heard) = tokio::join!(guest.refuse("no report"), host_end);
        refused.unwrap();
        assert!(matches!(heard, HandshakeError::Refused(reason) if reason == "no report"));
    }

    #[tokio::test]
    async fn a_host_that_says_something_else_is_not_believed() {
        for words in [&b""[..], b"{}\n", b"{\"host_data\":\"00\"}\n", &[b'x'; MAX_LEN + 1]] {
            let (guest, host) = duplex(2 * MAX_LEN);
            let (mut guest, mut host) = (Host(guest), host);
            host.write_all(words).await.unwrap();
            host.shutdown().await.unwrap();
            assert!(guest.host_data(Tee::Snp).await.is_err(), "{words:?}");
        }
    }
}
