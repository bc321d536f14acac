//! An image's start state in KVM's registers.

use igvm::snp_defs::{SevSelector, SevVmsa};
use igvm_defs::IgvmNativeVpContextX64;
use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

/// `EFER.SVME`: set in every save area, because the processor runs a guest; not a register of the guest's.
const EFER_SVME: u64 = 1 << 12;
/// `CR4.MCE`: the same.
const CR4_MCE: u64 = 1 << 6;

/// Puts the registers of an ordinary machine's start into `sregs`; the general ones come back.
pub(super) fn native(context: &IgvmNativeVpContextX64, sregs: &mut kvm_sregs) -> kvm_regs {
    let data = segment(
        context.data_selector,
        context.data_attributes,
        u64::from(context.data_base),
        context.data_limit,
    );
    sregs.cs = segment(
        context.code_selector,
        context.code_attributes,
        u64::from(context.code_base),
        context.code_limit,
    );
    (sregs.ds, sregs.es, sregs.fs, sregs.ss) = (data, data, data, data);
    sregs.gs = kvm_segment { base: context.gs_base, ..data };
    (sregs.gdt.base, sregs.gdt.limit) = (context.gdtr_base, context.gdtr_limit);
    (sregs.idt.base, sregs.idt.limit) = (context.idtr_base, context.idtr_limit);
    (sregs.cr0, sregs.cr3, sregs.cr4) = (context.cr0, context.cr3, context.cr4);
    sregs.efer = context.efer;
    kvm_regs {
        rax: context.rax,
        rbx: context.rbx,
        rcx: context.rcx,
        rdx: context.rdx,
        rsi: context.rsi,
        rdi: context.rdi,
        rsp: context.rsp,
        rbp: context.rbp,
        r8: context.r8,
        r9: context.r9,
        r10: context.r10,
        r11: context.r11,
        r12: context.r12,
        r13: context.r13,
        r14: context.r14,
        r15: context.r15,
        rip: context.rip,
        rflags: context.rflags,
    }
}

/// Puts the registers of a save area into `sregs`; the general ones come back. What KVM adds to every save area
/// by itself stays out.
pub(super) fn save_area(vmsa: &SevVmsa, sregs: &mut kvm_sregs) -> kvm_regs {
    (sregs.cs, sregs.ds, sregs.es) = (selector(&vmsa.cs), selector(&vmsa.ds), selector(&vmsa.es));
    (sregs.fs, sregs.gs, sregs.ss) = (selector(&vmsa.fs), selector(&vmsa.gs), selector(&vmsa.ss));
    (sregs.tr, sregs.ldt) = (selector(&vmsa.tr), selector(&vmsa.ldtr));
    (sregs.gdt, sregs.idt) = (table(&vmsa.gdtr), table(&vmsa.idtr));
    (sregs.cr0, sregs.cr2, sregs.cr3) = (vmsa.cr0, vmsa.cr2, vmsa.cr3);
    sregs.cr4 = vmsa.cr4 & !CR4_MCE;
    sregs.efer = vmsa.efer & !EFER_SVME;
    kvm_regs {
        rax: vmsa.rax,
        rbx: vmsa.rbx,
        rcx: vmsa.rcx,
        rdx: vmsa.rdx,
        rsi: vmsa.rsi,
        rdi: vmsa.rdi,
        rsp: vmsa.rsp,
        rbp: vmsa.rbp,
        r8: vmsa.r8,
        r9: vmsa.r9,
        r10: vmsa.r10,
        r11: vmsa.r11,
        r12: vmsa.r12,
        r13: vmsa.r13,
        r14: vmsa.r14,
        r15: vmsa.r15,
        rip: vmsa.rip,
        rflags: vmsa.rflags,
    }
}

/// A save area's attributes are descriptor bits 40–47 and 52–55 without the limit's bits between them (AMD64
/// manual, volume 2, section 15.5.1).
fn selector(of: &SevSelector) -> kvm_segment {
    segment(of.selector, of.attrib & 0xFF | (of.attrib & 0xF00) << 4, of.base, of.limit)
}

fn table(of: &SevSelector) -> kvm_dtable {
    kvm_dtable { base: of.base, limit: u16::try_from(of.limit).unwrap_or(u16::MAX), ..Default::default() }
}

/// A segment from an IGVM context's attributes: descriptor bits 40–55, limit bits cleared.
fn segment(selector: u16, attributes: u16, base: u64, limit: u32) -> kvm_segment {
    let bit = |at: u16| u8::from(attributes >> at & 1 != 0);
    kvm_segment {
        base,
        limit,
        selector,
        type_: u8::try_from(attributes & 0xF).unwrap_or(0),
        s: bit(4),
        dpl: u8::try_from(attributes >> 5 & 3).unwrap_or(0),
        present: bit(7),
        avl: bit(12),
        l: bit(13),
        db: bit(14),
        g: bit(15),
        unusable: 0,
        padding: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The 64-bit code segment of a save area (attributes 0xA9B: G, L; present, code) in KVM's form.
    #[test]
    fn a_save_area_arrives_without_what_kvm_adds() {
        let code = SevSelector { selector: 0x10, attrib: 0xA9B, limit: u32::MAX, base: 0 };
        let vmsa = SevVmsa {
            cs: code,
            efer: 0x1500,
            cr4: 0x60,
            rip: 0x10_0000,
            rsi: 7,
            ..launch::snp::vmsa::base()
        };
        let mut sregs = kvm_sregs::default();
        let regs = save_area(&vmsa, &mut sregs);
        assert_eq!((sregs.efer, sregs.cr4), (0x500, 0x20));
        assert_eq!((sregs.cs.type_, sregs.cs.s, sregs.cs.present), (0xB, 1, 1));
        assert_eq!((sregs.cs.avl, sregs.cs.l, sregs.cs.db, sregs.cs.g), (0, 1, 0, 1));
        assert_eq!((regs.rip, regs.rsi, regs.rflags), (0x10_0000, 7, 2));
    }
}
