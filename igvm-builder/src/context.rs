//! The first processor's state: 64-bit mode, on the stub's page tables, at its first instruction.

use igvm::snp_defs::{SevSelector, SevVmsa};
use igvm_defs::IgvmNativeVpContextX64;
use launch::snp::vmsa;
use zerocopy::FromZeros as _;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_WP: u64 = 1 << 16;
const CR0_PG: u64 = 1 << 31;
const CR0: u64 = CR0_PE | CR0_ET | CR0_NE | CR0_WP | CR0_PG;
const CR4_PAE: u64 = 1 << 5;
const EFER: u64 = EFER_LME | EFER_LMA;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const RFLAGS_RESERVED: u64 = 2;

const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
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
        code_selector: CODE_SELECTOR,
        code_attributes: CODE_ATTRIBUTES,
        code_limit: u32::MAX,
        data_selector: DATA_SELECTOR,
        data_attributes: DATA_ATTRIBUTES,
        data_limit: u32::MAX,
        cr0: CR0,
        cr3: boot_abi::PAGE_TABLES_GPA,
        cr4: CR4_PAE,
        efer: EFER,
        ..IgvmNativeVpContextX64::new_zeroed()
    }
}

/// The same state as a save area, in the form that KVM gives it: what the file says is what is measured there
/// too. What does not matter to 64-bit mode is as at reset.
pub fn snp(entry: u64) -> SevVmsa {
    let base = vmsa::base();
    let segment =
        |selector, attributes| SevSelector { selector, attrib: packed(attributes), limit: u32::MAX, base: 0 };
    let data = segment(DATA_SELECTOR, DATA_ATTRIBUTES);
    SevVmsa {
        cs: segment(CODE_SELECTOR, CODE_ATTRIBUTES),
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        cr0: CR0,
        cr3: boot_abi::PAGE_TABLES_GPA,
        cr4: base.cr4 | CR4_PAE,
        efer: base.efer | EFER,
        rip: entry,
        ..vmsa::reset(vmsa::RESET_RDX)
    }
}

/// Segment attributes as save areas have them: the four bits of limit between the two halves left out
/// (AMD64 manual volume 2, section 15.5.1).
const fn packed(attributes: u16) -> u16 {
    (attributes >> 4) & 0xF00 | attributes & 0xFF
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_save_area_is_in_the_form_that_kvm_builds() {
        let vmsa = snp(boot_abi::STUB_GPA);
        assert_eq!((vmsa.cs.attrib, vmsa.ss.attrib), (0xA9B, 0xC93));
        assert_eq!((vmsa.efer, vmsa.cr4, vmsa.cr0), (0x1500, 0x60, 0x8001_0031));
        assert_eq!((vmsa.tr.attrib, vmsa.ldtr.attrib), (0x8B, 0x82));
        assert_eq!((vmsa.dr6, vmsa.dr7, vmsa.pat, vmsa.xcr0), (0xFFFF_0FF0, 0x400, 0x7_0406_0007_0406, 1));
        assert_eq!(u64::from(vmsa.sev_features), 1);
    }
}
