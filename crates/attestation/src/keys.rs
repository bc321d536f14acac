//! P-384 signing keys and signatures from files.

use p384::{
    SecretKey,
    ecdsa::{Signature, SigningKey, VerifyingKey},
    pkcs8::{DecodePrivateKey as _, DecodePublicKey as _},
};
use thiserror::Error;

/// Why a file is not a key or a signature.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum Error {
    /// Not a private key.
    #[error("expected a P-384 private key in PEM (PKCS #8 or SEC 1), found neither: {0}")]
    Private(String),
    /// Not a public key.
    #[error("expected a P-384 public key in PEM (SubjectPublicKeyInfo), found: {0}")]
    Public(String),
    /// Not a signature.
    #[error(
        "expected a P-384 ECDSA signature (DER, or r and s of 48 bytes each, big-endian), found {0} bytes of something else"
    )]
    Signature(usize),
}

/// A private key from PEM: PKCS #8 (`BEGIN PRIVATE KEY`) or SEC 1 (`BEGIN EC PRIVATE KEY`).
///
/// # Errors
/// It is neither, or on another curve.
pub fn private_key(pem: &str) -> Result<SigningKey, Error> {
    SecretKey::from_pkcs8_pem(pem)
        .map_err(|error| error.to_string())
        .or_else(|_| SecretKey::from_sec1_pem(pem).map_err(|error| error.to_string()))
        .map(SigningKey::from)
        .map_err(Error::Private)
}

/// A public key from PEM (`BEGIN PUBLIC KEY`).
///
/// # Errors
/// It is none, or on another curve.
pub fn public_key(pem: &str) -> Result<VerifyingKey, Error> {
    VerifyingKey::from_public_key_pem(pem).map_err(|error| Error::Public(error.to_string()))
}

/// A signature that was made elsewhere: DER, as OpenSSL writes it, or 96 bytes, as hardware modules do.
///
/// # Errors
/// It is neither.
pub fn signature(bytes: &[u8]) -> Result<Signature, Error> {
    Signature::from_slice(bytes)
        .or_else(|_| Signature::from_der(bytes))
        .map_err(|_| Error::Signature(bytes.len()))
}
