//! What secure processors and guests say by number, in words.

/// A status of AMD's secure processor (Linux `include/uapi/linux/psp-sev.h`, `enum sev_ret_code`).
pub fn firmware_status(status: u32) -> String {
    let words = match status {
        0x01 => "the platform is not in a state that allows this",
        0x02 => "the guest is not in a state that allows this",
        0x03 => "the platform's configuration is invalid",
        0x04 => "a buffer is too small",
        0x05 => "the platform is owned already",
        0x06 => "a certificate is invalid",
        0x07 => "the guest's policy does not allow this",
        0x08 => "the guest is not active",
        0x09 => "an address is invalid",
        0x0A => "a signature does not verify",
        0x0B => "the measurement is not the one that the ID block names",
        0x0C => "the address space identifier is in use",
        0x0D => "the address space identifier is invalid",
        0x0E => "the caches have to be flushed first (WBINVD)",
        0x0F => "the data fabric has to be flushed first (DF_FLUSH)",
        0x10 => "the guest is invalid",
        0x11 => "the command is invalid",
        0x12 => "the guest is active",
        0x13 => "the hardware has failed",
        0x14 => "the hardware is not in a safe state",
        0x15 => "the feature is not supported",
        0x16 => "a parameter is invalid",
        0x17 => "the secure processor is out of resources",
        0x18 => "secure data is damaged",
        0x19 => "a page has the wrong size",
        0x1A => "a page is in the wrong state",
        0x1B => "a metadata entry is invalid",
        0x1C => "a page has the wrong owner",
        0x1D => "a message counter has overflowed",
        0x20 => "the reverse map table has to be initialised first",
        0x21 => "the security version is too low",
        0x22 => "the firmware version is not allowed",
        0x23 => "the platform has to be shut down first",
        0x24 => "the firmware update failed",
        0x25 => "the firmware has to be restored first",
        0x26 => "the reverse map table cannot be initialised",
        0x27 => "a key is invalid",
        _ => "a status that this program does not know",
    };
    format!("secure processor: {words} (status {status:#x})")
}

/// A guest's request to end, from the value of the GHCB register (GHCB specification, revision 2.03, section
/// 2.3.1: bits 12–15 the set of reasons, bits 16–23 the reason).
pub fn ghcb_termination(value: u64) -> String {
    const REQUEST: u64 = 0x100;
    if value & 0xFFF != REQUEST {
        return format!("the guest asked for its end through its GHCB at {value:#x}");
    }
    let (set, code) = (value >> 12 & 0xF, value >> 16 & 0xFF);
    let words = match (set, code) {
        (0, 0) => "general request",
        (0, 1) => "the hypervisor's range of GHCB protocols does not suit the guest",
        (0, 2) => "the hypervisor lacks SEV-SNP features that the guest needs",
        (1, 0) => "Linux: the GHCB's address was not accepted",
        (1, 1) => "Linux: a page could not be converted",
        (1, 2) => "Linux: a page could not be validated",
        (1, 3) => "Linux: not started at VMPL 0",
        (1, 4) => "Linux: the CPUID table is invalid",
        (1, 5) => "Linux: the hypervisor's CPUID is inconsistent",
        (1, 6) => "Linux: the secrets page is invalid",
        _ => "a reason of the guest's own",
    };
    format!("the guest asked for its end: {words} (reason set {set}, code {code})")
}

/// Registers of `KVM_SYSTEM_EVENT_TDX_FATAL`, in their encoding's order (RAX, RCX, RDX, RBX, RSP, RBP, RSI,
/// RDI, R8 to R15).
pub type FatalRegisters = [u64; 16];

/// A TD's fatal error (Intel guest-hypervisor communication interface 1.5, `TDG.VP.VMCALL<ReportFatalError>`):
/// the code is in R12, text of up to 64 bytes in R14, R15, RBX, RDI, RSI, R8, R9 and RDX. The text is the
/// guest's: what is not printable ASCII is left out.
pub fn td_fatal(registers: &FatalRegisters) -> String {
    let [_, _, rdx, rbx, _, _, rsi, rdi, r8, r9, _, _, r12, _, r14, r15] = registers;
    let bytes =
        [r14, r15, rbx, rdi, rsi, r8, r9, rdx].into_iter().flat_map(|register| register.to_le_bytes());
    let text: String = bytes.filter(|byte| matches!(byte, b' '..=b'~')).map(char::from).collect();
    format!("the guest reported a fatal error: code {:#x}, {text:?}", r12 & 0x7FFF_FFFF_FFFF_FFFF)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminations_name_set_code_and_meaning() {
        let linux = ghcb_termination(0x100 | 1 << 12 | 2 << 16);
        assert_eq!(
            linux,
            "the guest asked for its end: Linux: a page could not be validated (reason set 1, code 2)"
        );
        let own = ghcb_termination(0x100 | 5 << 12 | 9 << 16);
        assert!(own.contains("reason of the guest's own (reason set 5, code 9)"), "{own}");
        assert!(ghcb_termination(0x14_A000).contains("GHCB at 0x14a000"));
    }

    #[test]
    fn a_fatal_error_shows_code_and_printable_text() {
        let mut registers = [0; 16];
        registers[12] = 1 << 63 | 0x2A;
        registers[14] = u64::from_le_bytes(*b"kernel\n ");
        registers[2] = u64::from_le_bytes(*b"panic\0\0\x7F");
        assert_eq!(td_fatal(&registers), "the guest reported a fatal error: code 0x2a, \"kernel panic\"");
    }
}
