//! Layers from archives: whatever the bytes, they are refused or become a sound image under a hash tree of its own.
#![no_main]

use std::os::unix::fs::FileExt as _;

use erofs_verity::BLOCK_SIZE;
use erofs_verity::layer::verify;
use libfuzzer_sys::fuzz_target;
use oci_layer::{Limits, convert};

const BLOCK: usize = 512;
/// Where in a header the check sum is, and the magic that says that it is one.
const CHECKSUM: std::ops::Range<usize> = 148..156;
const MAGIC: std::ops::Range<usize> = 257..262;
/// More than an accepted archive makes within the limits.
const MOST: u64 = 64 << 20;

fuzz_target!(|bytes: &[u8]| {
    let archive = sealed(bytes);
    let limits = Limits { uncompressed_bytes: 1 << 20, entries: 1000, memory: 1 << 20, path_bytes: 4096 };
    let Ok(file) = tempfile::tempfile() else { return };
    let Ok(converted) = convert(&archive[..], &file, &limits) else { return };
    let layer = converted.layer;
    assert!(layer.length <= MOST, "{} bytes", layer.length);
    verify(&file, layer.data_blocks, layer.root).expect("the layer's own hash tree");
    let mut image = vec![0; usize::try_from(layer.data_blocks).expect("a size in memory") * BLOCK_SIZE];
    file.read_exact_at(&mut image, 0).expect("a layer");
    let _ = uvm_fuzz::erofs::check(&image);
});

/// The archive with the check sums that its headers should have: nearly no mutation would get past them.
fn sealed(bytes: &[u8]) -> Vec<u8> {
    let mut archive = bytes.to_vec();
    for block in archive.chunks_exact_mut(BLOCK).filter(|block| block[MAGIC] == *b"ustar") {
        block[CHECKSUM].fill(b' ');
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    archive
}
