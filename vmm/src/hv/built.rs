//! Images for recorded launches, as the builder makes them from a made-up kernel and stub.

use boot_abi::{KERNEL_GPA, STUB_GPA};
use igvm_builder::{Layout, Recipe, build};
use launch::image::{Image, Platform};
use launch::plan::Tee;

/// A bzImage, as far as the builder reads one.
fn kernel() -> Vec<u8> {
    let mut file = vec![0x90; 40_000];
    file[0x1F1] = 3;
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x236] = 1;
    file[0x258..0x260].copy_from_slice(&KERNEL_GPA.to_le_bytes());
    file
}

/// An ELF file of one segment, at the stub's address.
fn stub() -> Vec<u8> {
    let mut file = vec![0; 0x1000];
    file[..6].copy_from_slice(b"\x7fELF\x02\x01");
    let words =
        [(24, STUB_GPA), (32, 64), (56, 1), (64, 1), (72, 0x1000), (80, STUB_GPA), (96, 5000), (104, 5000)];
    for (offset, value) in words {
        file[offset..offset + 8].copy_from_slice(&u64::to_le_bytes(value));
    }
    file.extend([0xF4; 5000]);
    file
}

/// An SEV-SNP image of this layout.
pub fn snp(layout: Layout) -> Image {
    let recipe = Recipe { command_line: "quiet".into(), tees: vec![Tee::Snp], layout, ..Recipe::default() };
    let file = build(&kernel(), &stub(), &recipe).unwrap().file;
    Image::decode(&file, Platform::Snp).unwrap()
}
