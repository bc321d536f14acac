//! What this machine and the node say to each other, over one virtio-serial port.
//!
//! A frame is a kind (one byte), a length (four bytes, little-endian) and that many bytes. Both sides refuse frames
//! longer than [`MAX_PAYLOAD`] and kinds that they do not know; neither ever skips one.

use std::{
    ffi::OsString,
    io::{self, Read, Write},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

/// Longest payload in bytes: a job carries its whole environment.
pub const MAX_PAYLOAD: usize = 4 << 20;
/// Most bytes of a stream sent in one frame.
pub const CHUNK: usize = 32 << 10;

/// First message to the node: how to set itself up.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// Folder that stays writable, shared with this machine at the same path.
    pub share: PathBuf,
    /// Repository whose build output the node's containerd uses.
    pub repository: PathBuf,
    /// Folder above `lib/modules` of the node's kernel.
    pub modules: PathBuf,
    /// Archive of the sandbox image, when containerd is to be started.
    pub containerd: Option<PathBuf>,
}

/// A command to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSpec {
    /// Program and arguments.
    pub argv: Vec<OsString>,
    /// The whole environment.
    pub environment: Vec<(OsString, OsString)>,
    /// Working directory.
    pub directory: PathBuf,
    /// Rows and columns, when the command gets a terminal instead of pipes.
    pub terminal: Option<(u16, u16)>,
}

/// A message to the node.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    /// Set up; sent once, first.
    Setup(Setup),
    /// Run a command; answered by output and then [`Reply::Exited`].
    Run(JobSpec),
    /// Input of the running command; empty at its end.
    Input(Vec<u8>),
    /// The terminal now has these rows and columns.
    Resize(u16, u16),
    /// Power off.
    Shutdown,
}

/// A message from the node.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    /// Set up; commands may be sent.
    Ready,
    /// Standard output of the running command.
    Output(Vec<u8>),
    /// Standard error of the running command.
    Errors(Vec<u8>),
    /// The command ended with this status, 128 + n for signal n. All its output came before.
    Exited(u8),
    /// The node cannot do what was asked; the text says why.
    Failed(String),
    /// The node's kernel still runs programs. Sent again and again once the node is ready.
    Alive,
}

/// A message that can be sent as a frame.
pub trait Message: Sized {
    /// The frame's kind and payload.
    ///
    /// # Errors
    /// When the payload cannot be encoded.
    fn encode(&self) -> io::Result<(u8, Vec<u8>)>;
    /// The message of a frame.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] for an unknown kind or a malformed payload.
    fn decode(kind: u8, payload: Vec<u8>) -> io::Result<Self>;
}

impl Message for Request {
    fn encode(&self) -> io::Result<(u8, Vec<u8>)> {
        Ok(match self {
            Self::Setup(setup) => (1, serde_json::to_vec(setup)?),
            Self::Run(job) => (2, serde_json::to_vec(job)?),
            Self::Input(bytes) => (3, bytes.clone()),
            Self::Resize(rows, columns) => (4, [rows.to_le_bytes(), columns.to_le_bytes()].concat()),
            Self::Shutdown => (5, Vec::new()),
        })
    }

    fn decode(kind: u8, payload: Vec<u8>) -> io::Result<Self> {
        match (kind, payload.as_slice()) {
            (1, json) => Ok(Self::Setup(serde_json::from_slice(json)?)),
            (2, json) => Ok(Self::Run(serde_json::from_slice(json)?)),
            (3, _) => Ok(Self::Input(payload)),
            (4, &[r0, r1, c0, c1]) => {
                Ok(Self::Resize(u16::from_le_bytes([r0, r1]), u16::from_le_bytes([c0, c1])))
            }
            (5, []) => Ok(Self::Shutdown),
            _ => Err(unknown("request", kind, payload.len())),
        }
    }
}

impl Message for Reply {
    fn encode(&self) -> io::Result<(u8, Vec<u8>)> {
        Ok(match self {
            Self::Ready => (16, Vec::new()),
            Self::Output(bytes) => (17, bytes.clone()),
            Self::Errors(bytes) => (18, bytes.clone()),
            Self::Exited(status) => (19, vec![*status]),
            Self::Failed(text) => (20, text.clone().into_bytes()),
            Self::Alive => (21, Vec::new()),
        })
    }

    fn decode(kind: u8, payload: Vec<u8>) -> io::Result<Self> {
        match (kind, payload.as_slice()) {
            (16, []) => Ok(Self::Ready),
            (17, _) => Ok(Self::Output(payload)),
            (18, _) => Ok(Self::Errors(payload)),
            (19, &[status]) => Ok(Self::Exited(status)),
            (20, text) => Ok(Self::Failed(String::from_utf8_lossy(text).into_owned())),
            (21, []) => Ok(Self::Alive),
            _ => Err(unknown("reply", kind, payload.len())),
        }
    }
}

fn unknown(what: &str, kind: u8, length: usize) -> io::Error {
    let text = format!("expected a known {what}, found kind {kind} with {length} bytes");
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// Sends one message in one write, so that frames of several threads do not mix.
///
/// # Errors
/// Those of the stream; [`io::ErrorKind::InvalidInput`] for a payload above [`MAX_PAYLOAD`].
pub fn send(mut stream: impl Write, message: &impl Message) -> io::Result<()> {
    let (kind, payload) = message.encode()?;
    let length =
        u32::try_from(payload.len()).ok().filter(|_| payload.len() <= MAX_PAYLOAD).ok_or_else(|| {
            let text = format!("expected a payload of at most {MAX_PAYLOAD} bytes, found {}", payload.len());
            io::Error::new(io::ErrorKind::InvalidInput, text)
        })?;
    let mut frame = Vec::with_capacity(5 + payload.len());
    frame.push(kind);
    frame.extend(length.to_le_bytes());
    frame.extend(payload);
    stream.write_all(&frame)
}

/// Receives one message.
///
/// # Errors
/// [`io::ErrorKind::UnexpectedEof`] when the other side has gone; [`io::ErrorKind::InvalidData`] for a bad frame.
pub fn receive<M: Message>(mut stream: impl Read) -> io::Result<M> {
    let mut head = [0; 5];
    stream.read_exact(&mut head)?;
    let [kind, length @ ..] = head;
    let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    if length > MAX_PAYLOAD {
        let text = format!("expected a payload of at most {MAX_PAYLOAD} bytes, found {length} announced");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload)?;
    M::decode(kind, payload)
}

#[cfg(test)]
mod tests {
    use std::{fmt::Debug, os::unix::ffi::OsStringExt};

    use super::*;

    fn round_trip<M: Message + PartialEq + Debug>(message: M) {
        let mut wire = Vec::new();
        send(&mut wire, &message).unwrap();
        assert_eq!(receive::<M>(wire.as_slice()).unwrap(), message);
        for cut in 0..wire.len() {
            assert!(receive::<M>(&wire[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn messages_survive_the_wire() {
        let job = JobSpec {
            argv: vec![OsString::from_vec(vec![b'a', 0xff])],
            environment: vec![("A".into(), "b".into())],
            directory: "/tmp".into(),
            terminal: Some((24, 80)),
        };
        round_trip(Request::Run(job));
        round_trip(Request::Input(Vec::new()));
        round_trip(Request::Resize(50, 300));
        round_trip(Request::Shutdown);
        round_trip(Reply::Output(vec![0, 1, 2]));
        round_trip(Reply::Exited(137));
        round_trip(Reply::Failed("why".into()));
        round_trip(Reply::Alive);
    }

    #[test]
    fn bad_frames_are_refused() {
        let refuse = |bytes: &[u8]| receive::<Reply>(bytes).unwrap_err().kind();
        assert_eq!(refuse(&[99, 0, 0, 0, 0]), io::ErrorKind::InvalidData);
        assert_eq!(refuse(&[19, 2, 0, 0, 0, 1, 1]), io::ErrorKind::InvalidData);
        assert_eq!(refuse(&[17, 0xff, 0xff, 0xff, 0xff]), io::ErrorKind::InvalidData);
        assert!(receive::<Request>(&[2, 1, 0, 0, 0, b'{'][..]).is_err());
    }
}
