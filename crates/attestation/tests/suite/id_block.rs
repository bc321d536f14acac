//! ID blocks: our own, those of the `sev` crate's tests, and forged ones.

use attestation::{
    id_block::{AmdPublicKey, Error, IdAuth, IdBlock},
    keys,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use p384::{
    ecdsa::{Signature, SigningKey, signature::Signer as _},
    elliptic_curve::Generate as _,
};
use zerocopy::IntoBytes as _;

use crate::support::package;

fn block() -> IdBlock {
    IdBlock::new([9; 48], 0x3_0000, 7, [1; 16], [2; 16])
}

#[test]
fn a_signed_block_verifies_with_and_without_author() {
    let (id, author) = (SigningKey::generate(), SigningKey::generate());
    let plain = IdAuth::sign(&block(), &id, None).unwrap();
    plain.verify(&block()).unwrap();
    assert!(!plain.has_author_key());
    let full = IdAuth::sign(&block(), &id, Some(&author)).unwrap();
    full.verify(&block()).unwrap();
    assert!(full.has_author_key());
    assert_eq!(IdAuth::parse(full.as_bytes()).unwrap(), &full);
    assert_eq!(IdBlock::parse(block().as_bytes()).unwrap(), &block());
}

#[test]
fn a_signature_made_elsewhere_is_as_good() {
    let key = SigningKey::generate();
    let raw: Signature = key.sign(block().to_be_signed());
    for bytes in [raw.to_bytes().to_vec(), raw.to_der().as_bytes().to_vec()] {
        let signature = keys::signature(&bytes).unwrap();
        IdAuth::new(key.verifying_key(), &signature, None).verify(&block()).unwrap();
    }
    assert!(keys::signature(&[1; 50]).is_err());
}

#[test]
fn every_byte_of_the_block_is_signed() {
    let auth = IdAuth::sign(&block(), &SigningKey::generate(), None).unwrap();
    for offset in 0..IdBlock::BYTES {
        let mut bytes = block().as_bytes().to_vec();
        bytes[offset] ^= 1;
        let refused = match IdBlock::parse(&bytes) {
            Ok(block) => auth.verify(block) == Err(Error::Signature("ID key")),
            Err(error) => matches!(error, Error::Field { field: "ID block version", .. }),
        };
        assert!(refused, "{offset:#x}");
    }
}

#[test]
fn forged_authority_is_refused() {
    let (id, author) = (SigningKey::generate(), SigningKey::generate());
    let good = IdAuth::sign(&block(), &id, Some(&author)).unwrap();
    let with = |change: fn(&mut IdAuth)| {
        let mut auth = good.clone();
        change(&mut auth);
        auth.verify(&block()).unwrap_err()
    };
    assert_eq!(with(|auth| auth.id_block_signature.r[0] ^= 1), Error::Signature("ID key"));
    assert_eq!(with(|auth| auth.id_key_signature.s[0] ^= 1), Error::Signature("author key"));
    assert_eq!(with(|auth| auth.id_key.x[0] ^= 1), Error::Key("ID key"));
    assert_eq!(with(|auth| auth.id_key.x[60] = 1), Error::Key("ID key"));
    assert!(matches!(with(|auth| auth.id_key.curve = 1.into()), Error::Field { expected: 2, found: 1, .. }));
    assert!(matches!(
        with(|auth| auth.id_key_algorithm = 2.into()),
        Error::Field { field: "ID_KEY_ALGO", .. }
    ));
    assert!(matches!(
        with(|auth| auth.author_key_algorithm = 2.into()),
        Error::Field { field: "AUTHOR_KEY_ALGO", .. }
    ));
    let other = IdAuth::sign(&block(), &SigningKey::generate(), None).unwrap();
    let mut swapped = good;
    swapped.author_key = other.id_key;
    assert_eq!(swapped.verify(&block()), Err(Error::Signature("author key")));
}

#[test]
fn sizes_are_checked() {
    assert!(matches!(IdBlock::parse(&[0; 95]), Err(Error::Size { expected: 96, found: 95, .. })));
    assert!(matches!(IdAuth::parse(&[0; 4097]), Err(Error::Size { expected: 4096, found: 4097, .. })));
}

/// Golden: the digests that the `sev` crate's tests expect of its keys, and its authentication page, signed by OpenSSL.
#[test]
fn digests_and_page_equal_the_sev_crates() {
    let folder = package("sev").join("tests/measurement");
    let key = |name: &str| keys::private_key(&std::fs::read_to_string(folder.join(name)).unwrap()).unwrap();
    let (id, author) = (key("test_id_key.pem"), key("test_auth_key.pem"));
    let digest = |key: &SigningKey| STANDARD.encode(AmdPublicKey::from_key(key.verifying_key()).digest());
    assert_eq!(digest(&id), "WfssaG36T+9J84M5qndckAUcKNVzg93DuvO160sUlt87DbvcuuX+J2d6ZEggdz/i");
    assert_eq!(digest(&author), "7tgRafsMteDsNHlPEo/U4MSkb2fGWhrfqB/LJLzAiMJyNpt//D6ytq9qQoShs2xf");
    let page = std::fs::read(folder.join("test_auth_block.bin")).unwrap();
    let parsed = IdAuth::parse(&page).unwrap();
    assert_eq!(parsed.id_key, AmdPublicKey::from_key(id.verifying_key()));
    assert_eq!(parsed.author_key, AmdPublicKey::from_key(author.verifying_key()));
    assert!(parsed.has_author_key());
}
