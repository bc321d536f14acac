//! Quotes: what a trust domain's report becomes so that others than this host's processor can verify it.
//!
//! The guest puts its report into shared memory (Intel guest-hypervisor communication interface 1.5,
//! `TDG.VP.VMCALL<GetQuote>`), the host's quoting service signs it, and the quote goes back the same way. The
//! service speaks the protocol of Intel DCAP's Quote Generation Service over a Unix socket. What passes here is
//! public; a host that answers otherwise only denies service, which the quote's verifier sees.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::super::abi::layout;
use super::super::machine::Machine;

/// Bytes of a TDREPORT.
const REPORT_BYTES: usize = 1024;
/// Most bytes of the guest's buffer that are used, and with it of a quote.
const MAX_BUFFER_BYTES: u64 = 64 << 10;
/// How long the service may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Head of the guest's buffer; the report, and then the quote, follow.
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Buffer {
    version: u64,
    status: u64,
    in_len: u32,
    out_len: u32,
}
layout!(Buffer, 24, version @ 0, status @ 8, in_len @ 16, out_len @ 20);
const BUFFER_VERSION: u64 = 1;
const STATUS_SUCCESS: u64 = 0;
const STATUS_ERROR: u64 = 0x8000_0000_0000_0000;
const STATUS_UNAVAILABLE: u64 = 0x8000_0000_0000_0001;

/// Head of a message of the service (`qgs_msg_lib`); its length, big-endian, travels before it.
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Message {
    major_version: u16,
    minor_version: u16,
    kind: u32,
    size: u32,
    error_code: u32,
    /// Size of the report in a request, of the chosen key's name in an answer.
    first_size: u32,
    /// Size of the list of names in a request, of the quote in an answer.
    second_size: u32,
}
layout!(Message, 24, kind @ 4, size @ 8, error_code @ 12, first_size @ 16, second_size @ 20);
const VERSION: u16 = 1;
const GET_QUOTE_REQUEST: u32 = 0;
const GET_QUOTE_RESPONSE: u32 = 1;

/// Serves a guest's request at `gpa` for its buffer of `size` bytes. False when that is no such buffer.
pub fn serve(machine: &Machine, service: &Path, gpa: u64, size: u64) -> bool {
    let Ok(room) = usize::try_from(size.min(MAX_BUFFER_BYTES)) else { return false };
    let Some(room) = room.checked_sub(size_of::<Buffer>()).filter(|room| *room >= REPORT_BYTES) else {
        return false;
    };
    let mut request = [0; size_of::<Buffer>() + REPORT_BYTES];
    if !machine.read_shared(gpa, &mut request) {
        return false;
    }
    let Ok((head, report)) = Buffer::read_from_prefix(&request) else { return false };
    let is_report = head.version == BUFFER_VERSION && usize::try_from(head.in_len) == Ok(REPORT_BYTES);
    let (status, quote) = if !is_report {
        (STATUS_ERROR, Vec::new())
    } else {
        match quote(service, report, room) {
            Ok(quote) => (STATUS_SUCCESS, quote),
            Err(error) => {
                log::warn!("quoting service {}: {error}", service.display());
                (STATUS_UNAVAILABLE, Vec::new())
            }
        }
    };
    let out_len = u32::try_from(quote.len()).unwrap_or_default();
    let mut answer = Buffer { status, out_len, ..head }.as_bytes().to_vec();
    answer.extend(quote);
    machine.write_shared(gpa, &answer)
}

/// Has the service make a quote of at most `room` bytes.
fn quote(service: &Path, report: &[u8], room: usize) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(service)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let length = |bytes: usize| u32::try_from(bytes).map_err(io::Error::other);
    let size = length(size_of::<Message>() + report.len())?;
    let request = Message {
        major_version: VERSION,
        minor_version: VERSION,
        kind: GET_QUOTE_REQUEST,
        size,
        error_code: 0,
        first_size: length(report.len())?,
        second_size: 0,
    };
    stream.write_all(&[&size.to_be_bytes()[..], request.as_bytes(), report].concat())?;
    let mut size = [0; 4];
    stream.read_exact(&mut size)?;
    let size = usize::try_from(u32::from_be_bytes(size)).unwrap_or(usize::MAX);
    let refuse = |what: String| Err(io::Error::new(io::ErrorKind::InvalidData, what));
    let Some(rest) = size.checked_sub(size_of::<Message>()).filter(|rest| *rest <= room) else {
        return refuse(format!(
            "expected an answer with a quote of at most {room} bytes, found {size} bytes"
        ));
    };
    let mut head = [0; size_of::<Message>()];
    stream.read_exact(&mut head)?;
    let head = Message::read_from_bytes(&head).map_err(|_| io::ErrorKind::InvalidData)?;
    if (head.major_version, head.kind, head.error_code) != (VERSION, GET_QUOTE_RESPONSE, 0) {
        let Message { major_version, kind, error_code, .. } = head;
        return refuse(format!(
            "expected a quote, found version {major_version}, message {kind}, error {error_code:#x}"
        ));
    }
    let mut data = vec![0; rest];
    stream.read_exact(&mut data)?;
    let [name, quote] =
        [head.first_size, head.second_size].map(|of| usize::try_from(of).unwrap_or(usize::MAX));
    if quote == 0 || name.checked_add(quote) != Some(rest) {
        return refuse(format!("expected a name and a quote in {rest} bytes, found {name} and {quote}"));
    }
    Ok(data.split_off(name))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    /// A service that answers one request with `answer`, and hands back the request.
    fn ask(answer: Vec<u8>) -> (Result<Vec<u8>, String>, Vec<u8>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("service");
        let listener = UnixListener::bind(&path).unwrap();
        let service = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = vec![0; 4 + 24 + REPORT_BYTES];
            stream.read_exact(&mut request).unwrap();
            stream.write_all(&answer).unwrap();
            request
        });
        let quote = quote(&path, &[7; REPORT_BYTES], 5000).map_err(|error| error.to_string());
        (quote, service.join().unwrap())
    }

    fn answer(size: u32, kind: u32, error: u32, name: u32, quote: u32, data: &[u8]) -> Vec<u8> {
        let mut answer = size.to_be_bytes().to_vec();
        answer.extend([1, 0, 1, 0]);
        for field in [kind, size, error, name, quote] {
            answer.extend(field.to_le_bytes());
        }
        answer.extend(data);
        answer
    }

    #[test]
    fn the_service_gets_the_report_and_its_quote_comes_back() {
        let (quote, request) = ask(answer(24 + 5, 1, 0, 2, 3, b"idQUO"));
        assert_eq!(quote, Ok(b"QUO".to_vec()));
        assert_eq!(request[..4], 1048_u32.to_be_bytes());
        assert_eq!(request[4..12], [1, 0, 1, 0, 0, 0, 0, 0]);
        assert_eq!(request[12..16], 1048_u32.to_le_bytes());
        assert_eq!(request[20..24], 1024_u32.to_le_bytes());
        assert_eq!(request[28..], [7; REPORT_BYTES]);
    }

    #[test]
    fn answers_that_are_no_quote_are_refused() {
        let cases = [
            (answer(23, 1, 0, 0, 0, b""), "expected an answer"),
            (answer(24 + 5001, 1, 0, 0, 5001, b""), "at most 5000 bytes, found 5025 bytes"),
            (answer(u32::MAX, 1, 0, 0, 1, b""), "expected an answer"),
            (answer(24 + 3, 3, 0, 0, 3, b"QUO"), "found version 1, message 3, error 0x0"),
            (answer(24 + 3, 1, 0x12001, 0, 3, b"QUO"), "error 0x12001"),
            (answer(24 + 3, 1, 0, 1, 3, b"QUO"), "found 1 and 3"),
            (answer(24 + 3, 1, 0, u32::MAX, 4, b"QUO"), "expected a name and a quote"),
            (answer(24, 1, 0, 0, 0, b""), "found 0 and 0"),
            (answer(24 + 9, 1, 0, 0, 9, b"QUO"), "failed to fill whole buffer"),
        ];
        for (answer, message) in cases {
            let refusal = ask(answer).0.unwrap_err();
            assert!(refusal.contains(message), "{refusal}");
        }
    }
}
