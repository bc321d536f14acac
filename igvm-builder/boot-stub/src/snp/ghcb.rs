//! Requests through the page shared with the hypervisor (GHCB specification, sections 2.6 and 4.1).
//!
//! The page has the layout of a save area: a field counts only when its bit in the valid bitmap is set. Each
//! request writes all that it needs and the whole bitmap; nothing of an earlier one is left valid.

use boot_abi::GHCB_GPA;

use super::msr::PROTOCOL;
use super::{Processor, SnpError};
use crate::steps::{PageSize, Step};

const RAX: u16 = 0x1F8;
const EXIT_CODE: u16 = 0x390;
const EXIT_INFO_1: u16 = 0x398;
const EXIT_INFO_2: u16 = 0x3A0;
const SCRATCH: u16 = 0x3A8;
const VALID_BITMAP: u16 = 0x3F0;
/// 2032 bytes for larger requests.
const SHARED_BUFFER: u16 = 0x800;
/// The last eight bytes: reserved, protocol version (u16 at 0xFFA), usage (u32 at 0xFFC, 0: this layout).
const VERSION: u16 = 0xFF8;

const EXIT_IOIO: u64 = 0x7B;
const EXIT_PAGE_STATE: u64 = 0x8000_0010;

/// `IOIO` exit information: a byte, with 64-bit addresses, outwards; the port is in bits 31:16.
const IO_OUT_BYTE: u64 = 1 << 4 | 1 << 9;

/// Entries of 8 bytes behind the page-state change's 8-byte header, in the shared buffer.
pub(super) const MAX_ENTRIES: usize = 253;
const TO_PRIVATE: u64 = 1 << 52;
const ENTRY_LARGE: u64 = 1 << 56;

/// Zeros the page: it may hold anything.
pub(super) fn clear(processor: &mut impl Processor) {
    for offset in (0..4096).step_by(8) {
        processor.write(offset, 0);
    }
    processor.write(VERSION, u64::from(PROTOCOL) << 16);
}

/// `OUT` of one byte.
pub(super) fn write_port(processor: &mut impl Processor, port: u16, byte: u8) -> Result<(), SnpError> {
    processor.write(RAX, u64::from(byte));
    exit(processor, EXIT_IOIO, u64::from(port) << 16 | IO_OUT_BYTE, RAX)
}

/// Asks the hypervisor to assign the pages to this guest; says how many there were.
pub(super) fn make_private(
    processor: &mut impl Processor,
    steps: impl Iterator<Item = Step>,
) -> Result<u16, SnpError> {
    let mut count: u16 = 0;
    for step in steps {
        let size = if step.size == PageSize::Large { ENTRY_LARGE } else { 0 };
        processor.write(SHARED_BUFFER + 8 * (count + 1), step.gpa | TO_PRIVATE | size);
        count += 1;
    }
    let mut done = 0;
    while done < count {
        // The header: the next entry, the last one.
        processor.write(SHARED_BUFFER, u64::from(done) | u64::from(count - 1) << 16);
        processor.write(SCRATCH, GHCB_GPA + u64::from(SHARED_BUFFER));
        exit(processor, EXIT_PAGE_STATE, 0, SCRATCH)?;
        let [low, high, ..] = processor.read(SHARED_BUFFER).to_le_bytes();
        let next = u16::from_le_bytes([low, high]);
        // It may stop early, to be asked again. Whatever it says, every page is checked by PVALIDATE.
        if next <= done {
            return Err(SnpError::Stuck(done));
        }
        done = next;
    }
    Ok(count)
}

/// Leaves for the hypervisor with one field beside the exit's own three.
fn exit(processor: &mut impl Processor, code: u64, info1: u64, field: u16) -> Result<(), SnpError> {
    processor.write(EXIT_CODE, code);
    processor.write(EXIT_INFO_1, info1);
    processor.write(EXIT_INFO_2, 0);
    let bit = |offset: u16| 1u128 << (offset / 8);
    let valid = bit(EXIT_CODE) | bit(EXIT_INFO_1) | bit(EXIT_INFO_2) | bit(field);
    let [low, high] = halves(valid);
    processor.write(VALID_BITMAP, low);
    processor.write(VALID_BITMAP + 8, high);
    processor.exchange(GHCB_GPA);
    let info1 = processor.read(EXIT_INFO_1);
    let info2 = processor.read(EXIT_INFO_2);
    // Port requests leave nothing in the second; page-state changes say there why they failed.
    let failed = info1 & 0xFFFF_FFFF != 0 || code == EXIT_PAGE_STATE && info2 != 0;
    if failed { Err(SnpError::Exit { code, info1, info2 }) } else { Ok(()) }
}

fn halves(bitmap: u128) -> [u64; 2] {
    let bytes = bitmap.to_le_bytes();
    let half = |from: usize| {
        let chunk = bytes.get(from..).and_then(|rest| rest.first_chunk());
        chunk.map_or(0, |half| u64::from_le_bytes(*half))
    };
    [half(0), half(8)]
}
