//! The kernel file, as far as the builder must understand it: where its protected-mode part begins.
//!
//! The stub checks the rest of the header when it starts (it has verified the file by then); the builder
//! checks the same early, so that an unusable kernel fails where it can still be changed.

use sha2::{Digest, Sha256};

use crate::BuildError;

/// A kernel file.
#[derive(Debug)]
pub struct Kernel<'a> {
    /// The whole file.
    pub file: &'a [u8],
    /// Bytes of real-mode set-up code at its start.
    pub setup_bytes: u32,
    /// SHA-256 of the file.
    pub sha256: [u8; 32],
}

impl<'a> Kernel<'a> {
    pub(crate) fn parse(file: &'a [u8]) -> Result<Self, BuildError> {
        let error = |expected, found: String| BuildError::Kernel { expected, found };
        if file.get(0x202..0x206) != Some(b"HdrS") {
            return Err(error("a bzImage (\"HdrS\" at 0x202)", format!("{} other bytes", file.len())));
        }
        let window = usize::try_from(launch::layout::WINDOW_SIZE).unwrap_or(usize::MAX);
        if file.len() > window {
            return Err(error("at most 256 MiB", format!("{} bytes", file.len())));
        }
        let preferred =
            file.get(0x258..).and_then(|rest| rest.first_chunk()).map(|at| u64::from_le_bytes(*at));
        if preferred != Some(boot_abi::KERNEL_GPA) {
            return Err(error("preferred address 0x1000000", format!("{preferred:x?}")));
        }
        if file.get(0x236).is_none_or(|flags| flags & 1 == 0) {
            return Err(error("a 64-bit entry (xloadflags bit 0)", "none".into()));
        }
        let setup_sectors = u32::from(file.get(0x1F1).copied().unwrap_or(0));
        let sha256 = Sha256::digest(file).into();
        Ok(Self { file, setup_bytes: (setup_sectors + 1) * 512, sha256 })
    }
}
