//! Linux's side of the boot: the bzImage header and the zero page (Linux `Documentation/arch/x86/boot.rst`,
//! protocol 2.12 and later, 64-bit entry).

use boot_abi::ram::{Ram, Range};
use boot_abi::{
    ACPI_GPA, ACPI_LIMIT, CC_BLOB_GPA, COMMAND_LINE_GPA, CONVENTIONAL_LIMIT, GHCB_GPA, KERNEL_GPA, STUB_END,
    STUB_GPA,
};

use crate::refusal::Refusal;
use crate::table::Table;

const SECTOR: u64 = 512;
const HEADER_OFFSET: usize = 0x1F1;
/// Where the header's length byte counts from.
const HEADER_JUMP: usize = 0x202;
/// The header must end before the zero page's next field, `edd_mbr_sig_buffer`.
const HEADER_LIMIT: usize = 0x290;
const XLF_KERNEL_64: u16 = 1;
/// Offset of the 64-bit entry in the protected-mode kernel.
pub const ENTRY_64: u64 = 0x200;

/// What the header of a verified kernel says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernel {
    /// Bytes of RAM that the kernel needs from [`KERNEL_GPA`] on, to unpack itself.
    pub init_size: u64,
}

impl Kernel {
    /// Reads the header of a kernel file of which the first `setup_bytes` are real-mode code.
    ///
    /// # Errors
    /// When it is no 64-bit bzImage made to run at [`KERNEL_GPA`]; names the field.
    pub fn parse(file: &[u8], setup_bytes: u32) -> Result<Self, Refusal> {
        let word = |offset: usize, field| -> Result<u32, Refusal> {
            let bytes =
                file.get(offset..).and_then(|rest| rest.first_chunk()).ok_or(Refusal::Kernel(field))?;
            Ok(u32::from_le_bytes(*bytes))
        };
        let setup_sectors = u64::from(*file.get(HEADER_OFFSET).ok_or(Refusal::Kernel("length"))?);
        let checks = [
            ((setup_sectors + 1) * SECTOR == u64::from(setup_bytes), "set-up size"),
            (word(0x202, "magic")? == u32::from_le_bytes(*b"HdrS"), "magic"),
            (word(0x206, "protocol version")? & 0xFFFF >= 0x020C, "protocol version"),
            (word(0x236, "64-bit entry flag")? & u32::from(XLF_KERNEL_64) != 0, "64-bit entry flag"),
            (word(0x258, "preferred address")? == 0x100_0000, "preferred address"),
            (word(0x25C, "preferred address")? == 0, "preferred address"),
        ];
        if let Some((_, field)) = checks.iter().find(|(good, _)| !good) {
            return Err(Refusal::Kernel(field));
        }
        Ok(Self { init_size: u64::from(word(0x260, "memory size")?) })
    }

    /// Where RAM must reach to, without a gap, for this kernel to run.
    #[must_use]
    pub const fn needed_end(&self) -> u64 {
        KERNEL_GPA + self.init_size
    }
}

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
const E820_ACPI: u32 = 3;
const E820_NVS: u32 = 4;
const E820_COUNT: usize = 0x1E8;
const E820_TABLE: usize = 0x2D0;
const E820_ENTRY_BYTES: usize = 20;

/// Fills the zero page for a verified kernel `file`. `setup_data` is the first of a list of further data, or 0.
///
/// # Errors
/// When the kernel's header does not fit into the zero page.
pub fn write_boot_params(
    page: &mut [u8; 4096],
    file: &[u8],
    ram: &Ram,
    setup_data: u64,
) -> Result<(), Refusal> {
    page.fill(0);
    let length = usize::from(*file.get(0x201).ok_or(Refusal::Kernel("header length"))?);
    let end = HEADER_JUMP + length;
    let header = file.get(HEADER_OFFSET..end).filter(|_| end <= HEADER_LIMIT);
    let mut table = Table(page);
    table.put(HEADER_OFFSET, header.ok_or(Refusal::Kernel("header length"))?);
    table.put(0x210, &[0xFF]); // type_of_loader: unknown
    table.put(0x228, &low_u32(COMMAND_LINE_GPA)); // cmd_line_ptr
    table.put(0x218, &[0; 8]); // no initial RAM disk
    table.put(0x250, &setup_data.to_le_bytes());
    table.put(0x070, &ACPI_GPA.to_le_bytes()); // acpi_rsdp_addr
    write_e820(&mut table, ram);
    Ok(())
}

fn low_u32(gpa: u64) -> [u8; 4] {
    let [a, b, c, d, ..] = gpa.to_le_bytes();
    [a, b, c, d]
}

fn write_e820(table: &mut Table<'_>, ram: &Ram) {
    let fixed = [
        (Range { base: 0, end: CONVENTIONAL_LIMIT }, E820_RAM),
        (Range { base: ACPI_GPA, end: ACPI_LIMIT }, E820_ACPI),
        (Range { base: STUB_GPA, end: CC_BLOB_GPA }, E820_RESERVED),
        // What Linux reads when it runs. A confidential guest takes plain reserved memory for shared with the
        // host when it maps it late, so these pages are of the kind that it takes for private.
        (Range { base: CC_BLOB_GPA, end: GHCB_GPA }, E820_NVS),
        (Range { base: GHCB_GPA, end: STUB_END }, E820_RESERVED),
    ];
    // The first run of RAM begins at 0 and reaches past the kernel: the memory map was checked for that.
    let rest = ram.ranges().iter().map(|range| Range { base: range.base.max(STUB_END), end: range.end });
    let mut count: u8 = 0;
    for (range, kind) in fixed.into_iter().chain(rest.map(|range| (range, E820_RAM))) {
        let offset = E820_TABLE + usize::from(count) * E820_ENTRY_BYTES;
        table.put(offset, &range.base.to_le_bytes());
        table.put(offset + 8, &(range.end - range.base).to_le_bytes());
        table.put(offset + 16, &kind.to_le_bytes());
        count += 1;
    }
    table.put(E820_COUNT, &[count]);
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec;
    use std::vec::Vec;

    use boot_abi::{MEMORY_MAP_ENTRIES, MemoryMapEntry};

    use super::*;

    fn kernel() -> Vec<u8> {
        let mut file = vec![0; 4096];
        file[0x1F1] = 3;
        file[0x201] = 0x6A;
        file[0x202..0x206].copy_from_slice(b"HdrS");
        file[0x206] = 0x0F;
        file[0x207] = 0x02;
        file[0x236] = 1;
        file[0x258..0x260].copy_from_slice(&KERNEL_GPA.to_le_bytes());
        file[0x260..0x264].copy_from_slice(&0x100_0000u32.to_le_bytes());
        file
    }

    fn ram(entries: &[(u64, u64)]) -> Ram {
        let none = MemoryMapEntry { first_page: 0, pages: 0, kind: 0, flags: 0, reserved: 0 };
        let mut map = [none; MEMORY_MAP_ENTRIES];
        for (slot, &(first_page, pages)) in map.iter_mut().zip(entries) {
            *slot = MemoryMapEntry { first_page, pages, ..none };
        }
        Ram::check(&map, 0).unwrap()
    }

    #[test]
    fn a_kernel_is_described() {
        let parsed = Kernel::parse(&kernel(), 4 * 512).unwrap();
        assert_eq!(parsed.needed_end(), 0x200_0000);
    }

    #[test]
    fn each_unusable_field_is_named() {
        let cases = [
            (0x1F1, "set-up size"),
            (0x202, "magic"),
            (0x207, "protocol version"),
            (0x236, "64-bit entry flag"),
            (0x25B, "preferred address"),
            (0x25F, "preferred address"),
        ];
        for (offset, field) in cases {
            let mut bad = kernel();
            bad[offset] ^= if offset == 0x207 { 2 } else { 1 };
            assert_eq!(Kernel::parse(&bad, 4 * 512), Err(Refusal::Kernel(field)));
        }
        for length in 0..0x264 {
            assert!(Kernel::parse(&kernel()[..length], 4 * 512).is_err(), "{length}");
        }
    }

    #[test]
    fn the_zero_page_has_header_and_memory() {
        let mut page = [0xAA; 4096];
        write_boot_params(&mut page, &kernel(), &ram(&[(0, 0xC_0000), (0x10_0000, 1)]), CC_BLOB_GPA).unwrap();
        assert_eq!(&page[0x202..0x206], b"HdrS");
        assert_eq!(page[0x210], 0xFF);
        assert_eq!(page[0x250..0x258], CC_BLOB_GPA.to_le_bytes());
        assert_eq!(page[0x1E8], 7);
        let entry = |index: usize| {
            let at = 0x2D0 + index * 20;
            let word = |at: usize| u64::from_le_bytes(page[at..at + 8].try_into().unwrap());
            (word(at), word(at + 8), page[at + 16])
        };
        assert_eq!(entry(0), (0, 0x9_F000, 1));
        assert_eq!(entry(1), (0xE_0000, 0x2_0000, 3));
        assert_eq!(entry(2), (0x10_0000, 0x4_8000, 2));
        assert_eq!(entry(3), (0x14_8000, 0x2000, 4));
        assert_eq!(entry(4), (0x14_A000, 0x6000, 2));
        assert_eq!(entry(5), (0x15_0000, 0xC000_0000 - 0x15_0000, 1));
        assert_eq!(entry(6), (0x1_0000_0000, 0x1000, 1));
    }

    #[test]
    fn an_overlong_header_is_refused() {
        let mut file = kernel();
        file[0x201] = 0xFF;
        let refused = write_boot_params(&mut [0; 4096], &file, &ram(&[(0, 0x8000)]), 0);
        assert_eq!(refused, Err(Refusal::Kernel("header length")));
    }
}
