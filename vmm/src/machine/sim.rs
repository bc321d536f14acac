//! The report device of a simulated launch: the guest writes what a report is to vouch for, and reads the report
//! ([`evidence::sim`] has the protocol).
//!
//! The guest decides what it writes and when it reads: one request is kept at a time, of fixed size, and one
//! answer.

use evidence::policy::GuestPolicy;
use evidence::sim::{COMMAND_RESET, PORT_CONTROL, PORT_DATA, REPORT_DATA_WORDS};
use launch::control::Measurement;
use launch::image::Image;
use sim_tee::{Launch, SimTee};

/// Bytes of report data.
const REPORT_DATA_BYTES: usize = 64;
const _: () = assert!(REPORT_DATA_WORDS * size_of::<u32>() == REPORT_DATA_BYTES);

/// Why there is no simulated secure processor.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    /// The image has no policy to report.
    #[error("simulated launch: expected an image with a guest policy, found none")]
    Policy,
    /// Its signatures would have to be checked as the secure processor does.
    #[error("simulated launch: expected an image without an ID block, found one")]
    IdBlock,
    /// Keys or certificates cannot be made.
    #[error(transparent)]
    Tee(#[from] sim_tee::Error),
}

/// The device.
pub struct ReportDevice {
    tee: SimTee,
    /// Words of report data that have been written since the last reset.
    request: Vec<u32>,
    /// Set when the guest asks how long the answer is; empty where it is refused.
    answer: Option<Vec<u8>>,
    /// Bytes of the answer that have been read.
    read: usize,
}

impl ReportDevice {
    /// The device of a guest that has been launched as `measurement` says.
    ///
    /// # Errors
    /// When the image cannot be launched in simulation, or keys cannot be made.
    pub fn new(image: &Image, measurement: &Measurement) -> Result<Self, SimError> {
        let policy = image.guest_policy.ok_or(SimError::Policy)?;
        if image.id_block.is_some() {
            return Err(SimError::IdBlock);
        }
        let Measurement { digest, host_data, .. } = measurement;
        let tee = SimTee::new(&Launch::new(digest.0, host_data.0, GuestPolicy(policy)))?;
        Ok(Self { tee, request: Vec::new(), answer: None, read: 0 })
    }

    /// Whether `port` is one of the device's.
    pub const fn has(port: u16) -> bool {
        matches!(port, PORT_DATA | PORT_CONTROL)
    }

    /// Takes a word. A command that is not known, and a word too many, make the request one that is refused.
    pub fn write(&mut self, port: u16, word: u32) {
        match port {
            PORT_CONTROL if word == COMMAND_RESET => {
                self.request.clear();
                (self.answer, self.read) = (None, 0);
            }
            PORT_DATA if self.answer.is_none() && self.request.len() < REPORT_DATA_WORDS => {
                self.request.push(word);
            }
            _ => self.answer = Some(Vec::new()),
        }
    }

    /// Gives a word: the length of the answer, or the next four bytes of it.
    pub fn read(&mut self, port: u16) -> u32 {
        match port {
            PORT_CONTROL => {
                let (tee, request) = (&self.tee, &self.request);
                let answer = self.answer.get_or_insert_with(|| answer(tee, request).unwrap_or_default());
                u32::try_from(answer.len()).unwrap_or(0)
            }
            PORT_DATA => {
                let rest = self.answer.as_ref().and_then(|answer| answer.get(self.read..)).unwrap_or(&[]);
                let mut word = [0; size_of::<u32>()];
                let count = rest.len().min(word.len());
                word[..count].copy_from_slice(&rest[..count]);
                self.read += count;
                u32::from_le_bytes(word)
            }
            _ => u32::MAX,
        }
    }
}

/// The report for a complete request.
fn answer(tee: &SimTee, request: &[u32]) -> Option<Vec<u8>> {
    let bytes: Vec<u8> = request.iter().flat_map(|word| word.to_le_bytes()).collect();
    let report_data: [u8; REPORT_DATA_BYTES] = bytes.try_into().ok()?;
    match tee.report(report_data) {
        Ok(answer) => Some(answer),
        Err(error) => {
            log::error!("{error}");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use evidence::report::Report;
    use evidence::sim::Answer;
    use launch::digest::LaunchDigest;
    use launch::image::{Platform, Start};
    use launch::plan::{HostData, Tee};

    use super::*;

    fn device() -> ReportDevice {
        let image = Image {
            platform: Platform::Snp,
            pages: Vec::new(),
            parameters: Vec::new(),
            start: Start::Reset,
            guest_policy: Some(0x3_0000),
            id_block: None,
        };
        let (digest, host_data) = (LaunchDigest([1; 48]), HostData([2; 32]));
        ReportDevice::new(&image, &Measurement { tee: Tee::Sim, digest, host_data }).unwrap()
    }

    fn request(device: &mut ReportDevice, words: &[u32]) -> u32 {
        device.write(PORT_CONTROL, COMMAND_RESET);
        words.iter().for_each(|word| device.write(PORT_DATA, *word));
        device.read(PORT_CONTROL)
    }

    fn read(device: &mut ReportDevice, length: u32) -> Vec<u8> {
        let words = (0..length.div_ceil(4)).map(|_| device.read(PORT_DATA).to_le_bytes());
        let mut bytes: Vec<u8> = words.flatten().collect();
        bytes.truncate(usize::try_from(length).unwrap());
        bytes
    }

    #[test]
    fn a_report_says_how_the_guest_was_launched() {
        let mut device = device();
        let words: Vec<u32> = (0..16).collect();
        for _ in 0..2 {
            let length = request(&mut device, &words);
            let bytes = read(&mut device, length);
            let report = Report::parse(Answer::parse(&bytes).unwrap().report).unwrap();
            assert_eq!((report.measurement, report.host_data), ([1; 48], [2; 32]));
            assert_eq!(report.report_data[60..], 15u32.to_le_bytes());
            assert_eq!(report.policy(), GuestPolicy(0x3_0000));
            assert_eq!(device.read(PORT_DATA), 0);
        }
    }

    #[test]
    fn incomplete_overlong_and_unknown_requests_are_refused() {
        let mut device = device();
        assert_eq!(device.read(PORT_CONTROL), 0);
        assert_eq!(request(&mut device, &[0; 15]), 0);
        assert_eq!(request(&mut device, &[0; 17]), 0);
        device.write(PORT_CONTROL, COMMAND_RESET);
        device.write(PORT_CONTROL, 2);
        (0..16).for_each(|word| device.write(PORT_DATA, word));
        assert_eq!(device.read(PORT_CONTROL), 0);
        assert_eq!(device.read(PORT_DATA), 0);
        assert_ne!(request(&mut device, &[0; 16]), 0);
    }
}
