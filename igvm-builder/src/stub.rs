//! The boot stub's program file: loadable segments at fixed addresses (ELF-64, System V ABI chapter 4-5). One is
//! the stub; a stub that starts on TDX has another, the page at the reset vector.

use boot_abi::{RESET_PAGE_GPA, STUB_GPA, STUB_LIMIT};

use crate::BuildError;

/// The stub's memory image.
#[derive(Debug)]
pub struct Program<'a> {
    /// Bytes from [`STUB_GPA`] on.
    pub image: &'a [u8],
    /// The page at [`RESET_PAGE_GPA`].
    pub reset_page: Option<&'a [u8]>,
    /// Address of the first instruction.
    pub entry: u64,
}

const HEADER_ENTRY: usize = 24;
const HEADER_PROGRAM_OFFSET: usize = 32;
const HEADER_PROGRAM_COUNT: usize = 56;
const PROGRAM_HEADER_BYTES: u64 = 56;
const PT_LOAD: u32 = 1;
const PAGE: u64 = 4096;

impl<'a> Program<'a> {
    pub(crate) fn parse(file: &'a [u8]) -> Result<Self, BuildError> {
        if file.get(..6) != Some(b"\x7fELF\x02\x01") {
            return Err(error("a 64-bit little-endian ELF file", format!("{} other bytes", file.len())));
        }
        let entry = u64_at(file, HEADER_ENTRY).ok_or_else(truncated)?;
        let table = u64_at(file, HEADER_PROGRAM_OFFSET).ok_or_else(truncated)?;
        let count = file.get(HEADER_PROGRAM_COUNT..).and_then(|rest| rest.first_chunk());
        let count = u16::from_le_bytes(*count.ok_or_else(truncated)?);
        let (mut image, mut reset_page) = (None, None);
        for index in 0..u64::from(count) {
            let header =
                table.checked_add(index * PROGRAM_HEADER_BYTES).and_then(|at| usize::try_from(at).ok());
            let header = header.and_then(|at| file.get(at..)).ok_or_else(truncated)?;
            if header.first_chunk().map(|kind| u32::from_le_bytes(*kind)) != Some(PT_LOAD) {
                continue;
            }
            let (address, bytes) = segment(file, header)?;
            let place = if address == RESET_PAGE_GPA { &mut reset_page } else { &mut image };
            if place.replace(bytes).is_some() {
                return Err(error("one segment at each address", format!("another at {address:#x}")));
            }
        }
        let image = image.ok_or_else(|| error("a loadable segment at 0x100000", "none".into()))?;
        Ok(Self { image, reset_page, entry })
    }
}

/// A loadable segment's address and bytes.
fn segment<'a>(file: &'a [u8], header: &[u8]) -> Result<(u64, &'a [u8]), BuildError> {
    let [offset, address, file_size, memory_size] = [8, 16, 32, 40].map(|at| u64_at(header, at));
    let fields = offset.zip(address).zip(file_size.zip(memory_size)).ok_or_else(truncated)?;
    let ((offset, address), (file_size, memory_size)) = fields;
    let room = match address {
        STUB_GPA => STUB_LIMIT - STUB_GPA,
        RESET_PAGE_GPA => PAGE,
        _ => 0,
    };
    if file_size != memory_size || memory_size > room {
        let found = format!("{file_size:#x} of {memory_size:#x} bytes at {address:#x}");
        return Err(error(
            "filled segments at 0x100000, below the page tables, and at 0xfffff000, of one page",
            found,
        ));
    }
    let range = usize::try_from(offset).ok().zip(usize::try_from(file_size).ok());
    let bytes = range.and_then(|(start, size)| file.get(start..start.checked_add(size)?));
    Ok((address, bytes.ok_or_else(truncated)?))
}

fn error(expected: &'static str, found: String) -> BuildError {
    BuildError::Stub { expected, found }
}

fn truncated() -> BuildError {
    error("a whole ELF file", "a truncated one".into())
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}
