//! Product lines and TCB versions (AMD SEV-SNP firmware ABI, publication 56860, TCB_VERSION).
//!
//! The eight bytes of a TCB version mean different things on different product lines, so raw bytes are compared by
//! nobody: they are first decoded for a line.

use std::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A line of processors, each with an AMD root key of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Product {
    /// EPYC 7003, Zen 3.
    Milan,
    /// EPYC 9004, 8004 and 4004, Zen 4; Bergamo and Siena count as Genoa.
    Genoa,
    /// EPYC 9005, Zen 5.
    Turin,
}

impl Product {
    /// All lines, oldest first.
    pub const ALL: [Self; 3] = [Self::Milan, Self::Genoa, Self::Turin];

    /// The line of a processor by its combined CPUID family and model; `None` if it is not known.
    #[must_use]
    pub fn from_cpuid(family: u8, model: u8) -> Option<Self> {
        match (family, model) {
            (0x19, 0x00..=0x0f) => Some(Self::Milan),
            (0x19, 0x10..=0x1f | 0xa0..=0xaf) => Some(Self::Genoa),
            (0x1a, 0x00..=0x11) => Some(Self::Turin),
            _ => None,
        }
    }

    /// AMD's name of the line, as in certificates and in the key distribution service's addresses.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Milan => "Milan",
            Self::Genoa => "Genoa",
            Self::Turin => "Turin",
        }
    }
}

impl fmt::Display for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// TCB_VERSION as it stands in a report: eight bytes whose layout depends on the product line.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(transparent)]
pub struct RawTcb(pub [u8; 8]);

impl RawTcb {
    /// Decodes for `product`; `None` when a byte that is reserved there is not zero.
    #[must_use]
    pub fn decode(self, product: Product) -> Option<Tcb> {
        match (product, self.0) {
            (Product::Milan | Product::Genoa, [bootloader, tee, 0, 0, 0, 0, snp, microcode]) => {
                Some(Tcb { fmc: None, bootloader, tee, snp, microcode })
            }
            (Product::Turin, [fmc, bootloader, tee, snp, 0, 0, 0, microcode]) => {
                Some(Tcb { fmc: Some(fmc), bootloader, tee, snp, microcode })
            }
            _ => None,
        }
    }
}

/// A TCB version: the security version number of each part of the platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tcb {
    /// The firmware management component; on Turin and later only.
    pub fmc: Option<u8>,
    /// The secure processor's boot loader.
    pub bootloader: u8,
    /// The secure processor's operating system.
    pub tee: u8,
    /// The SNP firmware.
    pub snp: u8,
    /// The lowest microcode patch level of all cores.
    pub microcode: u8,
}

impl Tcb {
    /// The bytes of this version on `product`. A missing `fmc` is 0 on Turin; a superfluous one is dropped elsewhere.
    #[must_use]
    pub fn encode(self, product: Product) -> RawTcb {
        RawTcb(match product {
            Product::Milan | Product::Genoa => {
                [self.bootloader, self.tee, 0, 0, 0, 0, self.snp, self.microcode]
            }
            Product::Turin => {
                [self.fmc.unwrap_or(0), self.bootloader, self.tee, self.snp, 0, 0, 0, self.microcode]
            }
        })
    }

    /// Whether every part is at least what `floor` has. Parts are independent: a newer microcode makes up for nothing.
    #[must_use]
    pub fn meets(&self, floor: &Self) -> bool {
        self.fmc.unwrap_or(0) >= floor.fmc.unwrap_or(0)
            && self.bootloader >= floor.bootloader
            && self.tee >= floor.tee
            && self.snp >= floor.snp
            && self.microcode >= floor.microcode
    }
}

impl fmt::Display for Tcb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(fmc) = self.fmc {
            write!(f, "fmc {fmc}, ")?;
        }
        let Self { bootloader, tee, snp, microcode, .. } = self;
        write!(f, "bootloader {bootloader}, tee {tee}, snp {snp}, microcode {microcode}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOOR: Tcb = Tcb { fmc: None, bootloader: 3, tee: 1, snp: 8, microcode: 115 };

    #[test]
    fn layouts_differ_by_product() {
        let raw = RawTcb([3, 1, 0, 0, 0, 0, 8, 115]);
        assert_eq!(raw.decode(Product::Milan), Some(FLOOR));
        assert_eq!(raw.decode(Product::Turin), None, "bytes 4 to 6 are reserved on Turin");
        let turin = Tcb { fmc: Some(1), ..FLOOR };
        assert_eq!(turin.encode(Product::Turin), RawTcb([1, 3, 1, 8, 0, 0, 0, 115]));
        assert_eq!(turin.encode(Product::Turin).decode(Product::Turin), Some(turin));
        assert_eq!(turin.encode(Product::Turin).decode(Product::Genoa), None);
    }

    #[test]
    fn one_part_below_the_floor_is_below_the_floor() {
        assert!(FLOOR.meets(&FLOOR));
        for low in [
            Tcb { bootloader: 2, microcode: 255, ..FLOOR },
            Tcb { tee: 0, ..FLOOR },
            Tcb { snp: 7, ..FLOOR },
            Tcb { microcode: 114, ..FLOOR },
        ] {
            assert!(!low.meets(&FLOOR), "{low}");
        }
        assert!(!FLOOR.meets(&Tcb { fmc: Some(1), ..FLOOR }));
    }

    #[test]
    fn products_by_cpuid() {
        assert_eq!(Product::from_cpuid(0x19, 0x01), Some(Product::Milan));
        assert_eq!(Product::from_cpuid(0x19, 0x11), Some(Product::Genoa));
        assert_eq!(Product::from_cpuid(0x19, 0xa0), Some(Product::Genoa));
        assert_eq!(Product::from_cpuid(0x1a, 0x02), Some(Product::Turin));
        assert_eq!(Product::from_cpuid(0x19, 0x21), None);
        assert_eq!(Product::from_cpuid(0x17, 0x01), None);
    }
}
