//! The host's end of the agreement by which a guest begins to serve ([`agent_protocol::handshake`]).

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread;

use agent_protocol::HANDSHAKE_PORT;
use agent_protocol::handshake::{Host, MAX_LEN, Ready};
use agent_protocol::tee::Tee as GuestTee;
use anyhow::{Context as _, Result};
use launch::plan::{HostData, Tee};
use vmm_client::monotonic_us;

/// What came of it: the guest serves, since then in microseconds of `CLOCK_MONOTONIC`; or why it does not.
pub type Outcome = Result<(Ready, u64)>;

/// Waits for the guest of the machine at `vsock` on a thread of its own: the guest calls when it has booted.
///
/// # Errors
/// When the place of the guest's call cannot be listened on.
pub fn listen(
    vsock: &Path,
    tee: Tee,
    host_data: HostData,
    tell: impl FnOnce(Outcome) + Send + 'static,
) -> Result<()> {
    let mut path = vsock.as_os_str().to_owned();
    path.push(format!("_{HANDSHAKE_PORT}"));
    let listener =
        UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
    let host = Host::new(guest_tee(tee), host_data.0);
    thread::spawn(move || tell(agree(&listener, host)));
    Ok(())
}

fn agree(listener: &UnixListener, host: Host) -> Outcome {
    let (mut stream, _) = listener.accept()?;
    let mut lines = BufReader::new(stream.try_clone()?);
    let answer = host.answer(&line(&mut lines)?)?;
    stream.write_all(answer.as_bytes())?;
    let last = line(&mut lines)?;
    let at_us = monotonic_us();
    Ok((Host::verdict(&last)?, at_us))
}

/// One line, or as much of it as is read of any.
fn line(from: &mut BufReader<impl Read>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(MAX_LEN as u64 + 1).read_until(b'\n', &mut bytes)?;
    Ok(bytes)
}

const fn guest_tee(tee: Tee) -> GuestTee {
    match tee {
        Tee::None => GuestTee::None,
        Tee::Sim => GuestTee::Sim,
        Tee::Snp => GuestTee::Snp,
        Tee::Tdx => GuestTee::Tdx,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use agent_protocol::handshake::{HandshakeError, guest};

    use super::*;

    /// What the host makes of a guest that says `first`, hears the answer, and says `last`.
    fn outcome(first: &str, last: &str) -> Outcome {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("port");
        let listener = UnixListener::bind(&path).unwrap();
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(first.as_bytes()).unwrap();
        stream.write_all(last.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let outcome = agree(&listener, Host::new(GuestTee::Sim, [7; 32]));
        if outcome.is_ok() {
            let heard = line(&mut BufReader::new(stream)).unwrap();
            assert_eq!(guest::host_data(&heard).unwrap(), [7; 32]);
        }
        outcome
    }

    #[test]
    fn a_guest_that_agrees_serves() {
        let ready = Ready { kernel_to_init_us: 1, init_to_ready_us: 2 };
        let (heard, _) =
            outcome(&guest::hello(GuestTee::Sim).unwrap(), &guest::ready(ready).unwrap()).unwrap();
        assert_eq!(heard, ready);
    }

    #[test]
    fn refusals_and_nonsense_are_told_apart() {
        let hello = guest::hello(GuestTee::Sim).unwrap();
        let refused = |outcome: Outcome| {
            let error = outcome.unwrap_err();
            matches!(error.downcast_ref(), Some(HandshakeError::Refused(why)) if why == "no report")
        };
        assert!(refused(outcome(&hello, &guest::refused("no report").unwrap())));
        assert!(refused(outcome(&guest::refused("no report").unwrap(), "")));
        assert!(!refused(outcome(&hello, "")));
        assert!(!refused(outcome(&"x".repeat(MAX_LEN * 2), "")));
    }
}
