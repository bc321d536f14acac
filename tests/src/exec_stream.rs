//! The streams of a CRI `Exec`, over WebSocket (`v4.channel.k8s.io`: the first byte of each message names the
//! channel: 0 standard input, 1 output, 2 error, 3 the status as JSON).

use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tungstenite::client::IntoClientRequest as _;
use tungstenite::http::HeaderValue;
use tungstenite::{Message, WebSocket};

/// What came back.
#[derive(Debug, Default)]
pub struct Streams {
    /// Standard output.
    pub out: Vec<u8>,
    /// Standard error.
    pub err: Vec<u8>,
    /// The status, as JSON.
    pub status: Vec<u8>,
}

const STDIN: u8 = 0;
const TIMEOUT: Duration = Duration::from_secs(60);

/// Sends `input` to the process behind `url` and collects what it writes, to its end.
///
/// # Errors
/// When the server does not speak the protocol or the process does not end.
pub fn converse(url: &str, input: &[u8]) -> Result<Streams> {
    let mut request = url.replacen("http://", "ws://", 1).into_client_request()?;
    let protocol = HeaderValue::from_static("v4.channel.k8s.io");
    request.headers_mut().insert("Sec-WebSocket-Protocol", protocol);
    let host = request.uri().authority().context("a host")?.to_string();
    let stream = TcpStream::connect(&host).with_context(|| host.clone())?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let (mut socket, _) = tungstenite::client(request, stream)?;
    socket.send(Message::binary([&[STDIN], input].concat()))?;
    collect(&mut socket)
}

fn collect(socket: &mut WebSocket<TcpStream>) -> Result<Streams> {
    let mut streams = Streams::default();
    loop {
        let message = match socket.read() {
            Ok(message) => message,
            Err(tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed) => {
                return Ok(streams);
            }
            // The server may drop the connection after the status.
            Err(_) if !streams.status.is_empty() => return Ok(streams),
            Err(error) => return Err(error).context(format!("after {streams:?}")),
        };
        let data = match message {
            Message::Binary(data) => data.to_vec(),
            Message::Text(text) => text.as_bytes().to_vec(),
            Message::Close(_) => return Ok(streams),
            _ => continue,
        };
        match data.split_first() {
            Some((1, bytes)) => streams.out.extend(bytes),
            Some((2, bytes)) => streams.err.extend(bytes),
            Some((3, bytes)) => streams.status.extend(bytes),
            _ => {}
        }
    }
}
