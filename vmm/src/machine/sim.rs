//! The report device of a simulated launch: the guest writes what a report is to vouch for, and reads the report
//! ([`evidence::sim`] has the protocol).
//!
//! The guest decides what it writes and when it reads: one request is kept at a time, of fixed size, and one
//! answer.

use attestation::id_block::{self, IdAuth, IdBlock};
use evidence::policy::GuestPolicy;
use evidence::sim::{COMMAND_RESET, PORT_CONTROL, PORT_DATA, REPORT_DATA_WORDS};
use launch::control::Measurement;
use launch::digest::LaunchDigest;
use launch::image::Image;
use sim_tee::{Launch, SimTee};

use crate::hv::{self, HvError};

/// Bytes of report data.
const REPORT_DATA_BYTES: usize = 64;
const _: () = assert!(REPORT_DATA_WORDS * size_of::<u32>() == REPORT_DATA_BYTES);

/// Why there is no simulated secure processor.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    /// The image has no policy to report.
    #[error("simulated launch: expected an image with a guest policy, found none")]
    Policy,
    /// The image's ID block has no form that a secure processor takes.
    #[error("simulated launch: {0}")]
    Form(#[from] HvError),
    /// The image's ID block is not one that a secure processor accepts.
    #[error("simulated launch: {0}")]
    IdBlock(#[from] id_block::Error),
    /// The image's ID block is for another launch.
    #[error("simulated launch: expected the launch digest {expected} of the ID block, found {found}")]
    OtherLaunch {
        /// What the block's owner signed.
        expected: LaunchDigest,
        /// What was loaded.
        found: LaunchDigest,
    },
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
        let tee = SimTee::new(&finish(image, measurement)?)?;
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

/// What the secure processor fixes when a launch is finished. An ID block is checked as it would check it: both
/// signatures, and that digest and policy are those of the launch.
fn finish(image: &Image, measurement: &Measurement) -> Result<Launch, SimError> {
    let policy = image.guest_policy.ok_or(SimError::Policy)?;
    let found = measurement.digest;
    let mut launch = Launch::new(found.0, measurement.host_data.0, GuestPolicy(policy));
    let Some(directive) = &image.id_block else { return Ok(launch) };
    // The file's block has no policy of its own: it is made with the launch's, and signed with its owner's.
    let made = hv::id_block::IdBlock::new(directive, policy)?;
    let (block, auth) = (IdBlock::parse(&made.block)?, IdAuth::parse(&*made.auth)?);
    auth.verify(block)?;
    if block.launch_digest != found.0 {
        return Err(SimError::OtherLaunch { expected: LaunchDigest(block.launch_digest), found });
    }
    launch.guest_svn = block.guest_svn.get();
    (launch.family_id, launch.image_id) = (block.family_id, block.image_id);
    launch.id_key_digest = auth.id_key.digest();
    launch.author_key_digest = auth.has_author_key().then(|| auth.author_key.digest());
    Ok(launch)
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
mod tests;
