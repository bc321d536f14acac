//! Images built from a made-up kernel and stub: what is measured, and that it all counts.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use igvm_builder::{BuildError, Recipe, build};
use launch::image::{Image, PageKind, Platform};

/// Measured pages that an image may have, whatever its kernel.
const MOST_MEASURED_PAGES: usize = 32;

fn kernel() -> Vec<u8> {
    let mut file = vec![0x90; 40_000];
    file[0x1F1] = 3;
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x236] = 1;
    file[0x258..0x260].copy_from_slice(&boot_abi::KERNEL_GPA.to_le_bytes());
    file
}

/// An ELF file with one segment of `code` at the stub's address.
fn stub(code: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 0x1000];
    file[..6].copy_from_slice(b"\x7fELF\x02\x01");
    let size = u64::try_from(code.len()).unwrap();
    for (offset, value) in [(24, boot_abi::STUB_GPA), (32, 64), (72, 0x1000), (80, boot_abi::STUB_GPA)] {
        file[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
    }
    file[56] = 1;
    file[64] = 1;
    for offset in [96, 104] {
        file[offset..offset + 8].copy_from_slice(&size.to_le_bytes());
    }
    file.extend_from_slice(code);
    file
}

fn recipe() -> Recipe {
    Recipe { command_line: "root=/dev/dm-0".into(), max_vcpus: 4, debug: false }
}

fn digest(kernel: &[u8], stub: &[u8], recipe: &Recipe) -> String {
    build(kernel, stub, recipe).unwrap().sidecar.launch_digest
}

#[test]
fn the_same_inputs_give_the_same_bytes() {
    let build = || build(&kernel(), &stub(&[0xF4; 5000]), &recipe()).unwrap();
    assert_eq!(build().file, build().file);
}

#[test]
fn few_pages_are_measured_and_the_kernel_is_shared() {
    let built = build(&kernel(), &stub(&[0xF4; 5000]), &recipe()).unwrap();
    let image = Image::decode(&built.file, Platform::Native).unwrap();
    let count = |kind| image.pages.iter().filter(|page| page.kind == kind).count();
    // Two pages of stub, two of page tables, configuration, DSDT.
    assert_eq!((count(PageKind::Measured), count(PageKind::Shared)), (6, 10));
    assert_eq!(built.sidecar.measured_pages, 6);
    assert!(built.sidecar.measured_pages <= MOST_MEASURED_PAGES);
    assert_eq!(built.sidecar.pages.len(), 7, "the measured pages and the parameter page");
    assert!(
        built.sidecar.pages.iter().filter(|page| page.kind == "measured").all(|page| page.sha384.is_some())
    );
}

#[test]
fn every_input_moves_the_digest() {
    let (kernel, stub_file) = (kernel(), stub(&[0xF4; 5000]));
    let base = digest(&kernel, &stub_file, &recipe());
    let mut other_kernel = kernel.clone();
    other_kernel[39_999] ^= 1;
    let mut code = [0xF4; 5000];
    code[4999] ^= 1;
    let variants = [
        digest(&other_kernel, &stub_file, &recipe()),
        digest(&kernel, &stub(&code), &recipe()),
        digest(&kernel, &stub_file, &Recipe { command_line: "root=/dev/dm-1".into(), ..recipe() }),
        digest(&kernel, &stub_file, &Recipe { max_vcpus: 5, ..recipe() }),
        digest(&kernel, &stub_file, &Recipe { debug: true, ..recipe() }),
    ];
    for (index, variant) in variants.iter().enumerate() {
        assert_ne!(*variant, base, "variant {index}");
        assert!(!variants[..index].contains(variant), "variant {index}");
    }
}

#[test]
fn unusable_inputs_are_named() {
    let good = stub(&[0xF4]);
    let refusal = |kernel: &[u8], stub: &[u8], recipe: &Recipe| build(kernel, stub, recipe).unwrap_err();
    let long = Recipe { command_line: "x".repeat(2048), ..recipe() };
    assert!(matches!(refusal(&kernel(), &good, &long), BuildError::CommandLine { max: 2047, found: 2048 }));
    let zero = Recipe { command_line: "a\0b".into(), ..recipe() };
    assert!(matches!(refusal(&kernel(), &good, &zero), BuildError::CommandLine { .. }));
    let none = Recipe { max_vcpus: 0, ..recipe() };
    assert!(matches!(refusal(&kernel(), &good, &none), BuildError::Vcpus { found: 0, .. }));
    assert!(matches!(refusal(b"no kernel", &good, &recipe()), BuildError::Kernel { .. }));
    assert!(matches!(refusal(&kernel(), &kernel(), &recipe()), BuildError::Stub { .. }));
    for length in 0..good.len() {
        assert!(
            matches!(refusal(&kernel(), &good[..length], &recipe()), BuildError::Stub { .. }),
            "{length}"
        );
    }
}

#[test]
fn damaged_files_do_not_decode() {
    let whole = build(&kernel(), &stub(&[0xF4; 5000]), &recipe()).unwrap().file;
    for length in (0..whole.len()).step_by(97) {
        assert!(Image::decode(&whole[..length], Platform::Native).is_err(), "{length}");
    }
}
