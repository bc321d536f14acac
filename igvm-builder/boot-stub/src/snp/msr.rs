//! The GHCB MSR protocol: requests of one u64, before there is a shared page (GHCB specification, section 2.3.1).
//!
//! Bits 11:0 say what it is, the rest is data.

use boot_abi::{STUB_END, STUB_GPA};

use super::{C_BIT, Processor, SnpError};

const SEV_INFO_REQUEST: u64 = 0x002;
const SEV_INFO: u64 = 0x001;
const REGISTER_REQUEST: u64 = 0x012;
const REGISTER: u64 = 0x013;
const PAGE_STATE_REQUEST: u64 = 0x014;
const PAGE_STATE: u64 = 0x015;
const FEATURES_REQUEST: u64 = 0x080;
const FEATURES: u64 = 0x081;
const TERMINATE: u64 = 0x100;

const INFO_MASK: u64 = 0xFFF;
const FEATURE_SNP: u64 = 1;
/// The version in which SEV-SNP came.
pub(super) const PROTOCOL: u16 = 2;
const TO_SHARED: u64 = 2 << 52;

/// Why the guest asks to be ended, in the specification's own set of reasons (0).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Reason {
    /// No reason of the others.
    General = 0,
    /// No common protocol version.
    Protocol = 1,
    /// The hypervisor does not support SEV-SNP.
    Features = 2,
}

impl From<&SnpError> for Reason {
    fn from(error: &SnpError) -> Self {
        match error {
            SnpError::Protocol { .. } => Self::Protocol,
            SnpError::Features(_) => Self::Features,
            _ => Self::General,
        }
    }
}

/// Checks that the hypervisor speaks this protocol, has the C-bit where the page tables have it, and knows SEV-SNP.
pub(super) fn negotiate(processor: &mut impl Processor) -> Result<(), SnpError> {
    let info = ask(processor, SEV_INFO_REQUEST, SEV_INFO)?;
    let [_, _, _, c_bit, min_low, min_high, max_low, max_high] = info.to_le_bytes();
    let (min, max) = (u16::from_le_bytes([min_low, min_high]), u16::from_le_bytes([max_low, max_high]));
    if !(min..=max).contains(&PROTOCOL) {
        return Err(SnpError::Protocol { min, max });
    }
    if c_bit != C_BIT {
        return Err(SnpError::CBit(c_bit));
    }
    let features = ask(processor, FEATURES_REQUEST, FEATURES)? >> 12;
    if features & FEATURE_SNP == 0 { Err(SnpError::Features(features)) } else { Ok(()) }
}

/// Makes a page of the stub's that has never been validated shared with the hypervisor.
pub(super) fn share(processor: &mut impl Processor, gpa: u64) -> Result<(), SnpError> {
    debug_assert!((STUB_GPA..STUB_END).contains(&gpa));
    let request = PAGE_STATE_REQUEST | gpa | TO_SHARED;
    let answer = ask(processor, request, PAGE_STATE)?;
    if answer == PAGE_STATE { Ok(()) } else { Err(SnpError::Answer { request, found: answer }) }
}

/// Registers the shared page: the hypervisor takes requests from no other.
pub(super) fn register(processor: &mut impl Processor, gpa: u64) -> Result<(), SnpError> {
    let request = REGISTER_REQUEST | gpa;
    let answer = ask(processor, request, REGISTER)?;
    if answer == REGISTER | gpa { Ok(()) } else { Err(SnpError::Answer { request, found: answer }) }
}

/// Asks the hypervisor to end the guest. An honest one does not come back.
pub fn terminate(processor: &mut impl Processor, reason: Reason) {
    processor.exchange(TERMINATE | u64::from(reason as u8) << 16);
}

fn ask(processor: &mut impl Processor, request: u64, expected: u64) -> Result<u64, SnpError> {
    let found = processor.exchange(request);
    if found & INFO_MASK == expected { Ok(found) } else { Err(SnpError::Answer { request, found }) }
}
