//! ID blocks in images: taken over field by field, changing nothing that is measured, and refused where they are for
//! something else.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod inputs;

use igvm::IgvmDirectiveHeader;
use igvm_builder::build;
use igvm_builder::id_block::{AUTH_BYTES, Allowed, BLOCK_BYTES, attach};
use inputs::{PRODUCTION, kernel, recipe, stub};
use launch::image::{Image, Platform};
use launch::plan::Tee;
use launch::snp::{self, Backend, vmsa};

const POLICY: u64 = 0x3_0000;

fn file(tees: &[Tee]) -> Vec<u8> {
    build(&kernel(10_000), &stub(&[0xF4]), &recipe(tees)).unwrap().file
}

fn digest(file: &[u8], backend: Backend, vcpus: u32) -> [u8; 48] {
    let image = Image::decode(file, Platform::Snp).unwrap();
    snp::digests(&image, backend, vcpus, vmsa::RESET_RDX).last().unwrap().0
}

fn block(digest: [u8; 48], policy: u64) -> [u8; BLOCK_BYTES] {
    let numbers = [1u32.to_le_bytes(), 7u32.to_le_bytes()].concat();
    [&digest[..], &[0xFA; 16], &[0x1D; 16], &numbers, &policy.to_le_bytes()].concat().try_into().unwrap()
}

/// Authentication information with a byte of its own for each part.
fn auth(author: bool) -> [u8; AUTH_BYTES] {
    let mut auth = [0; AUTH_BYTES];
    auth[0] = 1;
    auth[4] = u8::from(author);
    for (at, size, byte) in [(0x40, 72, 1), (0x88, 72, 2), (0x244, 72, 3), (0x28C, 72, 4), (0x680, 72, 5)] {
        auth[at..at + size].fill(byte);
    }
    auth[0x240] = 2;
    auth
}

#[test]
fn a_block_is_taken_over_and_moves_no_digest() {
    let file = file(&PRODUCTION);
    for (backend, vcpus, allowed) in [
        (Backend::Kvm, 1, Allowed::Kvm(1)),
        (Backend::Kvm, 4, Allowed::Kvm(4)),
        (Backend::Mshv, 1, Allowed::Mshv),
    ] {
        let digest_before = digest(&file, backend, vcpus);
        let (attached, found) = attach(&file, &block(digest_before, POLICY), &auth(false)).unwrap();
        assert_eq!((found, digest(&attached, backend, vcpus)), (allowed, digest_before));
        for platform in [Platform::Native, Platform::Tdx] {
            assert!(Image::decode(&attached, platform).unwrap().id_block.is_none());
        }
        let image = Image::decode(&attached, Platform::Snp).unwrap();
        let Some(IgvmDirectiveHeader::SnpIdBlock {
            author_key_enabled,
            ld,
            family_id,
            image_id,
            version,
            guest_svn,
            id_key_algorithm,
            id_key_signature,
            id_public_key,
            ..
        }) = image.id_block.as_deref()
        else {
            panic!("expected an ID block");
        };
        assert_eq!((*ld, *family_id, *image_id), (digest_before, [0xFA; 16], [0x1D; 16]));
        assert_eq!((*version, *guest_svn, *id_key_algorithm, *author_key_enabled), (1, 7, 1, 0));
        assert_eq!((id_key_signature.r_comp, id_key_signature.s_comp), ([1; 72], [2; 72]));
        assert_eq!((id_public_key.curve, id_public_key.qx, id_public_key.qy), (2, [3; 72], [4; 72]));
    }
}

#[test]
fn an_author_key_is_taken_over() {
    let file = file(&[Tee::Snp]);
    let block = block(digest(&file, Backend::Kvm, 2), POLICY);
    let (attached, _) = attach(&file, &block, &auth(true)).unwrap();
    let image = Image::decode(&attached, Platform::Snp).unwrap();
    let Some(IgvmDirectiveHeader::SnpIdBlock {
        author_key_enabled,
        author_key_algorithm,
        author_key_signature,
        ..
    }) = image.id_block.as_deref()
    else {
        panic!("expected an ID block");
    };
    assert_eq!((*author_key_enabled, *author_key_algorithm, author_key_signature.r_comp), (1, 1, [5; 72]));
}

#[test]
fn blocks_for_something_else_are_refused() {
    let file = file(&PRODUCTION);
    let digest = digest(&file, Backend::Kvm, 1);
    let refusal = |file: &[u8], digest, policy| {
        attach(file, &block(digest, policy), &auth(false)).unwrap_err().to_string()
    };
    assert_eq!(refusal(&file, digest, 0xB_0000), "ID block: expected the policy of the image, found 0xb0000");
    assert!(
        refusal(&file, [9; 48], POLICY)
            .starts_with("ID block: expected a launch digest of the image, found 09")
    );
    let (attached, _) = attach(&file, &block(digest, POLICY), &auth(false)).unwrap();
    assert_eq!(refusal(&attached, digest, POLICY), "ID block: expected an image without one, found one");
    let native = self::file(&[Tee::None]);
    assert_eq!(
        refusal(&native, digest, POLICY),
        "ID block: expected an image with a SEV-SNP part, found none"
    );
    assert!(refusal(&file[1..], digest, POLICY).starts_with("IGVM file: magic"));
}
