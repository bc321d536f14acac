//! SNP ID blocks (AMD SEV-SNP firmware ABI, publication 56860, ID block and ID authentication information).
//!
//! An ID block is its owner's statement of what may be launched: the launch digest and the policy, under a name and a
//! security version. The firmware refuses a launch that differs, and repeats name, version and the signer's digest in
//! each report. The key may live elsewhere: [`IdBlock::to_be_signed`] gives what it signs, [`IdAuth`] takes the
//! signature.

use std::mem::offset_of;

use evidence::report::Signature as AmdSignature;
use p384::ecdsa::{
    Signature, SigningKey, VerifyingKey,
    signature::{Signer as _, Verifier as _},
};
use ring::digest::{SHA384, digest};
use thiserror::Error;
use zerocopy::{
    FromBytes, FromZeros as _, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U32, U64},
};

/// ID_KEY_ALGO and AUTHOR_KEY_ALGO: ECDSA P-384 with SHA-384.
const ECDSA_P384_SHA384: u32 = 1;
/// CURVE: P-384.
const CURVE_P384: u32 = 2;
/// VERSION of the ID block.
const VERSION: u32 = 1;

/// Why an ID block does not hold.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum Error {
    /// Not the structure's size.
    #[error("{what}: expected {expected} bytes, found {found}")]
    Size {
        /// The structure.
        what: &'static str,
        /// Its size.
        expected: usize,
        /// The size found.
        found: usize,
    },
    /// A field has a value that nobody knows.
    #[error("{field}: expected {expected}, found {found}")]
    Field {
        /// The field.
        field: &'static str,
        /// Its value.
        expected: u32,
        /// The value found.
        found: u32,
    },
    /// A public key is not on the curve.
    #[error("{0}: expected a point on P-384")]
    Key(&'static str),
    /// A signature is not by the key that should have made it.
    #[error("{0}: signature does not verify")]
    Signature(&'static str),
    /// The signing operation failed.
    #[error("cannot sign: {0}")]
    Sign(String),
}

/// ID_BLOCK, 96 bytes.
#[derive(Debug, Clone, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IdBlock {
    /// Launch digest that the launch must have.
    pub launch_digest: [u8; 48],
    /// Family, free for the owner to choose.
    pub family_id: [u8; 16],
    /// Image, free for the owner to choose.
    pub image_id: [u8; 16],
    /// 1.
    pub version: U32,
    /// Security version of the guest.
    pub guest_svn: U32,
    /// Policy that the launch must have.
    pub policy: U64,
}

/// A P-384 public key as AMD writes it: 1028 bytes.
#[derive(Debug, Clone, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct AmdPublicKey {
    /// 2: P-384.
    pub curve: U32,
    /// X, little-endian, zero-extended.
    pub x: [u8; 72],
    /// Y, little-endian, zero-extended.
    pub y: [u8; 72],
    reserved: [u8; 880],
}

/// ID authentication information, one page: who signed the ID block, and who signed that signer.
#[derive(Debug, Clone, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IdAuth {
    /// 1: ECDSA P-384 with SHA-384.
    pub id_key_algorithm: U32,
    /// As `id_key_algorithm`; 0 without an author key.
    pub author_key_algorithm: U32,
    reserved_8: [u8; 56],
    /// Over the ID block.
    pub id_block_signature: AmdSignature,
    /// The key that signed the ID block.
    pub id_key: AmdPublicKey,
    reserved_644: [u8; 60],
    /// Over `id_key`; zeros without an author key.
    pub id_key_signature: AmdSignature,
    /// The key that signed the ID key; zeros without one.
    pub author_key: AmdPublicKey,
    reserved_c84: [u8; 892],
}

const _: () = {
    assert!(size_of::<IdBlock>() == IdBlock::BYTES);
    assert!(offset_of!(IdBlock, launch_digest) == 0x00);
    assert!(offset_of!(IdBlock, family_id) == 0x30);
    assert!(offset_of!(IdBlock, image_id) == 0x40);
    assert!(offset_of!(IdBlock, version) == 0x50);
    assert!(offset_of!(IdBlock, guest_svn) == 0x54);
    assert!(offset_of!(IdBlock, policy) == 0x58);
    assert!(size_of::<AmdPublicKey>() == 0x404);
    assert!(offset_of!(AmdPublicKey, x) == 0x04);
    assert!(offset_of!(AmdPublicKey, y) == 0x4c);
    assert!(size_of::<IdAuth>() == IdAuth::BYTES);
    assert!(offset_of!(IdAuth, id_key_algorithm) == 0x000);
    assert!(offset_of!(IdAuth, author_key_algorithm) == 0x004);
    assert!(offset_of!(IdAuth, id_block_signature) == 0x040);
    assert!(offset_of!(IdAuth, id_key) == 0x240);
    assert!(offset_of!(IdAuth, id_key_signature) == 0x680);
    assert!(offset_of!(IdAuth, author_key) == 0x880);
};

impl IdBlock {
    /// Bytes of an ID block.
    pub const BYTES: usize = 96;

    /// A block for a launch digest and a policy.
    #[must_use]
    pub fn new(
        launch_digest: [u8; 48],
        policy: u64,
        guest_svn: u32,
        family_id: [u8; 16],
        image_id: [u8; 16],
    ) -> Self {
        Self {
            launch_digest,
            family_id,
            image_id,
            version: VERSION.into(),
            guest_svn: guest_svn.into(),
            policy: policy.into(),
        }
    }

    /// Takes `bytes` as an ID block.
    ///
    /// # Errors
    /// The size or the version is not an ID block's.
    pub fn parse(bytes: &[u8]) -> Result<&Self, Error> {
        let found = bytes.len();
        let block = Self::ref_from_bytes(bytes).map_err(|_| Error::Size {
            what: "ID block",
            expected: Self::BYTES,
            found,
        })?;
        field("ID block version", VERSION, block.version.get())?;
        Ok(block)
    }

    /// What the ID key signs, with ECDSA P-384 and SHA-384: the block's bytes.
    #[must_use]
    pub fn to_be_signed(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl AmdPublicKey {
    /// Writes a public key as AMD does.
    #[must_use]
    pub fn from_key(key: &VerifyingKey) -> Self {
        let point = key.to_sec1_point(false);
        let (x, y) = point.as_bytes().get(1..97).unwrap_or(&[0; 96]).split_at(48);
        Self { curve: CURVE_P384.into(), x: little_endian(x), y: little_endian(y), ..Self::new_zeroed() }
    }

    /// What the author key signs, with ECDSA P-384 and SHA-384: the key's bytes.
    #[must_use]
    pub fn to_be_signed(&self) -> &[u8] {
        self.as_bytes()
    }

    /// ID_KEY_DIGEST or AUTHOR_KEY_DIGEST of reports: SHA-384 over the key's bytes.
    #[must_use]
    pub fn digest(&self) -> [u8; 48] {
        let mut bytes = [0; 48];
        bytes.copy_from_slice(digest(&SHA384, self.as_bytes()).as_ref());
        bytes
    }

    fn to_key(&self, name: &'static str) -> Result<VerifyingKey, Error> {
        field(name, CURVE_P384, self.curve.get())?;
        let mut point = vec![4];
        point.extend(self.x[..48].iter().rev());
        point.extend(self.y[..48].iter().rev());
        let key = VerifyingKey::from_sec1_bytes(&point).map_err(|_| Error::Key(name))?;
        if Self::from_key(&key) == *self { Ok(key) } else { Err(Error::Key(name)) }
    }
}

impl IdAuth {
    /// Bytes of ID authentication information.
    pub const BYTES: usize = 4096;

    /// Authentication information from signatures that were made elsewhere: over [`IdBlock::to_be_signed`], and, where
    /// there is an author key, over [`AmdPublicKey::to_be_signed`] of the ID key.
    #[must_use]
    pub fn new(
        id_key: &VerifyingKey,
        block: &Signature,
        author: Option<(&VerifyingKey, &Signature)>,
    ) -> Self {
        let mut auth = Self {
            id_key_algorithm: ECDSA_P384_SHA384.into(),
            id_block_signature: amd_signature(block),
            id_key: AmdPublicKey::from_key(id_key),
            ..Self::new_zeroed()
        };
        if let Some((key, signature)) = author {
            auth.author_key_algorithm = ECDSA_P384_SHA384.into();
            auth.author_key = AmdPublicKey::from_key(key);
            auth.id_key_signature = amd_signature(signature);
        }
        auth
    }

    /// Signs `block` with `id_key`, and `id_key` with `author_key` if there is one.
    ///
    /// # Errors
    /// The signing operation failed.
    pub fn sign(
        block: &IdBlock,
        id_key: &SigningKey,
        author_key: Option<&SigningKey>,
    ) -> Result<Self, Error> {
        let failed = |error: p384::ecdsa::Error| Error::Sign(error.to_string());
        let public = AmdPublicKey::from_key(id_key.verifying_key());
        let block_signature: Signature = id_key.try_sign(block.to_be_signed()).map_err(failed)?;
        let key_signature: Option<Signature> =
            author_key.map(|key| key.try_sign(public.to_be_signed())).transpose().map_err(failed)?;
        let author = author_key.map(SigningKey::verifying_key).zip(key_signature.as_ref());
        Ok(Self::new(id_key.verifying_key(), &block_signature, author))
    }

    /// Takes `bytes` as ID authentication information.
    ///
    /// # Errors
    /// The size is wrong.
    pub fn parse(bytes: &[u8]) -> Result<&Self, Error> {
        let found = bytes.len();
        Self::ref_from_bytes(bytes).map_err(|_| Error::Size {
            what: "ID authentication information",
            expected: Self::BYTES,
            found,
        })
    }

    /// Whether a key authorises an author: AUTHOR_KEY_EN of the launch.
    #[must_use]
    pub fn has_author_key(&self) -> bool {
        self.author_key_algorithm.get() != 0
    }

    /// Checks what the firmware checks: both signatures.
    ///
    /// # Errors
    /// An unknown algorithm or curve, or a signature that does not verify.
    pub fn verify(&self, block: &IdBlock) -> Result<(), Error> {
        field("ID_KEY_ALGO", ECDSA_P384_SHA384, self.id_key_algorithm.get())?;
        verify(block.to_be_signed(), &self.id_block_signature, &self.id_key, "ID key")?;
        if !self.has_author_key() {
            return Ok(());
        }
        field("AUTHOR_KEY_ALGO", ECDSA_P384_SHA384, self.author_key_algorithm.get())?;
        verify(self.id_key.to_be_signed(), &self.id_key_signature, &self.author_key, "author key")
    }
}

fn verify(
    message: &[u8],
    signature: &AmdSignature,
    key: &AmdPublicKey,
    name: &'static str,
) -> Result<(), Error> {
    let key = key.to_key(name)?;
    let signature = Signature::from_slice(&big_endian(signature)).map_err(|_| Error::Signature(name))?;
    key.verify(message, &signature).map_err(|_| Error::Signature(name))
}

fn field(field: &'static str, expected: u32, found: u32) -> Result<(), Error> {
    if expected == found { Ok(()) } else { Err(Error::Field { field, expected, found }) }
}

/// `r` and `s`, 48 bytes each, big-endian: what signature libraries take.
pub(crate) fn big_endian(signature: &AmdSignature) -> [u8; 96] {
    let mut bytes = [0; 96];
    let numbers = signature.r[..48].iter().rev().chain(signature.s[..48].iter().rev());
    for (byte, value) in bytes.iter_mut().zip(numbers) {
        *byte = *value;
    }
    bytes
}

fn little_endian(number: &[u8]) -> [u8; 72] {
    let mut bytes = [0; 72];
    for (byte, value) in bytes.iter_mut().zip(number.iter().rev()) {
        *byte = *value;
    }
    bytes
}

fn amd_signature(signature: &Signature) -> AmdSignature {
    let (r, s) = signature.split_bytes();
    AmdSignature { r: little_endian(&r), s: little_endian(&s), reserved: [0; 368] }
}
