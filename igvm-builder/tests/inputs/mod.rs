//! Made-up inputs of the builder: small, and no more than it looks at.

use boot_abi::{KERNEL_GPA, RESET_PAGE_GPA, STUB_GPA};
use igvm_builder::Recipe;
use launch::plan::Tee;

/// A bzImage of `bytes` bytes, as far as the builder reads one.
pub fn kernel(bytes: usize) -> Vec<u8> {
    let mut file: Vec<u8> = (0..bytes).map(|at| u8::try_from(at / 4096 % 251).unwrap()).collect();
    file[0x1F1] = 3;
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x236] = 1;
    file[0x258..0x260].copy_from_slice(&KERNEL_GPA.to_le_bytes());
    file
}

/// An ELF file with `code` at the stub's address and a page at the reset vector.
pub fn stub(code: &[u8]) -> Vec<u8> {
    elf(&[(STUB_GPA, code), (RESET_PAGE_GPA, &[0xEB; 4096])])
}

/// An ELF file with these segments, entered at the first.
pub fn elf(segments: &[(u64, &[u8])]) -> Vec<u8> {
    let mut file = vec![0; 0x1000];
    file[..6].copy_from_slice(b"\x7fELF\x02\x01");
    let mut set =
        |offset: usize, value: usize| file[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
    set(24, usize::try_from(segments[0].0).unwrap());
    set(32, 64);
    set(56, segments.len());
    let mut offset = 0x1000;
    for (index, (gpa, bytes)) in segments.iter().enumerate() {
        let header = 64 + index * 56;
        let fields = [1, offset, usize::try_from(*gpa).unwrap(), 0, bytes.len(), bytes.len()];
        for (field, value) in fields.into_iter().enumerate() {
            set(header + field * 8, value);
        }
        offset += bytes.len();
    }
    file.extend(segments.iter().flat_map(|(_, bytes)| *bytes));
    file
}

/// A recipe for these isolations.
pub fn recipe(tees: &[Tee]) -> Recipe {
    Recipe { command_line: "root=/dev/dm-0".into(), max_vcpus: 4, tees: tees.to_vec(), ..Recipe::default() }
}

/// What production images start under.
pub const PRODUCTION: [Tee; 3] = [Tee::None, Tee::Snp, Tee::Tdx];
