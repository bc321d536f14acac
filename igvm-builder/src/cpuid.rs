//! The CPUID page of SEV-SNP as the file has it: which leaves the guest wants (AMD SEV-SNP firmware ABI
//! specification, section 7.1, and `SNP_LAUNCH_UPDATE`'s CPUID page).
//!
//! The page's content is not measured: a loader fills in the processor's answers, the secure processor checks
//! them, and the stub checks them again. Loaders that make the list themselves ignore this one.

/// Entries that a page has room for.
const MAX_LEAVES: usize = 64;
/// Bytes before the first entry: the count and padding.
const HEADER_BYTES: usize = 16;
/// Bytes of an entry: leaf, subleaf, XCR0, XSS, the four registers, padding.
const ENTRY_BYTES: usize = 48;

/// Leaf of the XSAVE area's sizes, which depend on XCR0.
const XSAVE_LEAF: u32 = 0xD;
/// XCR0 that the sizes are asked for: x87 alone, as at reset.
const RESET_XCR0: u64 = 1;

/// Leaves and subleaves: what Linux reads before and while it brings up its processors.
const LEAVES: [(u32, u32); 33] = [
    (0x0, 0),
    (0x1, 0),
    (0x5, 0),
    (0x6, 0),
    (0x7, 0),
    (0x7, 1),
    (0xB, 0),
    (0xB, 1),
    (XSAVE_LEAF, 0),
    (XSAVE_LEAF, 1),
    (XSAVE_LEAF, 2),
    (XSAVE_LEAF, 9),
    (0x8000_0000, 0),
    (0x8000_0001, 0),
    (0x8000_0002, 0),
    (0x8000_0003, 0),
    (0x8000_0004, 0),
    (0x8000_0005, 0),
    (0x8000_0006, 0),
    (0x8000_0007, 0),
    (0x8000_0008, 0),
    (0x8000_000A, 0),
    (0x8000_0019, 0),
    (0x8000_001A, 0),
    (0x8000_001B, 0),
    (0x8000_001D, 0),
    (0x8000_001D, 1),
    (0x8000_001D, 2),
    (0x8000_001D, 3),
    (0x8000_001E, 0),
    (0x8000_001F, 0),
    (0x8000_0020, 0),
    (0x8000_0021, 0),
];

const _: () = assert!(LEAVES.len() <= MAX_LEAVES);
const _: () = assert!(HEADER_BYTES + MAX_LEAVES * ENTRY_BYTES <= 4096);

/// The page, without answers.
pub fn page() -> Vec<u8> {
    let mut page = vec![0; HEADER_BYTES];
    page[..4].copy_from_slice(&u32::try_from(LEAVES.len()).unwrap_or(0).to_le_bytes());
    for (leaf, subleaf) in LEAVES {
        let xcr0 = if leaf == XSAVE_LEAF { RESET_XCR0 } else { 0 };
        let mut entry = [0; ENTRY_BYTES];
        entry[..4].copy_from_slice(&leaf.to_le_bytes());
        entry[4..8].copy_from_slice(&subleaf.to_le_bytes());
        entry[8..16].copy_from_slice(&xcr0.to_le_bytes());
        page.extend(entry);
    }
    page.resize(4096, 0);
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_leaf_is_asked_for_once() {
        assert!(LEAVES.is_sorted_by(|a, b| a < b));
        let page = page();
        assert_eq!((page.len(), page[0]), (4096, 33));
        assert_eq!(page[16 + 48..16 + 52], 1u32.to_le_bytes());
        assert_eq!(page[16 + 8 * 48..][..16], [0xD, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    }
}
