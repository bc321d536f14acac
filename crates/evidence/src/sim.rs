//! The simulated report device: two 32-bit I/O ports over which the agent asks the VMM for a report.
//!
//! The guest resets the device through [`PORT_CONTROL`], writes its report data to [`PORT_DATA`] as
//! [`REPORT_DATA_WORDS`] words, reads the answer's length in bytes from [`PORT_CONTROL`] (0: refused), and reads as
//! many words as the answer has, the last one padded with zeros. Words are little-endian. The answer is the report's
//! length, the report, and the certificate table to the end.

use thiserror::Error;

use crate::{certificates, report::Report};

/// The word with which the common name of every simulated certificate begins.
pub const SIMULATED: &str = "SIMULATED";
/// Data register, in and out.
pub const PORT_DATA: u16 = 0x0608;
/// Control register: writing is a command, reading gives the answer's length in bytes.
pub const PORT_CONTROL: u16 = 0x060c;
/// Command: forget what was written so far, expect report data.
pub const COMMAND_RESET: u32 = 1;
/// Words of report data in a request.
pub const REPORT_DATA_WORDS: usize = 16;
/// Bytes before the report in an answer.
const HEADER_BYTES: usize = 4;
/// Most bytes of an answer.
pub const ANSWER_MAX: usize = HEADER_BYTES + Report::BYTES + certificates::TABLE_MAX;

/// Why bytes are not an answer, or a report and certificates do not make one.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum Error {
    /// Too short to hold a report, or longer than any answer.
    #[error("simulated report: expected an answer of {least} to {ANSWER_MAX} bytes, found {0}", least = HEADER_BYTES + Report::BYTES)]
    Size(usize),
    /// The header names another length than a report has.
    #[error("simulated report: expected a report of {expected} bytes, found {0}", expected = Report::BYTES)]
    ReportSize(usize),
}

/// The two parts of an answer, neither parsed yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer<'a> {
    /// [`Report::BYTES`] bytes.
    pub report: &'a [u8],
    /// The certificate table.
    pub certificates: &'a [u8],
}

impl<'a> Answer<'a> {
    /// Takes an answer apart.
    ///
    /// # Errors
    /// The answer's size, or the report's size in its header, is wrong.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        let (Some((header, rest)), true) =
            (bytes.split_first_chunk::<HEADER_BYTES>(), bytes.len() <= ANSWER_MAX)
        else {
            return Err(Error::Size(bytes.len()));
        };
        let length = usize::try_from(u32::from_le_bytes(*header)).unwrap_or(usize::MAX);
        if length != Report::BYTES {
            return Err(Error::ReportSize(length));
        }
        let (report, certificates) = rest.split_at_checked(length).ok_or(Error::Size(bytes.len()))?;
        Ok(Self { report, certificates })
    }

    /// The answer's bytes.
    ///
    /// # Errors
    /// The report or the certificates have a size that [`Answer::parse`] would refuse.
    pub fn encode(&self) -> Result<Vec<u8>, Error> {
        let length = self.report.len();
        let size = HEADER_BYTES + length + self.certificates.len();
        let header = u32::try_from(length)
            .ok()
            .filter(|_| length == Report::BYTES)
            .ok_or(Error::ReportSize(length))?;
        if size > ANSWER_MAX {
            return Err(Error::Size(size));
        }
        Ok([&header.to_le_bytes(), self.report, self.certificates].concat())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_answer_comes_back() {
        let report = [7; Report::BYTES];
        let answer = Answer { report: &report, certificates: b"table" };
        let bytes = answer.encode().unwrap();
        assert_eq!(Answer::parse(&bytes).unwrap(), answer);
        assert_eq!(Answer::parse(&bytes[..Report::BYTES + 3]).unwrap_err(), Error::Size(Report::BYTES + 3));
        assert_eq!(Answer::parse(&[0; 3]).unwrap_err(), Error::Size(3));
        assert_eq!(Answer::parse(&vec![0; ANSWER_MAX + 1]).unwrap_err(), Error::Size(ANSWER_MAX + 1));
        assert_eq!(Answer::parse(&[0xff; 1200]).unwrap_err(), Error::ReportSize(0xffff_ffff));
        assert_eq!(Answer { report: &[0; 8], certificates: &[] }.encode().unwrap_err(), Error::ReportSize(8));
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1300)) {
            let _ = Answer::parse(&bytes);
        }
    }
}
