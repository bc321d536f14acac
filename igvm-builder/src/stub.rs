//! The boot stub's program file: one loadable segment at a fixed address (ELF-64, System V ABI chapter 4-5).

use boot_abi::{STUB_GPA, STUB_LIMIT};

use crate::BuildError;

/// The stub's memory image.
#[derive(Debug)]
pub struct Program<'a> {
    /// Bytes from [`STUB_GPA`] on.
    pub image: &'a [u8],
    /// Address of the first instruction.
    pub entry: u64,
}

const HEADER_ENTRY: usize = 24;
const HEADER_PROGRAM_OFFSET: usize = 32;
const HEADER_PROGRAM_COUNT: usize = 56;
const PROGRAM_HEADER_BYTES: u64 = 56;
const PT_LOAD: u32 = 1;

impl<'a> Program<'a> {
    pub(crate) fn parse(file: &'a [u8]) -> Result<Self, BuildError> {
        let error = |expected, found: String| BuildError::Stub { expected, found };
        if file.get(..6) != Some(b"\x7fELF\x02\x01") {
            return Err(error("a 64-bit little-endian ELF file", format!("{} other bytes", file.len())));
        }
        let truncated = || error("a whole ELF file", "a truncated one".into());
        let entry = u64_at(file, HEADER_ENTRY).ok_or_else(truncated)?;
        let table = u64_at(file, HEADER_PROGRAM_OFFSET).ok_or_else(truncated)?;
        let count = file.get(HEADER_PROGRAM_COUNT).copied().ok_or_else(truncated)?;
        let mut loaded = None;
        for index in 0..u64::from(count) {
            let header =
                table.checked_add(index * PROGRAM_HEADER_BYTES).and_then(|at| usize::try_from(at).ok());
            let header = header.and_then(|at| file.get(at..)).ok_or_else(truncated)?;
            if header.first_chunk().map(|kind| u32::from_le_bytes(*kind)) != Some(PT_LOAD) {
                continue;
            }
            if loaded.is_some() {
                return Err(error("one loadable segment", "several".into()));
            }
            let [offset, address, file_size, memory_size] =
                [8, 16, 32, 40].map(|at| u64_at(header, at).unwrap_or(0));
            if address != STUB_GPA || file_size != memory_size || memory_size > STUB_LIMIT - STUB_GPA {
                let found = format!("{file_size:#x} of {memory_size:#x} bytes at {address:#x}");
                return Err(error("a filled segment at 0x100000, below the page tables", found));
            }
            let range = usize::try_from(offset).ok().zip(usize::try_from(file_size).ok());
            let bytes = range.and_then(|(start, size)| file.get(start..start.checked_add(size)?));
            loaded = Some(bytes.ok_or_else(truncated)?);
        }
        let image = loaded.ok_or_else(|| error("one loadable segment", "none".into()))?;
        Ok(Self { image, entry })
    }
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}
