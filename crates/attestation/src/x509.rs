//! X.509 certificates and revocation lists (RFC 5280), as far as chains of a known shape need them.
//!
//! Signatures are checked over the bytes as received, never over a re-encoding. A critical extension that is not
//! understood is an error.

use std::time::Duration;

use ring::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use thiserror::Error;
use x509_cert::{
    Certificate as Parsed,
    certificate::TbsCertificate,
    crl::CertificateList,
    der::{
        Decode as _, Encode as _, Reader as _, SliceReader, Tag,
        asn1::{AnyRef, BitStringRef, ObjectIdentifier},
        oid::AssociatedOid,
    },
    ext::pkix::{BasicConstraints, ExtendedKeyUsage, KeyUsage},
    spki::{AlgorithmIdentifierOwned, AlgorithmIdentifierRef},
    time::Time,
};

/// Most bytes of a certificate; AMD's, with 4096-bit RSA keys, have less than two thousand.
pub const CERTIFICATE_MAX: usize = 16 * 1024;
/// Most bytes of a revocation list.
pub const CRL_MAX: usize = 1024 * 1024;
/// Most certificates in a PEM file.
const PEM_MAX: usize = 16;

const RSA_PSS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.10");
const RSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.11");
const RSA_SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.12");
const ECDSA_SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.3");
const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const RSA_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");

/// Why a certificate, list or signature is not good.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum Error {
    /// Too many bytes.
    #[error("expected at most {expected} bytes of {what}, found {found}")]
    Size {
        /// What was to be parsed.
        what: &'static str,
        /// The limit.
        expected: usize,
        /// The size.
        found: usize,
    },
    /// Not the DER or PEM that it should be.
    #[error("malformed {what}: {reason}")]
    Malformed {
        /// What was to be parsed.
        what: &'static str,
        /// The reason, in the words of the parser.
        reason: String,
    },
    /// A critical extension that nobody here understands.
    #[error("certificate {subject}: critical extension {oid} is not known")]
    CriticalExtension {
        /// The certificate.
        subject: String,
        /// The extension.
        oid: String,
    },
    /// A signature algorithm or key type that is not in use.
    #[error("signature algorithm {algorithm} with key type {key} is not supported")]
    Algorithm {
        /// Object identifier of the signature algorithm.
        algorithm: String,
        /// Object identifier of the key type.
        key: String,
    },
    /// The signature is not by the issuer.
    #[error("{what} is not signed by {issuer}")]
    Signature {
        /// What is signed.
        what: String,
        /// Whose key was to have signed.
        issuer: String,
    },
    /// The issuer's name in the certificate is not the issuer's.
    #[error("{what} names issuer {found}, not {expected}")]
    Issuer {
        /// What names an issuer.
        what: String,
        /// The issuer's subject.
        expected: String,
        /// The name found.
        found: String,
    },
    /// The issuer's certificate does not let it issue.
    #[error("{0} is not a certificate authority")]
    NotAuthority(String),
    /// Outside its time.
    #[error("{what} is valid from {from} to {to} (Unix seconds), not at {at}")]
    Time {
        /// What has expired or is not valid yet.
        what: String,
        /// Start.
        from: u64,
        /// End.
        to: u64,
        /// The time asked for.
        at: u64,
    },
    /// On a revocation list.
    #[error("{0} is revoked")]
    Revoked(String),
    /// A revocation list without an end of its validity.
    #[error("revocation list of {0} has no next update")]
    NoNextUpdate(String),
}

/// A parsed certificate with its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    der: Vec<u8>,
    parsed: Parsed,
}

impl Certificate {
    /// Parses one DER certificate.
    ///
    /// # Errors
    /// Too long, malformed, or with a critical extension that is not known.
    pub fn from_der(der: &[u8]) -> Result<Self, Error> {
        let parsed: Parsed = decode(der, "certificate", CERTIFICATE_MAX)?;
        same_algorithm("certificate", parsed.signature_algorithm(), parsed.tbs_certificate().signature())?;
        let known = [BasicConstraints::OID, KeyUsage::OID, ExtendedKeyUsage::OID];
        let mut critical = parsed.tbs_certificate().extensions().into_iter().flatten().filter(|e| e.critical);
        if let Some(unknown) = critical.find(|extension| !known.contains(&extension.extn_id)) {
            let subject = parsed.tbs_certificate().subject().to_string();
            return Err(Error::CriticalExtension { subject, oid: unknown.extn_id.to_string() });
        }
        Ok(Self { der: der.to_vec(), parsed })
    }

    /// Parses all certificates of a PEM file, in their order.
    ///
    /// # Errors
    /// As [`Certificate::from_der`]; also no certificate at all, or more than sixteen.
    pub fn from_pem(pem: &[u8]) -> Result<Vec<Self>, Error> {
        let malformed = |reason: String| Error::Malformed { what: "PEM file of certificates", reason };
        let mut chain = Vec::new();
        for der in CertificateDer::pem_slice_iter(pem) {
            if chain.len() == PEM_MAX {
                return Err(malformed(format!("more than {PEM_MAX} certificates")));
            }
            chain.push(Self::from_der(&der.map_err(|error| malformed(error.to_string()))?)?);
        }
        if chain.is_empty() { Err(malformed("no certificate".to_owned())) } else { Ok(chain) }
    }

    /// The certificate's bytes.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The subject's distinguished name.
    #[must_use]
    pub fn subject(&self) -> String {
        self.tbs().subject().to_string()
    }

    /// The subject's common name; empty if there is none.
    #[must_use]
    pub fn common_name(&self) -> String {
        common_name(self.tbs().subject())
    }

    /// The issuer's common name; empty if there is none.
    #[must_use]
    pub fn issuer_common_name(&self) -> String {
        common_name(self.tbs().issuer())
    }

    /// The value of an extension.
    #[must_use]
    pub fn extension(&self, oid: ObjectIdentifier) -> Option<&[u8]> {
        let mut extensions = self.tbs().extensions().into_iter().flatten();
        extensions.find(|extension| extension.extn_id == oid).map(|extension| extension.extn_value.as_bytes())
    }

    /// The purposes that the certificate is for, as object identifiers.
    #[must_use]
    pub fn extended_key_usages(&self) -> Vec<String> {
        self.extension(ExtendedKeyUsage::OID)
            .and_then(|value| ExtendedKeyUsage::from_der(value).ok())
            .map(|usages| usages.0.iter().map(ObjectIdentifier::to_string).collect())
            .unwrap_or_default()
    }

    /// Whether the certificate may issue others.
    #[must_use]
    pub fn is_authority(&self) -> bool {
        let constraints =
            self.extension(BasicConstraints::OID).and_then(|v| BasicConstraints::from_der(v).ok());
        let usage = self.extension(KeyUsage::OID).and_then(|value| KeyUsage::from_der(value).ok());
        constraints.is_some_and(|constraints| constraints.ca)
            && usage.is_none_or(|usage| usage.key_cert_sign())
    }

    /// How many authorities may stand between this one and a certificate at the end of a chain; `None` if any number.
    #[must_use]
    pub fn path_length(&self) -> Option<u8> {
        let constraints = BasicConstraints::from_der(self.extension(BasicConstraints::OID)?).ok()?;
        constraints.path_len_constraint
    }

    /// Whether the certificate may sign revocation lists.
    #[must_use]
    pub fn signs_revocation_lists(&self) -> bool {
        let usage = self.extension(KeyUsage::OID).and_then(|value| KeyUsage::from_der(value).ok());
        self.is_authority() && usage.is_none_or(|usage| usage.crl_sign())
    }

    /// Whether the public key is on P-384.
    #[must_use]
    pub fn has_p384_key(&self) -> bool {
        let algorithm = &self.tbs().subject_public_key_info().algorithm;
        algorithm.oid == EC_PUBLIC_KEY
            && algorithm.parameters.as_ref().and_then(|curve| curve.decode_as().ok()) == Some(P384)
    }

    /// The SubjectPublicKeyInfo, DER.
    ///
    /// # Errors
    /// It cannot be encoded.
    pub fn public_key_info(&self) -> Result<Vec<u8>, Error> {
        self.tbs().subject_public_key_info().to_der().map_err(malformed("public key"))
    }

    /// The public key's own bytes: a point, or an RSAPublicKey.
    #[must_use]
    pub fn public_key(&self) -> &[u8] {
        self.tbs().subject_public_key_info().subject_public_key.raw_bytes()
    }

    /// Whether the certificate is valid at a time, in Unix seconds.
    ///
    /// # Errors
    /// It is not.
    pub fn check_time(&self, at: u64) -> Result<(), Error> {
        let validity = self.tbs().validity();
        check_time(|| self.common_name(), validity.not_before, validity.not_after, at)
    }

    /// Whether `issuer`, by name and key, has issued this certificate, and may.
    ///
    /// # Errors
    /// It has not, or may not.
    pub fn check_issued_by(&self, issuer: &Self) -> Result<(), Error> {
        if !issuer.is_authority() {
            return Err(Error::NotAuthority(issuer.common_name()));
        }
        if self.tbs().issuer() != issuer.tbs().subject() {
            let (expected, found) = (issuer.common_name(), self.issuer_common_name());
            return Err(Error::Issuer { what: self.common_name(), expected, found });
        }
        issuer.check_signature_of(&self.der, &self.common_name())
    }

    /// Whether this certificate's key has signed a message with `algorithm`.
    ///
    /// # Errors
    /// It has not.
    pub fn check_message(
        &self,
        algorithm: &'static dyn VerificationAlgorithm,
        message: &[u8],
        signature: &[u8],
        what: &str,
    ) -> Result<(), Error> {
        UnparsedPublicKey::new(algorithm, self.public_key())
            .verify(message, signature)
            .map_err(|_| Error::Signature { what: what.to_owned(), issuer: self.common_name() })
    }

    /// Whether this certificate's key has signed `signed`, the DER of a certificate or a list.
    fn check_signature_of(&self, signed: &[u8], what: &str) -> Result<(), Error> {
        let signed = Signed::split(signed)?;
        let key = self.tbs().subject_public_key_info().algorithm.oid;
        let algorithm: &'static dyn VerificationAlgorithm = match (signed.algorithm, key) {
            (RSA_PSS, RSA_PUBLIC_KEY) => &signature::RSA_PSS_2048_8192_SHA384,
            (RSA_SHA256, RSA_PUBLIC_KEY) => &signature::RSA_PKCS1_2048_8192_SHA256,
            (RSA_SHA384, RSA_PUBLIC_KEY) => &signature::RSA_PKCS1_2048_8192_SHA384,
            (ECDSA_SHA384, EC_PUBLIC_KEY) if self.has_p384_key() => &signature::ECDSA_P384_SHA384_ASN1,
            (algorithm, key) => {
                return Err(Error::Algorithm { algorithm: algorithm.to_string(), key: key.to_string() });
            }
        };
        self.check_message(algorithm, signed.content, signed.signature, what)
    }

    fn tbs(&self) -> &TbsCertificate {
        self.parsed.tbs_certificate()
    }
}

/// A revocation list with its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevocationList {
    der: Vec<u8>,
    parsed: CertificateList,
}

impl RevocationList {
    /// Parses one DER list.
    ///
    /// # Errors
    /// Too long, or malformed.
    pub fn from_der(der: &[u8]) -> Result<Self, Error> {
        let parsed: CertificateList = decode(der, "revocation list", CRL_MAX)?;
        same_algorithm("revocation list", &parsed.signature_algorithm, &parsed.tbs_cert_list.signature)?;
        Ok(Self { der: der.to_vec(), parsed })
    }

    /// Whether the list names `issuer` as its issuer.
    #[must_use]
    pub fn is_issued_by(&self, issuer: &Certificate) -> bool {
        &self.parsed.tbs_cert_list.issuer == issuer.tbs().subject()
    }

    /// Whether `certificate`, issued by `issuer`, is not on this list; the list must be `issuer`'s, and valid at `at`.
    ///
    /// # Errors
    /// The list is not `issuer`'s, is stale or not valid yet, or has the certificate.
    pub fn check(&self, certificate: &Certificate, issuer: &Certificate, at: u64) -> Result<(), Error> {
        let list = &self.parsed.tbs_cert_list;
        let name = || format!("revocation list of {}", common_name(&list.issuer));
        if &list.issuer != issuer.tbs().subject() {
            let (expected, found) = (issuer.common_name(), common_name(&list.issuer));
            return Err(Error::Issuer { what: name(), expected, found });
        }
        if !issuer.signs_revocation_lists() {
            return Err(Error::NotAuthority(issuer.common_name()));
        }
        issuer.check_signature_of(&self.der, &name())?;
        let next_update = list.next_update.ok_or_else(|| Error::NoNextUpdate(common_name(&list.issuer)))?;
        check_time(name, list.this_update, next_update, at)?;
        let serial = certificate.tbs().serial_number();
        let mut revoked = list.revoked_certificates.iter().flatten();
        match revoked.find(|entry| &entry.serial_number == serial) {
            Some(_) => Err(Error::Revoked(certificate.common_name())),
            None => Ok(()),
        }
    }
}

/// The three parts of a certificate or list: what is signed, how, and the signature.
struct Signed<'a> {
    content: &'a [u8],
    algorithm: ObjectIdentifier,
    signature: &'a [u8],
}

impl<'a> Signed<'a> {
    fn split(der: &'a [u8]) -> Result<Self, Error> {
        let malformed = malformed("signed structure");
        let split = || {
            let mut reader = SliceReader::new(AnyRef::from_der(der)?.value())?;
            let content = reader.tlv_bytes()?;
            let algorithm = AlgorithmIdentifierRef::decode(&mut reader)?.oid;
            let signature = BitStringRef::decode(&mut reader)?.as_bytes();
            let signature = signature.ok_or(x509_cert::der::ErrorKind::Value { tag: Tag::BitString })?;
            reader.finish()?;
            Ok(Self { content, algorithm, signature })
        };
        split().map_err(malformed)
    }
}

fn decode<'a, T: x509_cert::der::Decode<'a, Error = x509_cert::der::Error>>(
    der: &'a [u8],
    what: &'static str,
    expected: usize,
) -> Result<T, Error> {
    if der.len() > expected {
        return Err(Error::Size { what, expected, found: der.len() });
    }
    T::from_der(der).map_err(malformed(what))
}

/// The algorithm stands once outside and once inside what is signed; only the inner one is beyond a forger's reach.
fn same_algorithm(
    what: &'static str,
    outer: &AlgorithmIdentifierOwned,
    inner: &AlgorithmIdentifierOwned,
) -> Result<(), Error> {
    if outer == inner {
        return Ok(());
    }
    Err(Error::Malformed { what, reason: format!("signed with {}, but says {}", outer.oid, inner.oid) })
}

fn malformed(what: &'static str) -> impl Fn(x509_cert::der::Error) -> Error {
    move |error| Error::Malformed { what, reason: error.to_string() }
}

fn common_name(name: &x509_cert::name::Name) -> String {
    name.common_name().ok().flatten().map(|value| value.value().into_owned()).unwrap_or_default()
}

fn check_time(what: impl FnOnce() -> String, from: Time, to: Time, at: u64) -> Result<(), Error> {
    let (start, end, now) = (from.to_unix_duration(), to.to_unix_duration(), Duration::from_secs(at));
    if start <= now && now <= end {
        return Ok(());
    }
    Err(Error::Time { what: what(), from: start.as_secs(), to: end.as_secs(), at })
}
