//! The stub's page tables: 512 GiB mapped in 1 GiB pages (AMD64 architecture manual, volume 2, section 5.3).
//! Two pages, so two measured pages, whatever the guest's size.

use boot_abi::PAGE_TABLES_GPA;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const ENTRIES: u64 = 512;

/// Page-table bit that makes memory private under SEV-SNP. Its place is the processor's, and measured: the stub
/// compares it with what the CPUID page says.
const C_BIT: u64 = 1 << 51;
/// The GiB with the window and the devices.
const DEVICE_GIB: u64 = 3;
/// The GiB of virtual addresses through which the stub reaches GiB 0 as shared memory.
const ALIAS_GIB: u64 = 511;

/// The PML4 and the PDPT behind it, mapping everything one to one.
pub fn plain() -> Vec<u8> {
    tables(0, |gib| gib << 30)
}

/// As [`plain`], for SEV-SNP: memory is private but in the GiB of the devices; the last GiB maps the first one as
/// shared memory.
pub fn encrypted() -> Vec<u8> {
    tables(C_BIT, |gib| match gib {
        DEVICE_GIB => gib << 30,
        ALIAS_GIB => 0,
        _ => gib << 30 | C_BIT,
    })
}

fn tables(table_bits: u64, target: impl Fn(u64) -> u64) -> Vec<u8> {
    let pdpt = PAGE_TABLES_GPA + 4096;
    let mut tables = vec![0; 4096];
    tables[..8].copy_from_slice(&(pdpt | table_bits | PRESENT | WRITABLE | ACCESSED).to_le_bytes());
    let leaf = |gib| target(gib) | PRESENT | WRITABLE | ACCESSED | DIRTY | LARGE;
    tables.extend((0..ENTRIES).flat_map(|gib| leaf(gib).to_le_bytes()));
    tables
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: u64 = 0xFFF;

    fn entry(tables: &[u8], index: u64) -> u64 {
        let at = usize::try_from(index).unwrap() * 8;
        u64::from_le_bytes(tables[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn plain_tables_map_every_gibibyte_to_itself() {
        let tables = plain();
        assert_eq!(entry(&tables, 0) & !FLAGS, PAGE_TABLES_GPA + 4096);
        assert!((1..512).all(|index| entry(&tables, index) == 0));
        assert!((0..512).all(|gib| entry(&tables, 512 + gib) & !FLAGS == gib << 30));
    }

    #[test]
    fn encrypted_tables_share_the_devices_and_the_alias_only() {
        let tables = encrypted();
        assert_eq!(entry(&tables, 0) & !FLAGS, (PAGE_TABLES_GPA + 4096) | C_BIT);
        assert_eq!(entry(&tables, 512 + 3) & !FLAGS, 3 << 30);
        assert_eq!(entry(&tables, 512 + 511) & !FLAGS, 0);
        let private = (0..511).filter(|gib| *gib != 3);
        for gib in private {
            assert_eq!(entry(&tables, 512 + gib) & !FLAGS, gib << 30 | C_BIT, "{gib}");
        }
    }
}
