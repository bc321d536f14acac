//! The CPUID page, checked (SEV-SNP firmware ABI, section 8.14.2.6; layout in section 7.1).
//!
//! The host fills the page, and no measurement covers it; the secure processor checks feature bits against what
//! the processor has. What it lets pass and Linux believes is checked here: the C-bit's place, the sizes that
//! Linux makes its register save areas of, the source of random numbers, and that no leaf is there twice. The
//! hypervisor's own leaves (0x40000000…) are the host's word by nature, as they are on any machine.

use core::fmt;

use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::C_BIT;

/// Entries that fit.
const MAX_LEAVES: usize = 64;

/// One entry.
#[derive(Debug, Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Entry {
    leaf: [u8; 4],
    subleaf: [u8; 4],
    xcr0: [u8; 8],
    xss: [u8; 8],
    eax: [u8; 4],
    ebx: [u8; 4],
    ecx: [u8; 4],
    edx: [u8; 4],
    reserved: [u8; 8],
}

/// The page's used part.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Page {
    count: [u8; 4],
    reserved: [u8; 12],
    entries: [Entry; MAX_LEAVES],
}

const _: () = assert!(size_of::<Entry>() == 48);
const _: () = assert!(size_of::<Page>() == 16 + 48 * MAX_LEAVES);

/// Why a CPUID page is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CpuidError {
    /// The number of entries.
    Count(u32),
    /// A reserved field is set: of the page, or of the entry for this leaf.
    Reserved(u32),
    /// Not a leaf of the processor's, nor of the hypervisor's.
    Range(u32),
    /// The same leaf and subleaf twice.
    Twice {
        /// EAX of the request.
        leaf: u32,
        /// ECX of the request.
        subleaf: u32,
    },
    /// A leaf that must be there.
    Missing(u32),
    /// SEV-SNP is not among the features of encrypted memory.
    NotSnp(u32),
    /// The place of the C-bit.
    CBit(u32),
    /// No RDRAND, so no randomness that the host does not know.
    NoRandomness,
    /// Sizes of register save areas that no processor has.
    SaveArea {
        /// ECX of the request.
        subleaf: u32,
        /// The size that was found.
        found: u32,
    },
}

impl fmt::Display for CpuidError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CPUID page: ")?;
        match *self {
            Self::Count(found) => write!(f, "expected 1 to 64 leaves, found {found}"),
            Self::Reserved(leaf) => write!(f, "leaf {leaf:#x}: a reserved field is set"),
            Self::Range(leaf) => write!(f, "leaf {leaf:#x}: expected a known range"),
            Self::Twice { leaf, subleaf } => write!(f, "leaf {leaf:#x}, {subleaf:#x}: found twice"),
            Self::Missing(leaf) => write!(f, "leaf {leaf:#x}: expected, not found"),
            Self::NotSnp(found) => write!(f, "leaf 0x8000001f: expected SEV-SNP, found {found:#x}"),
            Self::CBit(found) => write!(f, "C-bit: expected {C_BIT}, found {found}"),
            Self::NoRandomness => f.write_str("leaf 0x1: expected RDRAND, found none"),
            Self::SaveArea { subleaf, found } => {
                write!(f, "leaf 0xd, {subleaf:#x}: found a save area of {found} bytes")
            }
        }
    }
}

/// Checks the page's contents.
///
/// # Errors
/// When a value is there that Linux must not build on.
pub fn check(page: &[u8; 4096]) -> Result<(), CpuidError> {
    let Ok((page, _)) = Page::ref_from_prefix(page) else { return Err(CpuidError::Count(0)) };
    let count = u32::from_le_bytes(page.count);
    let used = usize::try_from(count).ok().filter(|count| *count > 0);
    let entries = used.and_then(|used| page.entries.get(..used)).ok_or(CpuidError::Count(count))?;
    if page.reserved != [0; 12] {
        return Err(CpuidError::Reserved(0));
    }
    for (index, entry) in entries.iter().enumerate() {
        entry.check()?;
        if entries.iter().take(index).any(|earlier| earlier.key() == entry.key()) {
            let (leaf, subleaf) = entry.key();
            return Err(CpuidError::Twice { leaf, subleaf });
        }
    }
    let find = |leaf| {
        let found = entries.iter().find(|entry| entry.key() == (leaf, 0));
        found.ok_or(CpuidError::Missing(leaf))
    };
    check_encryption(find(ENCRYPTION)?)?;
    if word(find(FEATURES)?.ecx) & RDRAND == 0 {
        return Err(CpuidError::NoRandomness);
    }
    check_save_areas(entries)
}

const FEATURES: u32 = 1;
const SAVE_AREAS: u32 = 0xD;
const ENCRYPTION: u32 = 0x8000_001F;
/// Leaf 1, ECX.
const RDRAND: u32 = 1 << 30;
/// Leaf 0x8000001F, EAX: SEV, SEV-ES, SEV-SNP.
const SEV_FEATURES: u32 = 1 << 1 | 1 << 3 | 1 << 4;
/// Legacy region and header of a save area.
const SAVE_AREA_BASE: u32 = 576;
/// Sizes of the components of a save area, by subleaf (AMD64 architecture manual, volume 3, appendix E.3.8): AVX,
/// AVX-512's three, protection keys, and the supervisor's and user's control-flow state.
const COMPONENTS: [(u32, u32); 7] = [(2, 256), (5, 64), (6, 512), (7, 1024), (9, 8), (11, 16), (12, 24)];
/// Components that lie only in compacted areas, so that they have no offset.
const SUPERVISOR: [u32; 2] = [11, 12];

fn word(bytes: [u8; 4]) -> u32 {
    u32::from_le_bytes(bytes)
}

impl Entry {
    fn key(&self) -> (u32, u32) {
        (word(self.leaf), word(self.subleaf))
    }

    fn check(&self) -> Result<(), CpuidError> {
        let (leaf, _) = self.key();
        if self.reserved != [0; 8] {
            return Err(CpuidError::Reserved(leaf));
        }
        let known = [0..=0xFF, 0x4000_0000..=0x4000_00FF, 0x8000_0000..=0x8000_00FF];
        if known.iter().any(|range| range.contains(&leaf)) { Ok(()) } else { Err(CpuidError::Range(leaf)) }
    }
}

fn check_encryption(entry: &Entry) -> Result<(), CpuidError> {
    let features = word(entry.eax);
    if features & SEV_FEATURES != SEV_FEATURES {
        return Err(CpuidError::NotSnp(features));
    }
    let c_bit = word(entry.ebx) & 0x3F;
    if c_bit == u32::from(C_BIT) { Ok(()) } else { Err(CpuidError::CBit(c_bit)) }
}

/// A component that is smaller than the processor's makes Linux's buffer too small for what `XSAVE` writes.
fn check_save_areas(entries: &[Entry]) -> Result<(), CpuidError> {
    let mut largest = SAVE_AREA_BASE;
    for entry in entries.iter().filter(|entry| word(entry.leaf) == SAVE_AREAS && word(entry.subleaf) > 1) {
        let (subleaf, size, offset) = (word(entry.subleaf), word(entry.eax), word(entry.ebx));
        if size == 0 {
            continue;
        }
        let error = CpuidError::SaveArea { subleaf, found: size };
        if !COMPONENTS.contains(&(subleaf, size)) {
            return Err(error);
        }
        if SUPERVISOR.contains(&subleaf) {
            continue;
        }
        if !(SAVE_AREA_BASE..4096).contains(&offset) {
            return Err(error);
        }
        largest = largest.max(offset + size);
    }
    let total = entries.iter().find(|entry| entry.key() == (SAVE_AREAS, 0));
    // ECX: the area for all components; EBX: for those that are on, at least the legacy ones.
    match total.map(|entry| (word(entry.ebx), word(entry.ecx))) {
        Some((now, most)) if most < largest || now < SAVE_AREA_BASE || now > most => {
            Err(CpuidError::SaveArea { subleaf: 0, found: now.min(most) })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec;
    use std::vec::Vec;

    use super::*;

    type Leaf = (u32, u32, [u32; 4]);

    fn sound() -> Vec<Leaf> {
        vec![
            (0, 0, [0x10, 0, 0, 0]),
            (1, 0, [0x00A1_0F11, 0, RDRAND | 1 << 31, 0]),
            (0xD, 0, [7, 832, 2440, 0]),
            (0xD, 1, [0xF, 832, 0, 0]),
            (0xD, 2, [256, 576, 0, 0]),
            (0xD, 9, [8, 2432, 0, 0]),
            (0xD, 11, [16, 0, 1, 0]),
            (0x4000_0000, 0, [0x4000_0001, 0, 0, 0]),
            (0x8000_001F, 0, [0x1A, 51 | 1 << 6, 0, 0]),
        ]
    }

    fn page(leaves: &[Leaf]) -> [u8; 4096] {
        let mut page = [0; 4096];
        page[..4].copy_from_slice(&u32::try_from(leaves.len()).unwrap().to_le_bytes());
        for (slot, (leaf, subleaf, registers)) in page[16..].chunks_exact_mut(48).zip(leaves) {
            slot[..4].copy_from_slice(&leaf.to_le_bytes());
            slot[4..8].copy_from_slice(&subleaf.to_le_bytes());
            slot[8] = u8::from(*leaf == 0xD && *subleaf < 2);
            for (field, value) in slot[24..40].chunks_exact_mut(4).zip(registers) {
                field.copy_from_slice(&value.to_le_bytes());
            }
        }
        page
    }

    fn with(spoil: impl FnOnce(&mut Vec<Leaf>)) -> Result<(), CpuidError> {
        let mut leaves = sound();
        spoil(&mut leaves);
        check(&page(&leaves))
    }

    #[test]
    fn a_sound_page_passes() {
        assert_eq!(with(|_| ()), Ok(()));
        // Up to the last entry.
        assert_eq!(with(|leaves| leaves.extend((9..64).map(|index| (7, index, [0; 4])))), Ok(()));
    }

    #[test]
    fn the_count_is_bounded() {
        for count in [0, 65, u32::MAX] {
            let mut page = page(&sound());
            page[..4].copy_from_slice(&count.to_le_bytes());
            assert_eq!(check(&page), Err(CpuidError::Count(count)));
        }
    }

    #[test]
    fn reserved_fields_and_strange_leaves_are_refused() {
        let mut spoilt = page(&sound());
        spoilt[4] = 1;
        assert_eq!(check(&spoilt), Err(CpuidError::Reserved(0)));
        let mut spoilt = page(&sound());
        spoilt[16 + 48 + 47] = 1;
        assert_eq!(check(&spoilt), Err(CpuidError::Reserved(1)));
        assert_eq!(with(|leaves| leaves.push((0x100, 0, [0; 4]))), Err(CpuidError::Range(0x100)));
    }

    #[test]
    fn a_leaf_is_there_once() {
        let twice = with(|leaves| leaves.push((0xD, 2, [128, 576, 0, 0])));
        assert_eq!(twice, Err(CpuidError::Twice { leaf: 0xD, subleaf: 2 }));
        // Even where only the register set that the host claims it is for differs.
        let mut spoilt = page(&[&sound()[..], &[(0xD, 0, [7, 832, 2440, 0])]].concat());
        spoilt[16 + 48 * 9 + 8] = 3;
        assert_eq!(check(&spoilt), Err(CpuidError::Twice { leaf: 0xD, subleaf: 0 }));
    }

    #[test]
    fn encryption_is_as_the_page_tables_have_it() {
        assert_eq!(with(|leaves| leaves[8].2[1] = 47), Err(CpuidError::CBit(47)));
        assert_eq!(with(|leaves| leaves[8].2[0] = 0x0A), Err(CpuidError::NotSnp(0x0A)));
        assert_eq!(with(|leaves| leaves.truncate(8)), Err(CpuidError::Missing(0x8000_001F)));
    }

    #[test]
    fn randomness_is_there() {
        assert_eq!(with(|leaves| leaves[1].2[2] &= !RDRAND), Err(CpuidError::NoRandomness));
        let without = with(|leaves| {
            leaves.remove(1);
        });
        assert_eq!(without, Err(CpuidError::Missing(1)));
    }

    #[test]
    fn save_areas_are_of_the_processors_sizes() {
        let refused = |subleaf, found| Err(CpuidError::SaveArea { subleaf, found });
        assert_eq!(with(|leaves| leaves[4].2[0] = 128), refused(2, 128));
        assert_eq!(with(|leaves| leaves[4].2[1] = 512), refused(2, 256));
        assert_eq!(with(|leaves| leaves[4].2[1] = u32::MAX), refused(2, 256));
        assert_eq!(with(|leaves| leaves.push((0xD, 17, [64, 2440, 0, 0]))), refused(17, 64));
        assert_eq!(with(|leaves| leaves[2].2[2] = 2439), refused(0, 832));
        assert_eq!(with(|leaves| leaves[2].2[1] = 512), refused(0, 512));
        assert_eq!(with(|leaves| leaves[2].2[1] = 4096), refused(0, 2440));
    }
}
