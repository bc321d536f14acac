//! The stub's page tables: 512 GiB mapped one to one in 1 GiB pages (AMD64 architecture manual, volume 2,
//! section 5.3). Two pages, so two measured pages, whatever the guest's size.

use boot_abi::PAGE_TABLES_GPA;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const ENTRIES: u64 = 512;

/// The PML4 and the PDPT behind it.
pub fn tables() -> [Vec<u8>; 2] {
    let pdpt_gpa = PAGE_TABLES_GPA + 4096;
    let mut pml4 = vec![0; 4096];
    pml4[..8].copy_from_slice(&(pdpt_gpa | PRESENT | WRITABLE | ACCESSED).to_le_bytes());
    let pdpt = (0..ENTRIES)
        .flat_map(|gib| (gib << 30 | PRESENT | WRITABLE | ACCESSED | DIRTY | LARGE).to_le_bytes())
        .collect();
    [pml4, pdpt]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_gibibyte_maps_to_itself() {
        let [pml4, pdpt] = tables();
        let entry = |table: &[u8], index: usize| {
            u64::from_le_bytes(table[index * 8..index * 8 + 8].try_into().unwrap())
        };
        assert_eq!(entry(&pml4, 0) & !0xFFF, PAGE_TABLES_GPA + 4096);
        assert!((1..512).all(|index| entry(&pml4, index) == 0));
        assert!((0..512).all(|index| entry(&pdpt, index) & !0xFFF == (index as u64) << 30));
    }
}
