//! A virtual CPU's measured state, register by register.

use igvm::snp_defs::{SevSelector, SevVmsa};
use igvm_defs::IgvmNativeVpContextX64;
use launch::image::Start;
use serde::Serialize;
use zerocopy::{FromZeros as _, IntoBytes as _};

/// One register.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Register {
    /// Its name, in lower case; a segment's parts are named like `cs.base`.
    pub name: String,
    /// Its value, in hexadecimal.
    pub value: String,
}

/// Names and values of registers.
macro_rules! plain {
    ($state:ident; $($name:ident)*) => {
        [$((stringify!($name), u64::from($state.$name))),*]
    };
}

/// Sets registers to 0.
macro_rules! clear {
    ($state:ident; $($name:ident)*) => {
        $($state.$name.zero();)*
    };
}

/// Calls a macro with the registers of a save area that are numbers of their own.
macro_rules! save_area_registers {
    ($callback:ident, $state:ident) => {
        $callback!($state;
            vmpl cpl efer xss cr4 cr3 cr0 dr7 dr6 rflags rip dr0 dr1 dr2 dr3 rsp s_cet ssp rax star lstar cstar sfmask
            kernel_gs_base sysenter_cs sysenter_esp sysenter_eip cr2 pat dbgctl spec_ctrl rcx rdx rbx rbp rsi rdi
            r8 r9 r10 r11 r12 r13 r14 r15 sev_features virtual_tom xcr0 mxcsr x87_ftw x87_fsw x87_fcw x87_op
        )
    };
}

/// Every register of the first virtual CPU, zeros too.
#[must_use]
pub fn all(start: &Start) -> Vec<Register> {
    match start {
        Start::Native(context) => native(context),
        Start::Snp { vmsa, .. } => save_area(vmsa),
        Start::Reset => Vec::new(),
    }
}

/// The registers that are not zero: the rest of a save area is.
#[must_use]
pub fn set(start: &Start) -> Vec<Register> {
    all(start).into_iter().filter(|register| register.value != "0x0").collect()
}

/// Every register of a save area. What has no name here is shown as the 8 bytes at its offset, so that no two save
/// areas that differ look alike.
#[must_use]
pub fn save_area(vmsa: &SevVmsa) -> Vec<Register> {
    let mut registers = Vec::new();
    let segments: [(&str, SevSelector); 10] = [
        ("es", vmsa.es),
        ("cs", vmsa.cs),
        ("ss", vmsa.ss),
        ("ds", vmsa.ds),
        ("fs", vmsa.fs),
        ("gs", vmsa.gs),
        ("gdtr", vmsa.gdtr),
        ("ldtr", vmsa.ldtr),
        ("idtr", vmsa.idtr),
        ("tr", vmsa.tr),
    ];
    for (name, SevSelector { selector, attrib, limit, base }) in segments {
        registers.push(register(&format!("{name}.selector"), selector.into()));
        registers.push(register(&format!("{name}.attributes"), attrib.into()));
        registers.push(register(&format!("{name}.limit"), limit.into()));
        registers.push(register(&format!("{name}.base"), base));
    }
    let named = save_area_registers!(plain, vmsa);
    registers.extend(named.into_iter().map(|(name, value)| register(name, value)));
    registers.extend(unnamed(vmsa));
    registers
}

/// What is left of a save area when every named register is cleared.
fn unnamed(vmsa: &SevVmsa) -> Vec<Register> {
    let mut rest = *vmsa;
    let none = SevSelector { selector: 0, attrib: 0, limit: 0, base: 0 };
    for segment in [&mut rest.es, &mut rest.cs, &mut rest.ss, &mut rest.ds, &mut rest.fs, &mut rest.gs] {
        *segment = none;
    }
    for table in [&mut rest.gdtr, &mut rest.ldtr, &mut rest.idtr, &mut rest.tr] {
        *table = none;
    }
    save_area_registers!(clear, rest);
    let words = rest.as_bytes().chunks(8).enumerate();
    let words = words.filter(|(_, word)| word.iter().any(|byte| *byte != 0));
    let words = words.map(|(index, word)| {
        let value = word.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        register(&format!("bytes at {:#x}", index * 8), value)
    });
    words.collect()
}

fn native(context: &IgvmNativeVpContextX64) -> Vec<Register> {
    let named = plain!(context;
        rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15 rip rflags idtr_base idtr_limit gdtr_base
        gdtr_limit code_selector code_attributes code_base code_limit data_selector data_attributes data_base
        data_limit gs_base cr0 cr3 cr4 efer
    );
    named.into_iter().map(|(name, value)| register(name, value)).collect()
}

fn register(name: &str, value: u64) -> Register {
    Register { name: name.into(), value: format!("{value:#x}") }
}

/// The bits of `SEV_FEATURES` in words (AMD64 architecture manual, volume 2, section 15.34.10 and appendix B).
#[must_use]
pub fn feature_words(features: u64) -> Vec<&'static str> {
    const WORDS: [(u32, &str); 12] = [
        (0, "snp"),
        (1, "vtom"),
        (2, "reflect-vc"),
        (3, "restricted-injection"),
        (4, "alternate-injection"),
        (5, "debug-swap"),
        (6, "prevent-host-ibs"),
        (7, "btb-isolation"),
        (8, "vmpl-sss"),
        (9, "secure-tsc"),
        (14, "register-protection"),
        (15, "smt-protection"),
    ];
    WORDS.into_iter().filter(|(bit, _)| features >> bit & 1 == 1).map(|(_, word)| word).collect()
}

#[cfg(test)]
mod tests {
    use zerocopy::FromBytes as _;

    use super::*;

    #[test]
    fn every_byte_of_a_save_area_shows() {
        let zero = vec![0; size_of::<SevVmsa>()];
        let shown = |bytes: &[u8]| save_area(&SevVmsa::read_from_bytes(bytes).unwrap());
        let base = shown(&zero);
        for at in 0..zero.len() {
            let mut bytes = zero.clone();
            bytes[at] = 1;
            assert_ne!(shown(&bytes), base, "byte {at:#x}");
        }
    }

    #[test]
    fn features_in_words() {
        assert_eq!(feature_words(0x29), ["snp", "restricted-injection", "debug-swap"]);
        assert!(feature_words(0).is_empty());
    }
}
