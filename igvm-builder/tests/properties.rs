//! Everything that a processor measures counts: a change of any byte, order, kind or number gives another digest.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod inputs;

use std::sync::LazyLock;

use igvm::snp_defs::SevVmsa;
use igvm_builder::{Layout, Recipe, build};
use inputs::{PRODUCTION, kernel, recipe, stub};
use launch::digest::LaunchDigest;
use launch::image::{Image, PageKind, Platform, Start};
use launch::plan::Tee;
use launch::snp::{self, Backend, vmsa};
use launch::tdx;
use proptest::prelude::*;
use zerocopy::FromBytes as _;

/// An image in every form that a processor measures: each platform's, in each layout.
static IMAGES: LazyLock<Vec<(Vec<u8>, Platform)>> = LazyLock::new(|| {
    let (kernel, stub) = (kernel(20_000), stub(&[0xF4; 9000]));
    let window = build(&kernel, &stub, &recipe(&PRODUCTION)).unwrap().file;
    let measured = Recipe { layout: Layout::Measured, ..recipe(&[Tee::Sim]) };
    let measured = build(&kernel, &stub, &measured).unwrap().file;
    vec![(window.clone(), Platform::Snp), (window, Platform::Tdx), (measured, Platform::Snp)]
});

fn image(index: usize) -> Image {
    let (file, platform) = &IMAGES[index];
    Image::decode(file, *platform).unwrap()
}

/// The image's measurements on every backend of its platform.
fn measurements(image: &Image) -> Vec<LaunchDigest> {
    match image.platform {
        Platform::Tdx => vec![tdx::mrtd(image)],
        _ => [Backend::Kvm, Backend::Mshv]
            .map(|backend| snp::digests(image, backend, 1, vmsa::RESET_RDX)[0])
            .to_vec(),
    }
}

fn all_differ(a: &Image, b: &Image) -> bool {
    measurements(a).iter().zip(measurements(b)).all(|(a, b)| *a != b)
}

/// Flips bits of one measured byte: of a page, or of the save area, which counts as the last page.
fn flip(image: &mut Image, page: prop::sample::Index, offset: usize, bits: u8) {
    let measured: Vec<usize> =
        (0..image.pages.len()).filter(|at| image.pages[*at].kind == PageKind::Measured).collect();
    let save_areas = usize::from(image.platform == Platform::Snp);
    let at = page.index(measured.len() + save_areas);
    match (measured.get(at), &mut image.start) {
        (Some(at), _) => {
            let page = &mut image.pages[*at];
            let mut data = if page.data.is_empty() { vec![0; 4096] } else { page.data.to_vec() };
            data[offset] ^= bits;
            page.data = data.into();
        }
        (None, Start::Snp { vmsa: save_area, .. }) => {
            let mut bytes = vmsa::page(save_area);
            bytes[offset] ^= bits;
            **save_area = SevVmsa::read_from_bytes(&bytes).unwrap();
        }
        (None, other) => panic!("expected a save area, found {other:?}"),
    }
}

fn private(image: &Image) -> Vec<usize> {
    (0..image.pages.len()).filter(|at| image.pages[*at].kind != PageKind::Shared).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_measured_byte(which in 0..3usize, page: prop::sample::Index, offset in 0..4096usize, bits in 1..=255u8) {
        let mut changed = image(which);
        flip(&mut changed, page, offset, bits);
        prop_assert!(all_differ(&image(which), &changed));
    }

    #[test]
    fn page_order(which in 0..3usize, a: prop::sample::Index, b: prop::sample::Index) {
        let original = image(which);
        let private = private(&original);
        let (a, b) = (private[a.index(private.len())], private[b.index(private.len())]);
        prop_assume!(a != b);
        let mut changed = image(which);
        changed.pages.swap(a, b);
        let (before, after) = (measurements(&original), measurements(&changed));
        prop_assert_ne!(before[0], after[0]);
        if original.platform == Platform::Snp {
            // Sorted by address before they are imported.
            prop_assert_eq!(before[1], after[1]);
        }
    }

    #[test]
    fn page_place(which in 0..3usize, page: prop::sample::Index, bit in 12..51u32) {
        let mut changed = image(which);
        let private = private(&changed);
        changed.pages[private[page.index(private.len())]].gpa ^= 1 << bit;
        prop_assert!(all_differ(&image(which), &changed));
    }

    #[test]
    fn page_kind(which in 0..3usize, page: prop::sample::Index, kind in 0..5usize) {
        let kinds =
            [PageKind::Measured, PageKind::Unmeasured, PageKind::Secrets, PageKind::Cpuid, PageKind::Shared];
        let mut changed = image(which);
        let private = private(&changed);
        let page = &mut changed.pages[private[page.index(private.len())]];
        prop_assume!(page.kind != kinds[kind]);
        // TDX knows private pages that are measured and such that are not.
        let tdx = changed.platform == Platform::Tdx;
        prop_assume!(!tdx || page.kind == PageKind::Measured || kind == 0 || kind == 4);
        page.kind = kinds[kind];
        prop_assert!(all_differ(&image(which), &changed));
    }
}

#[test]
fn every_number_of_virtual_cpus_has_its_own_digest_under_kvm() {
    let mut digests = snp::digests(&image(0), Backend::Kvm, 64, vmsa::RESET_RDX);
    digests.sort_unstable();
    digests.dedup();
    assert_eq!(digests.len(), 64);
}
