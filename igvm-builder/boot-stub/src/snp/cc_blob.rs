//! How Linux learns of the secrets and CPUID pages: a `cc_blob_sev_info`, found through a `setup_data` of its own
//! type (Linux `arch/x86/include/asm/sev.h`, `Documentation/arch/x86/boot.rst`).

use boot_abi::{CC_BLOB_GPA, CPUID_GPA, SECRETS_GPA};

use crate::table::Table;

const SETUP_CC_BLOB: u32 = 7;
/// "AMDE", little-endian.
const MAGIC: u32 = 0x4544_4D41;
const PAGE: u32 = 4096;
/// Where in the page the blob lies, behind its `setup_data`.
const BLOB: usize = 32;

/// Fills the page at [`CC_BLOB_GPA`], which begins with the `setup_data`.
pub fn write(page: &mut [u8; 4096]) {
    page.fill(0);
    let mut table = Table(page);
    table.put(8, &SETUP_CC_BLOB.to_le_bytes()); // type; `next` at 0 ends the list
    table.put(12, &4u32.to_le_bytes()); // length of what follows
    let [a, b, c, d, ..] = CC_BLOB_GPA.to_le_bytes();
    let blob = u32::from_le_bytes([a, b, c, d]) + 32;
    table.put(16, &blob.to_le_bytes());
    table.put(BLOB, &MAGIC.to_le_bytes()); // version and reserved at 4: 0
    table.put(BLOB + 8, &SECRETS_GPA.to_le_bytes());
    table.put(BLOB + 16, &PAGE.to_le_bytes());
    table.put(BLOB + 24, &CPUID_GPA.to_le_bytes());
    table.put(BLOB + 32, &PAGE.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_finds_both_pages() {
        let mut page = [0xAA; 4096];
        write(&mut page);
        let u32_at = |at: usize| u32::from_le_bytes(page[at..at + 4].try_into().unwrap());
        let u64_at = |at: usize| u64::from_le_bytes(page[at..at + 8].try_into().unwrap());
        // struct cc_setup_data
        assert_eq!((u64_at(0), u32_at(8), u32_at(12)), (0, 7, 4));
        let blob = usize::try_from(u64::from(u32_at(16)) - CC_BLOB_GPA).unwrap();
        // struct cc_blob_sev_info
        assert_eq!(&page[blob..blob + 8], b"AMDE\0\0\0\0");
        assert_eq!((u64_at(blob + 8), u64_at(blob + 16)), (SECRETS_GPA, 4096));
        assert_eq!((u64_at(blob + 24), u64_at(blob + 32)), (CPUID_GPA, 4096));
    }
}
