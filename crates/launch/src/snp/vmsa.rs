//! Save areas: a virtual CPU's registers as SEV-SNP measures them (AMD64 architecture manual, volume 2,
//! appendix B, table B-4).

use igvm::snp_defs::{SevFeatures, SevSelector, SevVmsa};
use zerocopy::{FromZeros as _, IntoBytes as _};

/// Where KVM says that save areas are, in their `PAGE_INFO` records.
pub const KVM_GPA: u64 = 0xFFFF_FFFF_F000;
/// RDX of virtual CPUs at reset under our VMM, which sets their registers itself: the digest does not depend
/// on the processor's model.
pub const RESET_RDX: u64 = 0;

const EFER_SVME: u64 = 1 << 12;
const CR0_ET: u64 = 1 << 4;
const CR4_MCE: u64 = 1 << 6;
const DR6_RESET: u64 = 0xFFFF_0FF0;
const DR7_RESET: u64 = 0x400;
const PAT_RESET: u64 = 0x0007_0406_0007_0406;
const MXCSR_RESET: u32 = 0x1F80;
const FCW_RESET: u16 = 0x37F;

/// What KVM puts into every save area beyond the registers that its user sets: SVM and machine checks on,
/// debug, FPU and feature registers at their reset values.
#[must_use]
pub fn base() -> SevVmsa {
    SevVmsa {
        efer: EFER_SVME,
        cr4: CR4_MCE,
        dr6: DR6_RESET,
        dr7: DR7_RESET,
        pat: PAT_RESET,
        xcr0: 1,
        mxcsr: MXCSR_RESET,
        x87_fcw: FCW_RESET,
        rflags: 2,
        sev_features: SevFeatures::new().with_snp(true),
        ..SevVmsa::new_zeroed()
    }
}

/// The architectural reset state.
#[must_use]
pub fn reset(rdx: u64) -> SevVmsa {
    let segment = |selector, attrib, base| SevSelector { selector, attrib, limit: 0xFFFF, base };
    let data = segment(0, 0x93, 0);
    SevVmsa {
        cs: segment(0xF000, 0x9B, 0xFFFF_0000),
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        gdtr: segment(0, 0, 0),
        idtr: segment(0, 0, 0),
        ldtr: segment(0, 0x82, 0),
        tr: segment(0, 0x8B, 0),
        cr0: CR0_ET,
        rip: 0xFFF0,
        rdx,
        ..base()
    }
}

/// The page of a save area.
#[must_use]
pub fn page(vmsa: &SevVmsa) -> [u8; 4096] {
    let mut page = [0; 4096];
    let bytes = vmsa.as_bytes();
    page[..bytes.len()].copy_from_slice(bytes);
    page
}
