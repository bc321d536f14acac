//! Telling the host, once, that the agent serves.

use std::time::Duration;

use agent_protocol::ready::ReadyLine;
use agent_protocol::{HOST_CID, READY_PORT};
use rustix::time::{ClockId, clock_gettime};
use tokio::io::AsyncWriteExt;
use tokio_vsock::{VsockAddr, VsockStream};

use crate::error::{AgentError, Context, Result};

/// The host listens before it starts the guest, so one attempt is enough; it must not hang for ever.
const LIMIT: Duration = Duration::from_secs(10);

/// Microseconds since the kernel's clock started.
#[must_use]
pub fn now_us() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let microseconds = u64::try_from(time.tv_nsec / 1000).unwrap_or(0);
    seconds.saturating_mul(1_000_000).saturating_add(microseconds)
}

/// Sends the line; `init_us` is when PID 1 started.
///
/// # Errors
/// If nobody listens on the host.
pub async fn announce(init_us: u64) -> Result<()> {
    let line = ReadyLine::new(init_us, now_us().saturating_sub(init_us));
    let line = line.format().map_err(|error| AgentError::Runtime(error.to_string()))?;
    let send = async {
        let mut stream = VsockStream::connect(VsockAddr::new(HOST_CID, READY_PORT)).await?;
        stream.write_all(line.as_bytes()).await?;
        stream.shutdown(std::net::Shutdown::Both)
    };
    let result = tokio::time::timeout(LIMIT, send).await;
    result
        .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
        .doing(|| format!("announce readiness on vsock port {READY_PORT} of the host"))
}
