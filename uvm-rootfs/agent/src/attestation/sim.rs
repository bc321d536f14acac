#![allow(unsafe_code, reason = "the device is reached by port instructions")]
//! Evidence of a simulated SEV-SNP guest: the report device behind two I/O ports ([`evidence::sim`]).
//!
//! Unsafe: `ioperm` and the port instructions. The right to the ports is this thread's for the length of one
//! question: it would pass to whatever the thread starts. Nothing else in the machine listens on them.

use std::arch::asm;
use std::io;
use std::marker::PhantomData;

use evidence::sim::{ANSWER_MAX, Answer, COMMAND_RESET, PORT_CONTROL, PORT_DATA};

use super::{Attester, Evidence, EvidenceError};

const PROVIDER: &str = "sim";

/// Attests through the report device.
#[derive(Debug)]
pub struct SimDevice;

impl Attester for SimDevice {
    fn evidence(&self, report_data: &[u8; 64]) -> Result<Evidence, EvidenceError> {
        let mut ports = GrantedPorts::acquire().map_err(|source| EvidenceError::Io {
            provider: PROVIDER,
            what: "take the right to its ports".into(),
            source,
        })?;
        ask(&mut ports, report_data)
    }
}

/// 32-bit port accesses.
trait Ports {
    fn write(&mut self, port: u16, value: u32);
    fn read(&mut self, port: u16) -> u32;
}

fn ask(ports: &mut impl Ports, report_data: &[u8; 64]) -> Result<Evidence, EvidenceError> {
    let wrong = |found: String| EvidenceError::Answer { provider: PROVIDER, found };
    ports.write(PORT_CONTROL, COMMAND_RESET);
    let (words, _) = report_data.as_chunks::<4>();
    for word in words {
        ports.write(PORT_DATA, u32::from_le_bytes(*word));
    }
    let length = match ports.read(PORT_CONTROL) {
        0 => return Err(wrong("it refused".into())),
        // What no device answers reads as all ones.
        u32::MAX => {
            return Err(EvidenceError::NoProvider { expected: PROVIDER, found: "no such device".into() });
        }
        length => usize::try_from(length).unwrap_or(usize::MAX),
    };
    if length > ANSWER_MAX {
        return Err(wrong(format!("expected an answer of at most {ANSWER_MAX} bytes, found {length}")));
    }
    let mut bytes = Vec::with_capacity(length.next_multiple_of(4));
    while bytes.len() < length {
        bytes.extend_from_slice(&ports.read(PORT_DATA).to_le_bytes());
    }
    bytes.truncate(length);
    let answer = Answer::parse(&bytes).map_err(|error| wrong(error.to_string()))?;
    let (report, certificates) = (answer.report.to_vec(), answer.certificates.to_vec());
    Ok(Evidence { provider: PROVIDER, report, certificates })
}

/// This thread's right to the device's ports, given back when it is dropped.
struct GrantedPorts {
    /// The right is one thread's: the value stays with it.
    thread: PhantomData<*const ()>,
}

impl GrantedPorts {
    /// Both registers, of four bytes each.
    const COUNT: u16 = PORT_CONTROL + 4 - PORT_DATA;

    fn acquire() -> io::Result<Self> {
        Self::permit(true)?;
        Ok(Self { thread: PhantomData })
    }

    fn permit(allow: bool) -> io::Result<()> {
        // SAFETY: ioperm(2) changes this thread's port permissions and touches no memory.
        match unsafe { libc::ioperm(PORT_DATA.into(), Self::COUNT.into(), allow.into()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for GrantedPorts {
    fn drop(&mut self) {
        if let Err(error) = Self::permit(false) {
            // Giving a right back cannot fail for a reason that a caller could act on.
            crate::note!("cannot give back the right to ports: {error}");
        }
    }
}

impl Ports for GrantedPorts {
    fn write(&mut self, port: u16, value: u32) {
        // SAFETY: this thread has the right to the ports while `self` lives (`acquire`), and the device behind
        // them reads and writes no memory of ours.
        unsafe {
            asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack, preserves_flags))
        }
    }

    fn read(&mut self, port: u16) -> u32 {
        let value: u32;
        // SAFETY: as in `write`.
        unsafe {
            asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack, preserves_flags))
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use evidence::report::Report;

    use super::*;

    /// The VMM's side, which answers with `answer` of claimed length `length`.
    #[derive(Default)]
    struct Device {
        asked: Vec<u32>,
        length: u32,
        answer: Vec<u32>,
        reads: usize,
    }

    impl Device {
        fn answering(bytes: &[u8]) -> Self {
            let word = |chunk: &[u8]| {
                let mut word = [0; 4];
                word[..chunk.len()].copy_from_slice(chunk);
                u32::from_le_bytes(word)
            };
            let length = u32::try_from(bytes.len()).unwrap();
            Self { length, answer: bytes.chunks(4).map(word).collect(), ..Self::default() }
        }
    }

    impl Ports for Device {
        fn write(&mut self, port: u16, value: u32) {
            match port {
                PORT_CONTROL => {
                    assert_eq!(value, COMMAND_RESET);
                    self.asked.clear();
                }
                PORT_DATA => self.asked.push(value),
                other => panic!("port {other:#x}"),
            }
        }

        fn read(&mut self, port: u16) -> u32 {
            match port {
                PORT_CONTROL => self.length,
                PORT_DATA => {
                    self.reads += 1;
                    self.answer.get(self.reads - 1).copied().unwrap_or(u32::MAX)
                }
                other => panic!("port {other:#x}"),
            }
        }
    }

    #[test]
    fn the_device_answers_with_a_report_and_certificates() {
        let report = [0x5a; Report::BYTES];
        let bytes = Answer { report: &report, certificates: b"certificate" }.encode().unwrap();
        let mut device = Device::answering(&bytes);
        let data: [u8; 64] = std::array::from_fn(|at| u8::try_from(at).unwrap());
        let evidence = ask(&mut device, &data).unwrap();
        assert_eq!(device.asked.len(), 16);
        assert_eq!((device.asked[0], device.asked[15]), (0x0302_0100, 0x3f3e_3d3c));
        assert_eq!(evidence.provider, "sim");
        assert_eq!(evidence.report, report);
        assert_eq!(evidence.certificates, b"certificate");
    }

    #[test]
    fn no_device_and_hostile_answers_are_refused() {
        let mut absent = Device { length: u32::MAX, ..Device::default() };
        assert!(matches!(ask(&mut absent, &[0; 64]), Err(EvidenceError::NoProvider { .. })));
        let most = u32::try_from(ANSWER_MAX).unwrap();
        for length in [0, 1, 4, 1187, most + 1, u32::MAX - 1] {
            let mut device = Device { length, answer: vec![0; 300], ..Device::default() };
            assert!(matches!(ask(&mut device, &[0; 64]), Err(EvidenceError::Answer { .. })), "{length}");
            assert!(device.reads <= ANSWER_MAX.div_ceil(4), "{} reads", device.reads);
        }
    }
}
