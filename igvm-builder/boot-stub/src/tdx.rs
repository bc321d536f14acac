//! TDX: how the stub asks the hypervisor, and how it takes memory (Intel TDX module ABI, `TDG.MEM.PAGE.ACCEPT` and
//! `TDG.VP.VMCALL`; Guest-Hypervisor Communication Interface, section 3).
//!
//! What only the processor can do is behind [`Module`], so that the same code runs against a module in software in
//! tests.

use core::fmt;

use crate::steps::{PageSize, Step, Steps};

/// `TDG.VP.VMCALL` of an `OUT` instruction: the hypervisor function's number is the exit reason's.
const INSTRUCTION_IO: u64 = 30;
const IO_WRITE: u64 = 1;
const BYTE: u64 = 1;
/// `TDG.VP.VMCALL` that ends the guest.
const REPORT_FATAL_ERROR: u64 = 0x1_0003;

/// Completion statuses, in bits 63:32 of RAX; the rest is detail.
const SUCCESS: u64 = 0;
const PAGE_ALREADY_ACCEPTED: u64 = 0x0000_0B0A;
const PAGE_SIZE_MISMATCH: u64 = 0xC000_0B0B;

/// What only the TDX module can do.
pub trait Module {
    /// `TDG.MEM.PAGE.ACCEPT` with this RCX: RAX.
    fn accept(&mut self, page: u64) -> u64;
    /// `TDG.VP.VMCALL` with R10 to R15: R10, or nothing when the module itself refuses.
    fn vmcall(&mut self, registers: [u64; 6]) -> Option<u64>;
}

/// What goes wrong between the stub and module or hypervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TdxError {
    /// Width of guest-physical addresses that no module has.
    AddressWidth(u32),
    /// A page was not accepted.
    Accept {
        /// The page.
        gpa: u64,
        /// The module's completion status.
        status: u64,
    },
    /// A page that nobody has taken yet is already accepted.
    AcceptedTwice(u64),
    /// The hypervisor failed a request, or the module did.
    Call {
        /// The function.
        function: u64,
        /// The hypervisor's status; none: the module's.
        status: Option<u64>,
    },
}

impl fmt::Display for TdxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::AddressWidth(found) => write!(f, "address width: expected 48 or 52, found {found}"),
            Self::Accept { gpa, status } => {
                write!(f, "accepting {gpa:#x}: expected success, found {status:#x}")
            }
            Self::AcceptedTwice(gpa) => {
                write!(f, "accepting {gpa:#x}: expected a fresh page, found an accepted one")
            }
            Self::Call { function, status: Some(status) } => {
                write!(f, "TDVMCALL {function:#x}: expected success, found {status:#x}")
            }
            Self::Call { function, status: None } => write!(f, "TDVMCALL {function:#x}: refused"),
        }
    }
}

/// The address bit that makes memory shared, from the width that the module starts virtual CPUs with (RBX).
///
/// # Errors
/// When the width is neither of the two that there are.
pub fn shared_bit(address_width: u32) -> Result<u64, TdxError> {
    match address_width {
        48 => Ok(1 << 47),
        52 => Ok(1 << 51),
        other => Err(TdxError::AddressWidth(other)),
    }
}

/// Writes one byte to an I/O port.
///
/// # Errors
/// When the hypervisor fails the request.
pub fn write_port(module: &mut impl Module, port: u16, byte: u8) -> Result<(), TdxError> {
    let status = module.vmcall([0, INSTRUCTION_IO, BYTE, IO_WRITE, u64::from(port), u64::from(byte)]);
    if status == Some(0) { Ok(()) } else { Err(TdxError::Call { function: INSTRUCTION_IO, status }) }
}

/// Asks the hypervisor to end the guest. An honest one does not come back.
pub fn terminate(module: &mut impl Module) {
    // Nothing is left to do with an answer.
    let _ = module.vmcall([0, REPORT_FATAL_ERROR, 0, 0, 0, 0]);
}

/// Makes all that `steps` meets private memory of this guest, each page once.
///
/// # Errors
/// When the hypervisor does not give a page, or gives one that has been accepted before.
pub fn accept(module: &mut impl Module, steps: Steps<'_>) -> Result<(), TdxError> {
    for Step { gpa, size } in steps {
        // The level is in bits 2:0.
        let level = u64::from(size == PageSize::Large);
        let status = module.accept(gpa | level);
        if size == PageSize::Large && status >> 32 == PAGE_SIZE_MISMATCH {
            for gpa in (Step { gpa, size }).small_pages() {
                fresh(gpa, module.accept(gpa))?;
            }
        } else {
            fresh(gpa, status)?;
        }
    }
    Ok(())
}

fn fresh(gpa: u64, status: u64) -> Result<(), TdxError> {
    match status >> 32 {
        SUCCESS => Ok(()),
        PAGE_ALREADY_ACCEPTED => Err(TdxError::AcceptedTwice(gpa)),
        _ => Err(TdxError::Accept { gpa, status }),
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::collections::BTreeMap;
    use std::vec::Vec;

    use boot_abi::LoadedRange;
    use boot_abi::ram::Range;

    use super::*;

    /// A module and hypervisor in software.
    #[derive(Default)]
    struct Fake {
        accepted: BTreeMap<u64, u32>,
        small_pages_only: bool,
        fail_at: Option<(u64, u64)>,
        calls: Vec<[u64; 6]>,
        status: Option<u64>,
    }

    impl Module for Fake {
        fn accept(&mut self, page: u64) -> u64 {
            let (gpa, level) = (page & !0xFFF, page & 0xFFF);
            assert!(level <= 1);
            let bytes = if level == 1 { 2 << 20 } else { 4096 };
            assert_eq!(gpa % bytes, 0);
            if let Some((_, status)) = self.fail_at.filter(|(at, _)| (gpa..gpa + bytes).contains(at)) {
                return status;
            }
            if level == 1 && self.small_pages_only {
                return 0xC000_0B0B_0000_0001;
            }
            for page in (gpa..gpa + bytes).step_by(4096) {
                *self.accepted.entry(page).or_default() += 1;
            }
            0
        }

        fn vmcall(&mut self, registers: [u64; 6]) -> Option<u64> {
            self.calls.push(registers);
            self.status
        }
    }

    const RAM: [Range; 1] = [Range { base: 0, end: 0x1000_3000 }];
    const LOADED: [LoadedRange; 1] = [LoadedRange { base: 0x10_0000, end: 0x14_A000 }];

    #[test]
    fn memory_is_accepted_once_whatever_the_page_size() {
        for small_pages_only in [false, true] {
            let mut fake = Fake { small_pages_only, ..Fake::default() };
            accept(&mut fake, Steps::new(&RAM, &LOADED)).unwrap();
            assert_eq!(fake.accepted.len(), 0x1_0003 - 0x4A);
            assert!(fake.accepted.values().all(|times| *times == 1));
        }
    }

    #[test]
    fn a_page_that_was_accepted_before_stops_the_start() {
        let run = |status, small_pages_only| {
            let fail_at = Some((0x40_1000, status));
            let mut fake = Fake { fail_at, small_pages_only, ..Fake::default() };
            accept(&mut fake, Steps::new(&RAM, &LOADED))
        };
        let already = 0x0000_0B0A_0000_0000;
        assert_eq!(run(already, false), Err(TdxError::AcceptedTwice(0x40_0000)));
        // In small pages the very page is named: the mismatch comes first.
        let mismatch = 0xC000_0B0B_0000_0000;
        assert_eq!(run(mismatch, false), Err(TdxError::Accept { gpa: 0x40_1000, status: mismatch }));
        let busy = 0x8000_0200_0000_0001;
        assert_eq!(run(busy, false), Err(TdxError::Accept { gpa: 0x40_0000, status: busy }));
    }

    #[test]
    fn bytes_leave_as_the_interface_has_it() {
        let mut fake = Fake { status: Some(0), ..Fake::default() };
        write_port(&mut fake, 0x600, 0xFF).unwrap();
        terminate(&mut fake);
        assert_eq!(fake.calls, [[0, 30, 1, 1, 0x600, 0xFF], [0, 0x1_0003, 0, 0, 0, 0]]);
        for status in [None, Some(1 << 63)] {
            fake.status = status;
            let refused = write_port(&mut fake, 0x600, 1);
            assert_eq!(refused, Err(TdxError::Call { function: 30, status }));
        }
    }

    #[test]
    fn the_shared_bit_is_the_topmost() {
        assert_eq!((shared_bit(48), shared_bit(52)), (Ok(1 << 47), Ok(1 << 51)));
        for width in [0, 47, 57] {
            assert_eq!(shared_bit(width), Err(TdxError::AddressWidth(width)));
        }
    }
}
