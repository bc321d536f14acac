//! The IGVM loader: a hostile file is refused or understood, and an understood one has a digest.
#![no_main]

use launch::image::{Image, Platform};
use launch::snp::{self, Backend};
use launch::tdx;
use libfuzzer_sys::fuzz_target;

/// Bytes of `IGVM_FIXED_HEADER`, and where in it the checksum is, the variable headers' offset and their size.
const HEADER_BYTES: usize = 24;
const OFFSET_AT: usize = 8;
const SIZE_AT: usize = 12;
const TOTAL_AT: usize = 16;
const CHECKSUM_AT: usize = 20;

fuzz_target!(|file: &[u8]| {
    let file = with_checksum(file);
    for platform in [Platform::Native, Platform::Snp, Platform::Tdx] {
        let Ok(image) = Image::decode(&file, platform) else { continue };
        let _ = tdx::mrtd(&image);
        for backend in [Backend::Kvm, Backend::Mshv] {
            assert_eq!(snp::digests(&image, backend, 3, 0).len(), 3);
        }
    }
});

/// The file with the size and the checksum that it should have: nearly no mutation would get past them.
fn with_checksum(file: &[u8]) -> Vec<u8> {
    let mut file = file.to_vec();
    let word = |file: &[u8], at: usize| {
        let bytes = file.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    let headers = (|| {
        let start = word(&file, OFFSET_AT)?;
        Some(start..start.checked_add(word(&file, SIZE_AT)?)?)
    })();
    let Some(headers) = headers.filter(|_| file.len() >= HEADER_BYTES) else { return file };
    let total = u32::try_from(file.len()).unwrap_or(u32::MAX);
    file[TOTAL_AT..CHECKSUM_AT].copy_from_slice(&total.to_le_bytes());
    file[CHECKSUM_AT..HEADER_BYTES].fill(0);
    let mut hash = crc32fast::Hasher::new();
    hash.update(&file[..HEADER_BYTES]);
    let Some(headers) = file.get(headers) else { return file };
    hash.update(headers);
    let sum = hash.finalize().to_le_bytes();
    file[CHECKSUM_AT..HEADER_BYTES].copy_from_slice(&sum);
    file
}
