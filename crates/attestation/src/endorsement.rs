//! Endorsements of utility VMs: a signed statement that a launch measurement is version so-and-so of an image.
//!
//! The form is the one that Azure publishes for its confidential containers: COSE_Sign1 (RFC 9052) with the signer's
//! chain (`x5chain`, RFC 9360), the issuer as a `did:x509` and the feed in the protected header, and a JSON payload
//! with measurement and security version. Newer ones have issuer, feed and version in CWT claims (RFC 9597); both are
//! read, the first is written. Whoever pins issuer and feed accepts updates of an image without knowing their digests.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use coset::{
    CborSerializable as _, CoseSign1, CoseSign1Builder, Header, HeaderBuilder, Label, RegisteredLabel,
    RegisteredLabelWithPrivate, TaggedCborSerializable as _,
    cbor::value::{Integer, Value},
    iana::Algorithm,
};
use p384::ecdsa::{Signature, SigningKey, signature::Signer as _};
use ring::{
    digest::{SHA256, digest},
    signature::{ECDSA_P384_SHA384_FIXED, RSA_PSS_2048_8192_SHA384, VerificationAlgorithm},
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    Expect, Verdict,
    x509::{self, Certificate},
};

/// Most bytes of an endorsement.
pub const ENDORSEMENT_MAX: usize = 64 * 1024;
/// Most certificates in an endorsement's chain.
const CHAIN_MAX: usize = 8;

const X5CHAIN: i64 = 33;
const CWT_CLAIMS: i64 = 15;
const CONTENT_TYPE: &str = "application/json";

/// Why an endorsement cannot be made or read.
#[derive(Debug, Error)]
pub enum Error {
    /// Too many bytes.
    #[error("endorsement: expected at most {ENDORSEMENT_MAX} bytes, found {0}")]
    Size(usize),
    /// A part is missing or of another form.
    #[error("endorsement: expected {expected}, found {found}")]
    Form {
        /// The part.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// A certificate in it.
    #[error(transparent)]
    Certificate(#[from] x509::Error),
    /// The issuer's identifier.
    #[error("expected did:x509:0:sha256:<43 characters of base64url>::eku:<object identifier>, found {0:?}")]
    Did(String),
    /// The key is not the chain's.
    #[error("the signing key is not the one of {0}, the first certificate of the chain")]
    Key(String),
    /// The signing operation failed.
    #[error("cannot sign the endorsement: {0}")]
    Sign(String),
}

/// Who may endorse: a certificate authority by its fingerprint, and a purpose that it certifies (`did:x509`, version
/// 0, policy `eku`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issuer {
    /// SHA-256 of the authority's certificate.
    pub authority: [u8; 32],
    /// Object identifier of the extended key usage that the signer's certificate must have.
    pub key_usage: String,
}

impl std::str::FromStr for Issuer {
    type Err = Error;

    fn from_str(did: &str) -> Result<Self, Error> {
        let parse = || {
            let (fingerprint, key_usage) = did.strip_prefix("did:x509:0:sha256:")?.split_once("::eku:")?;
            let authority = URL_SAFE_NO_PAD.decode(fingerprint).ok()?.try_into().ok()?;
            let is_oid =
                !key_usage.is_empty() && key_usage.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
            is_oid.then(|| Self { authority, key_usage: key_usage.to_owned() })
        };
        parse().ok_or_else(|| Error::Did(did.to_owned()))
    }
}

impl fmt::Display for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "did:x509:0:sha256:{}::eku:{}", URL_SAFE_NO_PAD.encode(self.authority), self.key_usage)
    }
}

/// What an endorsement says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// The line of images, such as `ConfAKS-AMD-UVM`.
    pub feed: String,
    /// Security version within the feed.
    pub svn: u64,
    /// SNP launch digest.
    pub measurement: [u8; 48],
}

/// What an endorsement must say.
#[derive(Debug, Clone)]
pub struct Expectations {
    /// The time at which certificates must be valid, in Unix seconds. Published endorsements outlive their signer's
    /// certificate, so that some verifiers waive it.
    pub now: Expect<u64>,
    /// Who must have endorsed.
    pub issuer: Issuer,
    /// The feed.
    pub feed: String,
    /// Lowest security version.
    pub min_svn: u64,
    /// Launch digests, such as the report's, that will do.
    pub measurement: Expect<Vec<[u8; 48]>>,
}

#[derive(Serialize, Deserialize)]
struct Payload {
    #[serde(rename = "x-ms-sevsnpvm-guestsvn", skip_serializing_if = "Option::is_none")]
    svn: Option<Svn>,
    #[serde(rename = "x-ms-sevsnpvm-launchmeasurement")]
    measurement: String,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Svn {
    Text(String),
    Number(u64),
}

/// Signs a statement. `chain` has the certificate of `key` first and the authority last; the issuer named is the
/// authority, for the purpose `key_usage`.
///
/// # Errors
/// The chain is too short, is not `key`'s, or is not for that purpose.
pub fn sign(
    statement: &Statement,
    key: &SigningKey,
    chain: &[Certificate],
    key_usage: &str,
) -> Result<Vec<u8>, Error> {
    let [signer, .., authority] = chain else {
        let found = format!("{} certificates", chain.len());
        return Err(Error::Form { expected: "a chain of at least two certificates", found });
    };
    if signer.public_key() != key.verifying_key().to_sec1_point(false).as_bytes() {
        return Err(Error::Key(signer.common_name()));
    }
    check_chain(chain)?;
    let usages = signer.extended_key_usages();
    if !usages.iter().any(|usage| usage == key_usage) {
        let found = format!("{usages:?} instead of {key_usage}");
        return Err(Error::Form { expected: "the purpose in the signer's certificate", found });
    }
    let issuer = Issuer { authority: fingerprint(authority), key_usage: key_usage.to_owned() };
    let certificates = chain.iter().map(|certificate| Value::Bytes(certificate.der().to_vec())).collect();
    let protected = HeaderBuilder::new()
        .algorithm(Algorithm::ES384)
        .content_type(CONTENT_TYPE.to_owned())
        .value(X5CHAIN, Value::Array(certificates))
        .text_value("iss".to_owned(), Value::Text(issuer.to_string()))
        .text_value("feed".to_owned(), Value::Text(statement.feed.clone()))
        .build();
    let payload = Payload {
        svn: Some(Svn::Text(statement.svn.to_string())),
        measurement: hex::encode(statement.measurement),
    };
    let payload = serde_json::to_vec(&payload).map_err(|error| Error::Sign(error.to_string()))?;
    CoseSign1Builder::new()
        .protected(protected)
        .payload(payload)
        .try_create_signature(&[], |message| {
            let signature: Signature = key.try_sign(message)?;
            Ok(signature.to_bytes().to_vec())
        })
        .map_err(|error: p384::ecdsa::Error| Error::Sign(error.to_string()))?
        .build()
        .to_tagged_vec()
        .map_err(|error| Error::Sign(error.to_string()))
}

/// Verifies an endorsement. The statement is worth something only if the verdict is accepted.
#[must_use]
pub fn verify(bytes: &[u8], expectations: &Expectations) -> (Verdict, Option<Statement>) {
    let mut verdict = Verdict::default();
    let envelope = Envelope::parse(bytes);
    let expected = "a COSE_Sign1 endorsement";
    let Some(envelope) = verdict.result("endorsement format", expected, envelope, |e| e.issuer.clone())
    else {
        return (verdict, None);
    };
    let chain = &envelope.chain;
    let names = chain.iter().map(Certificate::common_name).collect::<Vec<_>>().join(" ← ");
    let expected = "at least two certificates, each issued by the next";
    verdict.result("endorsement chain", expected, check_chain(chain), |()| names);
    match expectations.now {
        Expect::Waived => verdict.waive("endorsement dates", "not compared with any time"),
        Expect::Is(at) => {
            let dates = chain.iter().try_for_each(|certificate| certificate.check_time(at));
            let expected = format!("certificates that are valid at {at} (Unix seconds)");
            verdict
                .result("endorsement dates", &expected, dates, |()| format!("valid at {at} (Unix seconds)"));
        }
    }
    envelope.check_issuer(&mut verdict, &expectations.issuer);
    let signed = envelope.check_signature();
    verdict.result("endorsement signature", "a signature by the chain's first certificate", signed, |()| {
        chain.first().map(Certificate::common_name).unwrap_or_default()
    });
    let statement = envelope.statement;
    let feed = &expectations.feed;
    verdict.check("endorsement feed", &statement.feed == feed, feed.clone(), statement.feed.clone());
    let floor = expectations.min_svn;
    verdict.check(
        "endorsement SVN",
        statement.svn >= floor,
        format!("at least {floor}"),
        statement.svn.to_string(),
    );
    verdict.expect_one_of("endorsement measurement", &expectations.measurement, &statement.measurement);
    (verdict, Some(statement))
}

/// An endorsement taken apart; nothing in it is believed yet.
struct Envelope {
    message: CoseSign1,
    algorithm: &'static dyn VerificationAlgorithm,
    chain: Vec<Certificate>,
    issuer: String,
    statement: Statement,
}

impl Envelope {
    fn parse(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.len() > ENDORSEMENT_MAX {
            return Err(Error::Size(bytes.len()));
        }
        let message = CoseSign1::from_tagged_slice(bytes)
            .or_else(|_| CoseSign1::from_slice(bytes))
            .map_err(|error| form("COSE_Sign1", error))?;
        let header = &message.protected.header;
        if !header.crit.is_empty() {
            return Err(form("no critical header", format!("{:?}", header.crit)));
        }
        match &header.content_type {
            Some(RegisteredLabel::Text(text)) if text == CONTENT_TYPE => {}
            other => return Err(form("content type application/json", format!("{other:?}"))),
        }
        let chain = certificates(header)?;
        let algorithm = algorithm(header, &chain)?;
        let claims = Claims::of(header)?;
        let statement = claims.statement(message.payload.as_deref().unwrap_or_default())?;
        Ok(Self { algorithm, chain, issuer: claims.issuer, statement, message })
    }

    /// The issuer that is named must be the one that is trusted, and the chain must be that issuer's.
    fn check_issuer(&self, verdict: &mut Verdict, trusted: &Issuer) {
        verdict.check(
            "endorsement issuer",
            self.issuer == trusted.to_string(),
            trusted.to_string(),
            &self.issuer,
        );
        let authorities = self.chain.get(1..).unwrap_or_default();
        let is_there = authorities.iter().any(|certificate| fingerprint(certificate) == trusted.authority);
        verdict.check(
            "endorsement authority",
            is_there,
            format!("an authority with SHA-256 fingerprint {}", hex::encode(trusted.authority)),
            authorities
                .iter()
                .map(|certificate| hex::encode(fingerprint(certificate)))
                .collect::<Vec<_>>()
                .join(", "),
        );
        let usages = self.chain.first().map(Certificate::extended_key_usages).unwrap_or_default();
        verdict.check(
            "endorsement key usage",
            usages.contains(&trusted.key_usage),
            trusted.key_usage.clone(),
            usages.join(", "),
        );
    }

    fn check_signature(&self) -> Result<(), x509::Error> {
        let signer = self.chain.first();
        self.message.verify_signature(&[], |signature, message| match signer {
            Some(signer) => signer.check_message(self.algorithm, message, signature, "endorsement"),
            None => {
                Err(x509::Error::Signature { what: "endorsement".to_owned(), issuer: "nobody".to_owned() })
            }
        })
    }
}

/// What the protected header claims, in either of its two forms.
struct Claims {
    issuer: String,
    feed: String,
    svn: Option<u64>,
}

impl Claims {
    fn of(header: &Header) -> Result<Self, Error> {
        let text = |name: &str| find(&header.rest, &Label::Text(name.to_owned())).and_then(Value::as_text);
        let claims = find(&header.rest, &Label::Int(CWT_CLAIMS));
        match (text("iss"), text("feed"), claims.and_then(Value::as_map)) {
            (Some(issuer), Some(feed), None) => {
                Ok(Self { issuer: issuer.to_owned(), feed: feed.to_owned(), svn: None })
            }
            (None, None, Some(claims)) => Self::of_cwt(claims),
            _ => Err(form("iss and feed, or CWT claims, in the protected header", "neither, or both")),
        }
    }

    fn of_cwt(claims: &[(Value, Value)]) -> Result<Self, Error> {
        let claim = |key: &Value| {
            let mut values = claims.iter().filter(|(name, _)| name == key).map(|(_, value)| value);
            values.next().filter(|_| values.next().is_none())
        };
        let text = |key: u8, expected| {
            let value = claim(&Value::Integer(key.into())).and_then(Value::as_text);
            value.map(str::to_owned).ok_or_else(|| form(expected, "none"))
        };
        let number = claim(&Value::Text("svn".to_owned())).and_then(Value::as_integer);
        let svn = number.map(|number: Integer| u64::try_from(number)).transpose();
        Ok(Self {
            issuer: text(1, "a CWT claim iss (1)")?,
            feed: text(2, "a CWT claim sub (2)")?,
            svn: svn.map_err(|_| form("a CWT claim svn of 64 bits", "another number"))?,
        })
    }

    /// Header and payload together; a version in both must be the same.
    fn statement(&self, payload: &[u8]) -> Result<Statement, Error> {
        let payload: Payload = serde_json::from_slice(payload)
            .map_err(|error| form("a JSON payload with a measurement", error))?;
        let mut measurement = [0; 48];
        hex::decode_to_slice(&payload.measurement, &mut measurement)
            .map_err(|error| form("a launch measurement of 96 hexadecimal digits", error))?;
        let stated = match payload.svn {
            Some(Svn::Number(svn)) => Some(svn),
            Some(Svn::Text(text)) => Some(text.parse().map_err(|_| form("a security version", text))?),
            None => None,
        };
        let svn = match (self.svn, stated) {
            (Some(one), Some(other)) if one != other => {
                return Err(form("one security version", format!("{one} and {other}")));
            }
            (one, other) => one.or(other).ok_or_else(|| form("a security version", "none"))?,
        };
        Ok(Statement { feed: self.feed.clone(), svn, measurement })
    }
}

/// The algorithm must suit the signer's key: no choice is left to the message.
fn algorithm(header: &Header, chain: &[Certificate]) -> Result<&'static dyn VerificationAlgorithm, Error> {
    let is_p384 = chain.first().is_some_and(Certificate::has_p384_key);
    match &header.alg {
        Some(RegisteredLabelWithPrivate::Assigned(Algorithm::ES384)) if is_p384 => {
            Ok(&ECDSA_P384_SHA384_FIXED)
        }
        Some(RegisteredLabelWithPrivate::Assigned(Algorithm::PS384)) if !is_p384 => {
            Ok(&RSA_PSS_2048_8192_SHA384)
        }
        other => Err(form("algorithm ES384 or PS384, as the signer's key has it", format!("{other:?}"))),
    }
}

fn certificates(header: &Header) -> Result<Vec<Certificate>, Error> {
    let expected = "an x5chain of one to eight certificates in the protected header";
    let values = match find(&header.rest, &Label::Int(X5CHAIN)) {
        Some(Value::Array(values)) if (1..=CHAIN_MAX).contains(&values.len()) => values.as_slice(),
        Some(value @ Value::Bytes(_)) => std::slice::from_ref(value),
        Some(_) => return Err(form(expected, "something else")),
        None => return Err(form(expected, "none")),
    };
    let certificate = |value: &Value| {
        let der = value.as_bytes().ok_or_else(|| form(expected, "an entry that is no byte string"))?;
        Ok(Certificate::from_der(der)?)
    };
    values.iter().map(certificate).collect()
}

/// A chain of one certificate proves nothing: nobody but itself vouches for it.
fn check_chain(chain: &[Certificate]) -> Result<(), Error> {
    if chain.len() < 2 {
        let found = format!("{} certificate", chain.len());
        return Err(Error::Form { expected: "a chain of at least two certificates", found });
    }
    for (below, pair) in chain.windows(2).enumerate() {
        if let [certificate, issuer] = pair {
            certificate.check_issued_by(issuer)?;
            if issuer.path_length().is_some_and(|most| usize::from(most) < below) {
                let found = format!("{below} below {}", issuer.common_name());
                return Err(Error::Form {
                    expected: "no more authorities than the one above them allows",
                    found,
                });
            }
        }
    }
    Ok(())
}

fn find<'a>(values: &'a [(Label, Value)], label: &Label) -> Option<&'a Value> {
    values.iter().find(|(name, _)| name == label).map(|(_, value)| value)
}

fn fingerprint(certificate: &Certificate) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest(&SHA256, certificate.der()).as_ref());
    bytes
}

fn form(expected: &'static str, found: impl fmt::Display) -> Error {
    Error::Form { expected, found: found.to_string() }
}
