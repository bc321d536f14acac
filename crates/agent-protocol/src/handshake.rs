//! How a guest that has booted and its host agree that it may serve.
//!
//! The guest dials host port [`crate::HANDSHAKE_PORT`] once. Lines of JSON follow, each ended by a newline and at
//! most [`MAX_LEN`] bytes long:
//!
//! ```text
//! guest  {"version":2,"tee":"snp"}
//! host   {"host_data":"<64 hexadecimal digits>"}
//! guest  {"ready":{"kernel_to_init_us":…,"init_to_ready_us":…}}   or   {"refused":"<why>"}
//! ```
//!
//! The guest compares the host data with what its processor reports, and accepts no request before it has said
//! `ready`. A guest that cannot even say what it is refuses in place of its first line. The host closes the
//! connection after the verdict; a guest that has refused waits for that, for a moment, before it powers off.
//!
//! The host learns these words and nothing else, and trusts none of them: a verifier looks at evidence.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::tee::Tee;

/// Longest line in bytes, newline included; a reader stops there.
pub const MAX_LEN: usize = 2048;
/// The only version there is.
pub const VERSION: u32 = 2;
/// Longest reason for a refusal in bytes: in JSON, where a character may need escaping, it still fits a line.
const MAX_REASON: usize = 900;

/// Why a line is not what belongs there, or says that the guest does not serve.
#[derive(Debug, Error)]
pub enum HandshakeError {
    /// The guest refuses to serve, for the reason that it gives.
    #[error("it refuses to serve: {0}")]
    Refused(String),
    /// More than [`MAX_LEN`] bytes.
    #[error("handshake: expected a line of at most {MAX_LEN} bytes, found {0}")]
    Length(usize),
    /// The connection ended inside a line, or before one.
    #[error("handshake: expected a line, found the end of the connection after {0} bytes")]
    Unfinished(usize),
    /// Not the JSON object that belongs there.
    #[error("handshake: expected {expected}: {source}")]
    Json {
        /// What the line should be.
        expected: &'static str,
        /// Why it is not.
        source: serde_json::Error,
    },
    /// A version that this end does not speak.
    #[error("handshake: expected version {VERSION}, found {0}")]
    Version(u32),
    /// The guest was measured for another isolation than it was launched with.
    #[error("handshake: expected a guest for tee {expected}, found one for {found}")]
    Tee {
        /// What the machine was launched with.
        expected: Tee,
        /// What the guest says.
        found: Tee,
    },
    /// Host data that is not 32 bytes of hexadecimal digits.
    #[error("handshake: expected host_data of 64 hexadecimal digits, found {0:?}")]
    HostData(String),
}

/// The guest's first line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Hello {
    version: u32,
    tee: Tee,
}

/// The host's line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer {
    host_data: String,
}

/// The guest's last line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Verdict {
    Ready(Ready),
    Refused(String),
}

/// "The agent serves", with the guest's own part of the boot timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ready {
    /// Microseconds from the kernel's clock start to the start of PID 1.
    pub kernel_to_init_us: u64,
    /// Microseconds from the start of PID 1 to the accepting server.
    pub init_to_ready_us: u64,
}

fn to_line(words: &impl Serialize, expected: &'static str) -> Result<String, HandshakeError> {
    let json = serde_json::to_string(words).map_err(|source| HandshakeError::Json { expected, source })?;
    Ok(json + "\n")
}

fn from_line<'a, T: Deserialize<'a>>(line: &'a [u8], expected: &'static str) -> Result<T, HandshakeError> {
    if line.len() > MAX_LEN {
        return Err(HandshakeError::Length(line.len()));
    }
    let text = line.strip_suffix(b"\n").ok_or(HandshakeError::Unfinished(line.len()))?;
    serde_json::from_slice(text).map_err(|source| HandshakeError::Json { expected, source })
}

/// A reason fit to be shown: no control characters, and not longer than a line holds.
fn presentable(reason: &str) -> String {
    let mut text = String::new();
    for character in reason.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if text.len() + character.len_utf8() > MAX_REASON {
            break;
        }
        text.push(character);
    }
    text
}

/// The guest's end: what it sends, and how it reads the host's line.
pub mod guest {
    use super::{
        Answer, HandshakeError, Hello, Ready, Tee, VERSION, Verdict, from_line, presentable, to_line,
    };

    /// The first line.
    ///
    /// # Errors
    /// None in practice: these words always serialise.
    pub fn hello(tee: Tee) -> Result<String, HandshakeError> {
        to_line(&Hello { version: VERSION, tee }, "hello")
    }

    /// The host data in the host's line, which is taken with its newline.
    ///
    /// # Errors
    /// If the line is too long, incomplete, or not the expected object.
    pub fn host_data(line: &[u8]) -> Result<[u8; 32], HandshakeError> {
        let Answer { host_data } = from_line(line, "{\"host_data\":…}")?;
        super::parse_hex(&host_data)
            .ok_or_else(|| HandshakeError::HostData(host_data.chars().take(80).collect()))
    }

    /// The last line of a guest that serves.
    ///
    /// # Errors
    /// None in practice: these words always serialise.
    pub fn ready(ready: Ready) -> Result<String, HandshakeError> {
        to_line(&Verdict::Ready(ready), "ready")
    }

    /// The last line of a guest that does not serve. The reason is cut to what a line holds.
    ///
    /// # Errors
    /// None in practice: these words always serialise.
    pub fn refused(reason: &str) -> Result<String, HandshakeError> {
        to_line(&Verdict::Refused(presentable(reason)), "refused")
    }
}

/// The host's end: what it answers to one guest, and how it reads the guest's lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    tee: Tee,
    host_data: [u8; 32],
}

impl Host {
    /// For a machine that was launched with `tee` and `host_data`.
    #[must_use]
    pub const fn new(tee: Tee, host_data: [u8; 32]) -> Self {
        Self { tee, host_data }
    }

    /// The line to answer the guest's first line with, which is taken with its newline.
    ///
    /// # Errors
    /// If the guest refuses already, is measured for another isolation, or the line is not a guest's first.
    pub fn answer(&self, hello: &[u8]) -> Result<String, HandshakeError> {
        let hello: Hello =
            match (from_line(hello, "{\"version\":2,\"tee\":…}"), from_line(hello, "a refusal")) {
                (Ok(hello), _) => hello,
                (Err(_), Ok(Verdict::Refused(reason))) => {
                    return Err(HandshakeError::Refused(presentable(&reason)));
                }
                (Err(error), _) => return Err(error),
            };
        if hello.version != VERSION {
            return Err(HandshakeError::Version(hello.version));
        }
        if hello.tee != self.tee {
            return Err(HandshakeError::Tee { expected: self.tee, found: hello.tee });
        }
        let host_data = self.host_data.iter().map(|byte| format!("{byte:02x}")).collect();
        to_line(&Answer { host_data }, "answer")
    }

    /// Reads the guest's last line, which is taken with its newline.
    ///
    /// # Errors
    /// [`HandshakeError::Refused`] with the guest's reason; others if the line is not a verdict.
    pub fn verdict(line: &[u8]) -> Result<Ready, HandshakeError> {
        match from_line(line, "{\"ready\":…} or {\"refused\":…}")? {
            Verdict::Ready(ready) => Ok(ready),
            Verdict::Refused(reason) => Err(HandshakeError::Refused(presentable(&reason))),
        }
    }
}

fn parse_hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    let digits = text.as_bytes();
    if digits.len() != 2 * bytes.len() {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const READY: Ready = Ready { kernel_to_init_us: 81_000, init_to_ready_us: u64::MAX };

    #[test]
    fn a_guest_and_its_host_agree() {
        let data: [u8; 32] = std::array::from_fn(|at| u8::try_from(at * 8 + 3).unwrap());
        for tee in Tee::ALL {
            let answer = Host::new(tee, data).answer(guest::hello(tee).unwrap().as_bytes()).unwrap();
            assert_eq!(guest::host_data(answer.as_bytes()).unwrap(), data);
        }
        assert_eq!(Host::verdict(guest::ready(READY).unwrap().as_bytes()).unwrap(), READY);
    }

    #[test]
    fn the_words_are_those_of_the_protocol() {
        assert_eq!(guest::hello(Tee::Sim).unwrap(), "{\"version\":2,\"tee\":\"sim\"}\n");
        assert_eq!(guest::refused("no \"report\"").unwrap(), "{\"refused\":\"no \\\"report\\\"\"}\n");
        let ready = Ready { kernel_to_init_us: 1, init_to_ready_us: 2 };
        let words = "{\"ready\":{\"kernel_to_init_us\":1,\"init_to_ready_us\":2}}\n";
        assert_eq!(guest::ready(ready).unwrap(), words);
        let answer = Host::new(Tee::Sim, [0xa5; 32]).answer(b"{\"version\":2,\"tee\":\"sim\"}\n").unwrap();
        assert_eq!(answer, format!("{{\"host_data\":\"{}\"}}\n", "a5".repeat(32)));
    }

    #[test]
    fn a_refusal_is_heard_in_either_place_and_is_presentable() {
        let long = format!("because\u{7}\n{}", "\"é".repeat(4000));
        let line = guest::refused(&long).unwrap();
        assert!(line.len() <= MAX_LEN, "{}", line.len());
        for heard in
            [Host::verdict(line.as_bytes()).err(), Host::new(Tee::Snp, [0; 32]).answer(line.as_bytes()).err()]
        {
            let Some(HandshakeError::Refused(reason)) = heard else { panic!("{heard:?}") };
            assert!(reason.starts_with("because  \"é") && reason.len() <= MAX_REASON, "{reason}");
        }
        // A host shows nothing that would act on a terminal, whoever wrote the line.
        let Err(HandshakeError::Refused(reason)) = Host::verdict(b"{\"refused\":\"\\u001b[2J\"}\n") else {
            panic!("expected a refusal");
        };
        assert_eq!(reason, " [2J");
    }

    #[test]
    fn a_guest_for_another_isolation_is_refused() {
        let error = Host::new(Tee::Snp, [0; 32]).answer(b"{\"version\":2,\"tee\":\"sim\"}\n").unwrap_err();
        assert_eq!(error.to_string(), "handshake: expected a guest for tee snp, found one for sim");
    }

    #[test]
    fn other_lines_are_refused() {
        let host = Host::new(Tee::None, [0; 32]);
        let first = [
            "",
            "{\"version\":2,\"tee\":\"none\"}",
            "{\"version\":1,\"tee\":\"none\"}\n",
            "{\"version\":2,\"tee\":\"sgx\"}\n",
            "{\"version\":2}\n",
            "{\"version\":2,\"tee\":\"none\",\"more\":1}\n",
            "{\"ready\":{\"kernel_to_init_us\":1,\"init_to_ready_us\":1}}\n",
        ];
        for line in first {
            assert!(host.answer(line.as_bytes()).is_err(), "{line:?}");
        }
        let last = [
            "",
            "{}\n",
            "{\"version\":2,\"tee\":\"none\"}\n",
            "{\"ready\":{\"kernel_to_init_us\":-1,\"init_to_ready_us\":1}}\n",
            "{\"ready\":{\"kernel_to_init_us\":1,\"init_to_ready_us\":1},\"refused\":\"x\"}\n",
        ];
        for line in last {
            assert!(Host::verdict(line.as_bytes()).is_err(), "{line:?}");
        }
        for text in ["", "00", &"0".repeat(63), &"0".repeat(66), &"g".repeat(64), &"é".repeat(32)] {
            let line = format!("{{\"host_data\":\"{text}\"}}\n");
            assert!(
                matches!(guest::host_data(line.as_bytes()), Err(HandshakeError::HostData(_))),
                "{line:?}"
            );
        }
        let endless = " ".repeat(MAX_LEN + 1);
        assert!(matches!(Host::verdict(endless.as_bytes()), Err(HandshakeError::Length(_))));
        assert!(matches!(guest::host_data(b"{\"host"), Err(HandshakeError::Unfinished(6))));
    }
}
