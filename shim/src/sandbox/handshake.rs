//! The host's end of the handshake with a guest that boots ([`agent_protocol::handshake`]).
//!
//! The guest is hostile until proven otherwise: one connection is taken, each line is bounded, and what it says is
//! only ever shown to people.

use std::io;
use std::path::Path;

use agent_protocol::handshake::{Host, MAX_LEN, Ready};
use agent_protocol::tee::Tee;
use launch::plan::{self, LaunchPlan};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::vm::VmError;

/// What the guest of a machine with this plan is told.
pub fn host(plan: &LaunchPlan) -> Host {
    let tee = match plan.tee {
        plan::Tee::None => Tee::None,
        plan::Tee::Sim => Tee::Sim,
        plan::Tee::Snp => Tee::Snp,
        plan::Tee::Tdx => Tee::Tdx,
    };
    Host::new(tee, plan.host_data.0)
}

/// Takes the one connection that the agent makes, and hears whether it serves.
///
/// # Errors
/// If the agent refuses, says something that is no handshake, or the connection breaks.
pub async fn greet(listener: &UnixListener, path: &Path, host: Host) -> Result<Ready, VmError> {
    let failed = |what| move |source| VmError::File { what, path: path.into(), source };
    let (stream, _) = listener.accept().await.map_err(failed("accept on"))?;
    let mut stream = BufReader::with_capacity(MAX_LEN, stream);
    let hello = read_line(&mut stream).await.map_err(failed("read"))?;
    let answer = host.answer(&hello)?;
    stream.get_mut().write_all(answer.as_bytes()).await.map_err(failed("write"))?;
    let verdict = read_line(&mut stream).await.map_err(failed("read"))?;
    Ok(Host::verdict(&verdict)?)
}

async fn read_line(stream: &mut BufReader<UnixStream>) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    // One byte more than allowed, so that the parser sees that there is more.
    stream.take(MAX_LEN as u64 + 1).read_until(b'\n', &mut line).await?;
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A guest that says `hello`, hears `heard` (nothing: it does not wait), and then says `verdict`.
    async fn conversation(hello: &[u8], heard: &str, verdict: &[u8]) -> Result<Ready, VmError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vsock_1030");
        let listener = UnixListener::bind(&path).unwrap();
        let guest = async {
            let mut stream = UnixStream::connect(&path).await.unwrap();
            // A host that has heard enough closes the connection.
            let _ = stream.write_all(hello).await;
            let mut answer = vec![0; heard.len()];
            if stream.read_exact(&mut answer).await.is_ok() {
                assert_eq!(String::from_utf8(answer).unwrap(), heard);
            }
            let _ = stream.write_all(verdict).await;
        };
        tokio::join!(greet(&listener, &path, Host::new(Tee::Sim, [0xab; 32])), guest).0
    }

    const HELLO: &[u8] = b"{\"version\":2,\"tee\":\"sim\"}\n";

    fn answer() -> String {
        format!("{{\"host_data\":\"{}\"}}\n", "ab".repeat(32))
    }

    #[tokio::test]
    async fn a_guest_hears_its_host_data_and_serves() {
        let verdict = b"{\"ready\":{\"kernel_to_init_us\":7,\"init_to_ready_us\":9}}\n";
        let ready = conversation(HELLO, &answer(), verdict).await.unwrap();
        assert_eq!(ready, Ready { kernel_to_init_us: 7, init_to_ready_us: 9 });
    }

    #[tokio::test]
    async fn a_refusal_is_the_reason_that_people_see() {
        let refusal = b"{\"refused\":\"host data: expected 00, found ab\"}\n";
        for (hello, heard, verdict) in [(HELLO, answer(), &refusal[..]), (&refusal[..], String::new(), b"")] {
            let error = conversation(hello, &heard, verdict).await.unwrap_err().to_string();
            let expected =
                "the utility VM did not start: it refuses to serve: host data: expected 00, found ab";
            assert_eq!(error, expected);
        }
    }

    #[tokio::test]
    async fn anything_else_is_no_handshake() {
        let other_tee = b"{\"version\":2,\"tee\":\"none\"}\n";
        for hello in [b"".as_slice(), b"\n", b"{\"version\":1}\n", other_tee, &[b'x'; 3 * MAX_LEN], b"\xff\n"]
        {
            assert!(conversation(hello, "", b"").await.is_err(), "{hello:?}");
        }
        for verdict in [b"".as_slice(), b"{}\n", HELLO, &[b'x'; 3 * MAX_LEN]] {
            assert!(conversation(HELLO, &answer(), verdict).await.is_err(), "{verdict:?}");
        }
    }
}
