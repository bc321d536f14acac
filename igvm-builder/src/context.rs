//! The first processor's state on an unprotected machine: 64-bit mode, on the stub's page tables, at its
//! first instruction.

use igvm_defs::IgvmNativeVpContextX64;
use zerocopy::FromZeros as _;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_WP: u64 = 1 << 16;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const RFLAGS_RESERVED: u64 = 2;

/// Segment attributes (AMD64 manual volume 2, section 4.7): present, code, execute/read, accessed, long,
/// 4 KiB granular.
const CODE_ATTRIBUTES: u16 = 0xA09B;
/// Present, data, read/write, accessed, 32-bit, 4 KiB granular.
const DATA_ATTRIBUTES: u16 = 0xC093;

/// The state in which the loader enters the stub.
pub fn native(entry: u64) -> IgvmNativeVpContextX64 {
    IgvmNativeVpContextX64 {
        rip: entry,
        rflags: RFLAGS_RESERVED,
        code_selector: 0x10,
        code_attributes: CODE_ATTRIBUTES,
        code_limit: u32::MAX,
        data_selector: 0x18,
        data_attributes: DATA_ATTRIBUTES,
        data_limit: u32::MAX,
        cr0: CR0_PE | CR0_ET | CR0_NE | CR0_WP | CR0_PG,
        cr3: boot_abi::PAGE_TABLES_GPA,
        cr4: CR4_PAE,
        efer: EFER_LME | EFER_LMA,
        ..IgvmNativeVpContextX64::new_zeroed()
    }
}
