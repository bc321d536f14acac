//! The SNP guest policy (AMD SEV-SNP firmware ABI, publication 56860, GUEST_POLICY).

use std::fmt;

/// What the guest's owner lets the host do with the guest. Fixed at launch, shown in every report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GuestPolicy(pub u64);

impl GuestPolicy {
    /// Simultaneous multithreading may be on in the host.
    pub const SMT: u64 = 1 << 16;
    /// Reserved, and must be one.
    pub const RESERVED_ONE: u64 = 1 << 17;
    /// A migration agent may be associated with the guest.
    pub const MIGRATE_MA: u64 = 1 << 18;
    /// The host may read and write the guest's memory through the firmware.
    pub const DEBUG: u64 = 1 << 19;
    /// The guest runs on one socket only.
    pub const SINGLE_SOCKET: u64 = 1 << 20;
    /// Memory and devices may be on CXL.
    pub const CXL: u64 = 1 << 21;
    /// Memory encryption must be AES-256-XTS.
    pub const MEM_AES_256_XTS: u64 = 1 << 22;
    /// Running average power limiting must be off.
    pub const RAPL_DISABLED: u64 = 1 << 23;
    /// The host must not see ciphertext.
    pub const CIPHERTEXT_HIDING: u64 = 1 << 24;
    /// The host may not move or swap the guest's pages.
    pub const PAGE_SWAP_DISABLED: u64 = 1 << 25;

    /// Bits 26 and up: must be zero.
    const RESERVED_ZERO: u64 = !((1 << 26) - 1);

    /// What production images ask for: multithreading allowed; no debugging, no migration, any ABI version.
    pub const PRODUCTION: Self = Self(Self::SMT | Self::RESERVED_ONE);

    /// Each bit with its word, for people.
    const WORDS: [(u64, &'static str); 9] = [
        (Self::SMT, "smt"),
        (Self::MIGRATE_MA, "migrate-ma"),
        (Self::DEBUG, "debug"),
        (Self::SINGLE_SOCKET, "single-socket"),
        (Self::CXL, "cxl"),
        (Self::MEM_AES_256_XTS, "mem-aes-256-xts"),
        (Self::RAPL_DISABLED, "rapl-disabled"),
        (Self::CIPHERTEXT_HIDING, "ciphertext-hiding"),
        (Self::PAGE_SWAP_DISABLED, "page-swap-disabled"),
    ];

    /// Whether all of `bits` are set.
    #[must_use]
    pub fn has(self, bits: u64) -> bool {
        self.0 & bits == bits
    }

    /// The lowest firmware ABI version, major and minor, that may run the guest.
    #[must_use]
    pub fn abi(self) -> (u8, u8) {
        let [minor, major, ..] = self.0.to_le_bytes();
        (major, minor)
    }

    /// Whether the reserved bits are as the specification wants them: bit 17 one, bits 26 to 63 zero.
    #[must_use]
    pub fn reserved_bits_hold(self) -> bool {
        self.has(Self::RESERVED_ONE) && self.0 & Self::RESERVED_ZERO == 0
    }

    /// The words of the bits that are set, in bit order; reserved bits are not among them.
    pub fn words(self) -> impl Iterator<Item = &'static str> {
        Self::WORDS.into_iter().filter(move |(bit, _)| self.has(*bit)).map(|(_, word)| word)
    }
}

/// `0x30000 (abi 0.0, smt)`
impl fmt::Display for GuestPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.abi();
        write!(f, "{:#x} (abi {major}.{minor}", self.0)?;
        for word in self.words() {
            write!(f, ", {word}")?;
        }
        if !self.reserved_bits_hold() {
            f.write_str(", reserved bits wrong")?;
        }
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_the_bits_that_are_set() {
        assert_eq!(GuestPolicy::PRODUCTION.0, 0x3_0000);
        assert_eq!(GuestPolicy::PRODUCTION.to_string(), "0x30000 (abi 0.0, smt)");
        assert_eq!(GuestPolicy(0xb_0133).to_string(), "0xb0133 (abi 1.51, smt, debug)");
        assert_eq!(GuestPolicy(0).to_string(), "0x0 (abi 0.0, reserved bits wrong)");
        assert!(!GuestPolicy(0x3_0000 | 1 << 40).reserved_bits_hold());
        assert_eq!(GuestPolicy(u64::MAX).words().count(), 9);
    }
}
