//! `round-trip`: the shortest question that the agent answers, over its virtual socket.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use agent_protocol::AGENT_PORT;
use agent_protocol::rpc::health::CheckRequest;
use agent_protocol::rpc::health_ttrpc::HealthClient;
use anyhow::{Context as _, Result, ensure};
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context::with_duration;
use vmm_client::monotonic_us;

use super::machines::Monitor;
use super::rounds::Contender;
use super::sample::{Unit, Value};

/// Questions for each machine that is booted.
const QUESTIONS: usize = 200;
/// Questions before them.
const WARM_UP: usize = 20;
const LIMIT: Duration = Duration::from_secs(120);

/// Boots the product's image and asks its agent whether it serves.
pub struct RoundTrip(pub Box<dyn Monitor>);

impl Contender for RoundTrip {
    fn name(&self) -> String {
        self.0.name()
    }

    fn command(&self) -> Vec<String> {
        self.0.command()
    }

    fn measure(&mut self) -> Result<Vec<Value>> {
        let folder = tempfile::tempdir()?;
        let _booted = self.0.boot(folder.path())?;
        let stream = connect(&folder.path().join("vsock"))?;
        stream.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(ask(stream))
    }
}

async fn ask(stream: UnixStream) -> Result<Vec<Value>> {
    let stream = tokio::net::UnixStream::from_std(stream)?;
    let client = HealthClient::new(Client::new(Socket::from(stream)));
    let mut times = Vec::with_capacity(QUESTIONS);
    for question in 0..WARM_UP + QUESTIONS {
        let began = monotonic_us();
        client.check(with_duration(LIMIT), &CheckRequest::default()).await?;
        if question >= WARM_UP {
            times.push(monotonic_us() - began);
        }
    }
    times.sort_unstable();
    #[allow(clippy::cast_precision_loss, reason = "microseconds of one question")]
    let value = |name: &str, at: usize| Value::new(name, Unit::Microseconds, times[at] as f64);
    Ok(vec![value("ttrpc round trip", QUESTIONS / 2), value("99 of 100 within", QUESTIONS * 99 / 100)])
}

/// The agent's port, by the hybrid protocol of the machine's Unix socket.
fn connect(vsock: &Path) -> Result<UnixStream> {
    let mut stream = UnixStream::connect(vsock).with_context(|| vsock.display().to_string())?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(format!("CONNECT {AGENT_PORT}\n").as_bytes())?;
    // Byte by byte: what follows the line is the agent's.
    let (mut answer, mut byte) = (Vec::new(), [0]);
    while byte != *b"\n" {
        stream.read_exact(&mut byte)?;
        answer.extend(byte);
    }
    ensure!(answer.starts_with(b"OK "), "expected OK, found {:?}", String::from_utf8_lossy(&answer));
    Ok(stream)
}
