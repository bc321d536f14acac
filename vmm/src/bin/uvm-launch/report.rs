//! `uvm-launch report`: a fresh report from a machine's agent, and the file that it is kept in.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent_protocol::rpc::evidence::{ReportRequest, ReportResponse};
use agent_protocol::rpc::evidence_ttrpc::EvidenceClient;
use agent_protocol::{AGENT_PORT, MAX_NONCE};
use anyhow::{Context as _, Result, anyhow, bail};
use measure::bundle::Bundle;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;

use crate::input::write;

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the agent may take to get a report.
const REPORT_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest answer to `CONNECT`, in bytes.
const MAX_GREETING_BYTES: u64 = 32;

/// Arguments of `report`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The machine's vsock socket; a pod's is /run/uvm/NAMESPACE/ID/vsock.
    #[arg(long)]
    vsock: PathBuf,
    /// What makes the report fresh: up to 64 bytes in hexadecimal, chosen by whoever verifies it.
    #[arg(long, value_parser = nonce)]
    nonce: Nonce,
    /// Where the report goes [default: standard output].
    #[arg(long)]
    out: Option<PathBuf>,
}

/// What makes a report fresh.
#[derive(Debug, Clone)]
pub struct Nonce(Vec<u8>);

/// Reads a nonce in hexadecimal.
///
/// # Errors
/// When it is not hexadecimal, or its length is not one that an agent takes.
pub fn nonce(text: &str) -> Result<Nonce> {
    let bytes = hex::decode(text).map_err(|error| anyhow!("expected hexadecimal digits: {error}"))?;
    if bytes.is_empty() || bytes.len() > MAX_NONCE {
        bail!("expected 1 to {MAX_NONCE} bytes, found {}", bytes.len());
    }
    Ok(Nonce(bytes))
}

/// Fetches one report.
pub fn run(arguments: &Arguments) -> Result<u8> {
    let bundle = fetch(&arguments.vsock, &arguments.nonce)?;
    match &arguments.out {
        Some(path) => write(path, &bundle.to_json()?)?,
        None => print!("{}", String::from_utf8(bundle.to_json()?)?),
    }
    Ok(0)
}

/// Asks the agent of the machine at `vsock` for a report over `nonce`.
///
/// # Errors
/// When there is no connection, or the agent refuses.
pub fn fetch(vsock: &Path, nonce: &Nonce) -> Result<Bundle> {
    let stream = connect(vsock).with_context(|| format!("no agent at {}", vsock.display()))?;
    stream.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(ask(stream, nonce)).context("the agent gave no report")?;
    // The guest chose these words: nothing of them may act on a terminal.
    let provider = answer.provider.chars().filter(|c| !c.is_control()).take(32).collect();
    Ok(Bundle { provider: Some(provider), report: answer.report, certificates: answer.certificates })
}

async fn ask(stream: UnixStream, nonce: &Nonce) -> Result<ReportResponse> {
    let stream = tokio::net::UnixStream::from_std(stream)?;
    let client = EvidenceClient::new(Client::new(Socket::from(stream)));
    let request = ReportRequest { nonce: nonce.0.clone(), ..Default::default() };
    Ok(client.report(ttrpc::context::with_duration(REPORT_TIMEOUT), &request).await?)
}

/// A connection to the agent's port through hybrid vsock: `CONNECT <port>`, answered by `OK <port>`.
fn connect(vsock: &Path) -> Result<UnixStream> {
    let mut stream = UnixStream::connect(vsock)?;
    stream.set_read_timeout(Some(CONNECT_TIMEOUT))?;
    writeln!(stream, "CONNECT {AGENT_PORT}")?;
    // Nothing is read ahead: the agent speaks when it is spoken to.
    let mut greeting = String::new();
    BufReader::new((&stream).take(MAX_GREETING_BYTES)).read_line(&mut greeting)?;
    if !greeting.starts_with("OK ") {
        bail!("expected \"OK <port>\", found {greeting:?}");
    }
    stream.set_read_timeout(None)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonces_are_bounded() {
        assert_eq!(nonce("00ff").unwrap().0, [0, 0xFF]);
        for bad in ["", "0", "xy", &"00".repeat(MAX_NONCE + 1)] {
            assert!(nonce(bad).is_err(), "{bad}");
        }
    }
}
