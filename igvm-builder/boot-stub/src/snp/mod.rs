//! SEV-SNP: how the stub speaks with the hypervisor, and how it takes memory.
//!
//! Follows the GHCB specification (AMD document 56421, revision 2.03) and `PVALIDATE` (AMD64 architecture manual,
//! volume 3). What only the processor can do is behind [`Processor`], so that the same code runs against a
//! hypervisor in software in tests. Every answer of the hypervisor is hostile: it is read once, and an answer
//! that the protocol does not know ends the start.

pub mod cc_blob;
pub mod cpuid;
mod ghcb;
#[cfg(test)]
mod hypervisor;
pub mod msr;

use core::fmt;

use boot_abi::{GHCB_GPA, LoadedRange, VMSA_GPA};

use crate::steps::{PageSize, Step, Steps};

/// The page-table bit that makes memory private, in the page tables that the image measures.
pub const C_BIT: u8 = 51;

/// Pages that are never validated: the one shared with the hypervisor, and the one that loaders which import save
/// areas use for the first virtual CPU's. Linux is told to keep off both.
pub const NEVER_VALIDATED: [LoadedRange; 2] = [
    LoadedRange { base: VMSA_GPA, end: VMSA_GPA + 4096 },
    LoadedRange { base: GHCB_GPA, end: GHCB_GPA + 4096 },
];

/// What `PVALIDATE` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validation {
    /// EAX: 0 is success.
    pub code: u32,
    /// The carry flag: the page had been validated before.
    pub unchanged: bool,
}

/// `PVALIDATE` of 2 MiB over memory that the hypervisor has assigned in pages of 4 KiB.
const FAIL_SIZE_MISMATCH: u32 = 6;

/// What only the processor can do.
pub trait Processor {
    /// Writes the GHCB MSR, leaves for the hypervisor, and reads the MSR when back.
    fn exchange(&mut self, request: u64) -> u64;
    /// `PVALIDATE`, to validate private memory.
    fn validate(&mut self, gpa: u64, size: PageSize) -> Validation;
    /// Reads the u64 at `offset` of the page shared with the hypervisor, once.
    fn read(&mut self, offset: u16) -> u64;
    /// Writes the u64 at `offset` of the page shared with the hypervisor.
    fn write(&mut self, offset: u16, value: u64);
}

/// What goes wrong between the stub and its hypervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnpError {
    /// The hypervisor's range of GHCB protocol versions has no version 2.
    Protocol {
        /// Lowest version.
        min: u16,
        /// Highest version.
        max: u16,
    },
    /// The hypervisor's place of the C-bit is not that of the page tables.
    CBit(u8),
    /// The hypervisor has no support for SEV-SNP guests: its feature bits.
    Features(u64),
    /// An answer through the GHCB MSR that does not belong to the request.
    Answer {
        /// The request.
        request: u64,
        /// The answer.
        found: u64,
    },
    /// A request through the GHCB page that failed.
    Exit {
        /// The exit code of the request.
        code: u64,
        /// `SW_EXITINFO1` when back.
        info1: u64,
        /// `SW_EXITINFO2` when back.
        info2: u64,
    },
    /// The hypervisor stops in the middle of a page-state change without an error, at this entry.
    Stuck(u16),
    /// `PVALIDATE` failed.
    Validate {
        /// The page.
        gpa: u64,
        /// EAX.
        code: u32,
    },
    /// A page that nobody has taken yet is already validated.
    ValidatedTwice(u64),
}

impl fmt::Display for SnpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Protocol { min, max } => {
                write!(f, "GHCB protocol: expected version 2, found {min} to {max}")
            }
            Self::CBit(found) => write!(f, "C-bit: expected {C_BIT}, found {found}"),
            Self::Features(found) => {
                write!(f, "hypervisor features: expected SEV-SNP (bit 0), found {found:#x}")
            }
            Self::Answer { request, found } => {
                write!(f, "GHCB MSR: no answer to {request:#x}: found {found:#x}")
            }
            Self::Exit { code, info1, info2 } => {
                write!(f, "GHCB exit {code:#x}: expected success, found {info1:#x}, {info2:#x}")
            }
            Self::Stuck(entry) => write!(f, "page-state change: stopped at entry {entry}"),
            Self::Validate { gpa, code } => {
                write!(f, "PVALIDATE of {gpa:#x}: expected success, found {code}")
            }
            Self::ValidatedTwice(gpa) => {
                write!(f, "PVALIDATE of {gpa:#x}: expected a fresh page, found a validated one")
            }
        }
    }
}

/// A guest that can speak with its hypervisor.
#[derive(Debug)]
pub struct Guest<P> {
    processor: P,
}

impl<P: Processor> Guest<P> {
    /// Agrees on the protocol and opens the shared page.
    ///
    /// # Errors
    /// When the hypervisor speaks another protocol, or refuses the page.
    pub fn open(mut processor: P) -> Result<Self, SnpError> {
        msr::negotiate(&mut processor)?;
        // The page is RAM that no launch loads, so it has never been validated and there is nothing to rescind.
        // It is not touched before it is shared.
        msr::share(&mut processor, GHCB_GPA)?;
        msr::register(&mut processor, GHCB_GPA)?;
        ghcb::clear(&mut processor);
        Ok(Self { processor })
    }

    /// Writes one byte to an I/O port.
    ///
    /// # Errors
    /// When the hypervisor fails the request.
    pub fn write_port(&mut self, port: u16, byte: u8) -> Result<(), SnpError> {
        ghcb::write_port(&mut self.processor, port, byte)
    }

    /// Makes all that `steps` meets private memory of this guest, each page once.
    ///
    /// # Errors
    /// When the hypervisor does not give a page, or gives one that has been validated before.
    pub fn accept(&mut self, steps: Steps<'_>) -> Result<(), SnpError> {
        let mut rest = steps;
        loop {
            let batch = rest.clone().take(ghcb::MAX_ENTRIES);
            let mut after = rest.clone();
            if ghcb::make_private(&mut self.processor, after.by_ref().take(ghcb::MAX_ENTRIES))? == 0 {
                return Ok(());
            }
            for step in batch {
                self.validate(step)?;
            }
            rest = after;
        }
    }

    fn validate(&mut self, step: Step) -> Result<(), SnpError> {
        let answer = self.processor.validate(step.gpa, step.size);
        if step.size == PageSize::Large && answer.code == FAIL_SIZE_MISMATCH {
            for gpa in step.small_pages() {
                fresh(gpa, self.processor.validate(gpa, PageSize::Small))?;
            }
            return Ok(());
        }
        fresh(step.gpa, answer)
    }
}

fn fresh(gpa: u64, answer: Validation) -> Result<(), SnpError> {
    match answer {
        Validation { code: 0, unchanged: false } => Ok(()),
        Validation { code: 0, unchanged: true } => Err(SnpError::ValidatedTwice(gpa)),
        Validation { code, .. } => Err(SnpError::Validate { gpa, code }),
    }
}

#[cfg(test)]
mod tests;
