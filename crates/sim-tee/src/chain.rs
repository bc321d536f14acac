//! Certificates of the shape of AMD's: a root (ARK), a signer (ASK), and an endorsement key's certificate with AMD's
//! extensions (AMD publication 57230, VCEK certificate and KDS interface; arc 1.3.6.1.4.1.3704.1).
//!
//! AMD's root and signer are RSA keys; these are P-384 keys, because an RSA key takes seconds to make. That, beside
//! the names, keeps them apart from AMD's for everybody.

use evidence::{
    oid,
    sim::SIMULATED,
    tcb::{Product, Tcb},
};
use p384::{
    ecdsa::{DerSignature, SigningKey},
    elliptic_curve::Generate as _,
};
use x509_cert::{
    Certificate, SubjectPublicKeyInfo, TbsCertificate,
    attr::AttributeTypeAndValue,
    builder::{Builder as _, CertificateBuilder, Result as BuilderResult, profile::BuilderProfile},
    der::{
        self, Decode as _, Encode as _,
        asn1::{Any, Ia5StringRef, ObjectIdentifier, OctetString, SetOfVec, UtcTime, Utf8StringRef},
    },
    ext::{
        Extension,
        pkix::{BasicConstraints, KeyUsage, KeyUsages},
    },
    name::{Name, RdnSequence, RelativeDistinguishedName},
    serial_number::SerialNumber,
    spki::SubjectPublicKeyInfoRef,
    time::{Time, Validity},
};

use crate::Error;

/// From 2020-01-01 …
const NOT_BEFORE: u64 = 1_577_836_800;
/// … to 2049-12-31, in Unix seconds: fixed, because the host's clock proves nothing, and the machine will not live on.
const NOT_AFTER: u64 = 2_524_521_600;

/// What the certificate of an endorsement key says of it.
#[derive(Debug, Clone)]
pub enum EndorsementKey {
    /// A chip's key.
    Vcek {
        /// The chip's product line.
        product: Product,
        /// The TCB version that the key is derived from.
        tcb: Tcb,
        /// The chip.
        chip_id: [u8; 64],
    },
    /// A provider's key.
    Vlek {
        /// The product line.
        product: Product,
        /// The TCB version that the key is derived from.
        tcb: Tcb,
        /// The provider's name.
        provider: String,
    },
}

/// The common name `SIMULATED <role>`.
#[must_use]
pub fn name(role: &str) -> String {
    format!("{SIMULATED} {role}")
}

/// A key that signs certificates, and its own certificate.
pub struct Authority {
    name: Name,
    key: SigningKey,
    certificate: Vec<u8>,
}

impl Authority {
    /// A new self-signed root.
    ///
    /// # Errors
    /// No randomness, or `name` is too long for a common name.
    pub fn root(name: &str) -> Result<Self, Error> {
        let subject = distinguished(name)?;
        let key = generate()?;
        let certificate =
            issue(&key, &subject, &key, &subject, authority_extensions().map_err(failed(name))?, name)?;
        Ok(Self { name: subject, key, certificate })
    }

    /// A new authority, certified by this one.
    ///
    /// # Errors
    /// No randomness, or `name` is too long for a common name.
    pub fn subordinate(&self, name: &str) -> Result<Self, Error> {
        let subject = distinguished(name)?;
        let key = generate()?;
        let extensions = authority_extensions().map_err(failed(name))?;
        let certificate = issue(&self.key, &self.name, &key, &subject, extensions, name)?;
        Ok(Self { name: subject, key, certificate })
    }

    /// A new endorsement key, and its certificate (DER).
    ///
    /// # Errors
    /// No randomness, or `name` is too long for a common name.
    pub fn endorse(&self, name: &str, holder: &EndorsementKey) -> Result<(SigningKey, Vec<u8>), Error> {
        let subject = distinguished(name)?;
        let key = generate()?;
        let extensions = endorsement_extensions(holder).map_err(failed(name))?;
        let certificate = issue(&self.key, &self.name, &key, &subject, extensions, name)?;
        Ok((key, certificate))
    }

    /// This authority's certificate, DER.
    #[must_use]
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// This authority's key.
    #[must_use]
    pub fn key(&self) -> &SigningKey {
        &self.key
    }
}

fn generate() -> Result<SigningKey, Error> {
    Ok(SigningKey::try_generate()?)
}

/// A distinguished name with nothing but a common name. Put together from its parts, because the library's parser and
/// printer of names bring its table of all object identifiers into the program: 190 KB.
fn distinguished(common_name: &str) -> Result<Name, Error> {
    let encode = || -> der::Result<Name> {
        let oid = ObjectIdentifier::new_unwrap("2.5.4.3");
        let value = Any::encode_from(&Utf8StringRef::new(common_name)?)?;
        let attributes = SetOfVec::try_from(vec![AttributeTypeAndValue { oid, value }])?;
        Name::from_der(&RdnSequence::from(vec![RelativeDistinguishedName::from(attributes)]).to_der()?)
    };
    encode().map_err(failed(common_name))
}

fn failed<E: std::fmt::Display>(name: &str) -> impl FnOnce(E) -> Error {
    let name = name.to_owned();
    move |reason| Error::Certificate { name, reason: reason.to_string() }
}

fn authority_extensions() -> der::Result<Vec<Extension>> {
    let usage = KeyUsage(KeyUsages::KeyCertSign | KeyUsages::CRLSign);
    let constraints = BasicConstraints { ca: true, path_len_constraint: None };
    Ok(vec![
        extension("2.5.29.19", true, constraints.to_der()?)?,
        extension("2.5.29.15", true, usage.to_der()?)?,
    ])
}

fn extension(oid: &str, critical: bool, value: Vec<u8>) -> der::Result<Extension> {
    let extn_id = ObjectIdentifier::new(oid).map_err(|_| der::ErrorKind::OidMalformed)?;
    Ok(Extension { extn_id, critical, extn_value: OctetString::new(value)? })
}

fn endorsement_extensions(holder: &EndorsementKey) -> der::Result<Vec<Extension>> {
    let (product, tcb) = match holder {
        EndorsementKey::Vcek { product, tcb, .. } | EndorsementKey::Vlek { product, tcb, .. } => {
            (product, tcb)
        }
    };
    let mut values = vec![
        (oid::STRUCT_VERSION, 0u8.to_der()?),
        (oid::PRODUCT_NAME, Ia5StringRef::new(product.name())?.to_der()?),
        (oid::BOOTLOADER, tcb.bootloader.to_der()?),
        (oid::TEE, tcb.tee.to_der()?),
        (oid::SNP, tcb.snp.to_der()?),
        (oid::MICROCODE, tcb.microcode.to_der()?),
    ];
    if let Some(fmc) = tcb.fmc {
        values.push((oid::FMC, fmc.to_der()?));
    }
    values.push(match holder {
        EndorsementKey::Vcek { chip_id, .. } => (oid::HARDWARE_ID, chip_id.to_vec()),
        EndorsementKey::Vlek { provider, .. } => (oid::PROVIDER_ID, Ia5StringRef::new(provider)?.to_der()?),
    });
    values.into_iter().map(|(oid, value)| extension(oid, false, value)).collect()
}

fn issue(
    issuer_key: &SigningKey,
    issuer: &Name,
    key: &SigningKey,
    subject: &Name,
    extensions: Vec<Extension>,
    common_name: &str,
) -> Result<Vec<u8>, Error> {
    let build = || -> BuilderResult<Vec<u8>> {
        let public_key = SubjectPublicKeyInfo::from_key(key.verifying_key())?;
        let profile = Profile { issuer: issuer.clone(), subject: subject.clone(), extensions };
        let builder = CertificateBuilder::new(profile, SerialNumber::from(1u32), validity()?, public_key)?;
        let certificate: Certificate = builder.build::<_, DerSignature>(issuer_key)?;
        Ok(certificate.to_der()?)
    };
    build().map_err(failed(common_name))
}

fn validity() -> der::Result<Validity> {
    let time = |seconds| -> der::Result<Time> {
        Ok(Time::UtcTime(UtcTime::from_unix_duration(std::time::Duration::from_secs(seconds))?))
    };
    Ok(Validity::new(time(NOT_BEFORE)?, time(NOT_AFTER)?))
}

/// Tells the builder exactly what to write.
struct Profile {
    issuer: Name,
    subject: Name,
    extensions: Vec<Extension>,
}

impl BuilderProfile for Profile {
    fn get_issuer(&self, _subject: &Name) -> Name {
        self.issuer.clone()
    }

    fn get_subject(&self) -> Name {
        self.subject.clone()
    }

    fn build_extensions(
        &self,
        _key: SubjectPublicKeyInfoRef<'_>,
        _issuer_key: SubjectPublicKeyInfoRef<'_>,
        _certificate: &TbsCertificate,
    ) -> BuilderResult<Vec<Extension>> {
        Ok(self.extensions.clone())
    }
}
