//! Endorsements: a good one, and each way in which one can be another's.

use attestation::{
    Expect, Verdict,
    endorsement::{Expectations, Issuer, Statement, sign, verify},
    x509::Certificate,
};
use coset::{CoseSign1, CoseSign1Builder, Header, Label, TaggedCborSerializable as _, cbor::value::Value};
use p384::{
    ecdsa::{DerSignature, Signature, SigningKey, signature::Signer as _},
    elliptic_curve::Generate as _,
};
use ring::digest::{SHA256, digest};
use sim_tee::chain::Authority;
use x509_cert::{
    SubjectPublicKeyInfo, TbsCertificate,
    builder::{Builder as _, CertificateBuilder, profile::BuilderProfile},
    der::{Decode as _, Encode as _, asn1::ObjectIdentifier, oid::AssociatedOid as _},
    ext::{Extension, pkix::ExtendedKeyUsage},
    name::Name,
    serial_number::SerialNumber,
    spki::SubjectPublicKeyInfoRef,
};

use crate::support::{MEASUREMENT, NOW, failures};

const USAGE: &str = "1.3.6.1.4.1.311.76.59.1.5";
const FEED: &str = "ConfAKS-AMD-UVM";

/// A signer below an authority, allowed one purpose.
struct Publisher {
    key: SigningKey,
    chain: Vec<Certificate>,
}

struct Leaf {
    issuer: Name,
    usage: &'static str,
}

impl BuilderProfile for Leaf {
    fn get_issuer(&self, _subject: &Name) -> Name {
        self.issuer.clone()
    }

    fn get_subject(&self) -> Name {
        "CN=publisher".parse().unwrap()
    }

    fn build_extensions(
        &self,
        _key: SubjectPublicKeyInfoRef<'_>,
        _issuer_key: SubjectPublicKeyInfoRef<'_>,
        _certificate: &TbsCertificate,
    ) -> x509_cert::builder::Result<Vec<Extension>> {
        let usages = ExtendedKeyUsage(vec![ObjectIdentifier::new(self.usage).unwrap()]);
        let extn_value = x509_cert::der::asn1::OctetString::new(usages.to_der()?)?;
        Ok(vec![Extension { extn_id: ExtendedKeyUsage::OID, critical: false, extn_value }])
    }
}

impl Publisher {
    fn new(usage: &'static str) -> Self {
        let root = Authority::root("authority").unwrap();
        let key = SigningKey::generate();
        let issuer = x509_cert::Certificate::from_der(root.certificate()).unwrap();
        let issuer = issuer.tbs_certificate();
        let builder = CertificateBuilder::new(
            Leaf { issuer: issuer.subject().clone(), usage },
            SerialNumber::from(9u32),
            *issuer.validity(),
            SubjectPublicKeyInfo::from_key(key.verifying_key()).unwrap(),
        )
        .unwrap();
        let leaf = builder.build::<_, DerSignature>(root.key()).unwrap().to_der().unwrap();
        let chain = [&leaf[..], root.certificate()].map(|der| Certificate::from_der(der).unwrap()).to_vec();
        Self { key, chain }
    }

    fn issuer(&self) -> Issuer {
        let authority = digest(&SHA256, self.chain[1].der()).as_ref().try_into().unwrap();
        Issuer { authority, key_usage: USAGE.to_owned() }
    }

    fn demands(&self) -> Expectations {
        Expectations {
            now: Expect::Is(NOW),
            issuer: self.issuer(),
            feed: FEED.to_owned(),
            min_svn: 100,
            measurement: Expect::Is(vec![MEASUREMENT]),
        }
    }

    fn sign(&self) -> Vec<u8> {
        sign(&statement(), &self.key, &self.chain, USAGE).unwrap()
    }

    /// Signs another header or payload than [`sign`] would write.
    fn forge(&self, change: impl FnOnce(&mut Header, &mut Vec<u8>)) -> Vec<u8> {
        let good = CoseSign1::from_tagged_slice(&self.sign()).unwrap();
        let (mut header, mut payload) = (good.protected.header, good.payload.unwrap());
        change(&mut header, &mut payload);
        let signature = |message: &[u8]| {
            let signature: Signature = self.key.sign(message);
            signature.to_bytes().to_vec()
        };
        let message =
            CoseSign1Builder::new().protected(header).payload(payload).create_signature(&[], signature);
        message.build().to_tagged_vec().unwrap()
    }
}

fn statement() -> Statement {
    Statement { feed: FEED.to_owned(), svn: 100, measurement: MEASUREMENT }
}

fn set(header: &mut Header, name: &str, value: Value) {
    header.rest.retain(|(label, _)| *label != Label::Text(name.to_owned()));
    header.rest.push((Label::Text(name.to_owned()), value));
}

fn drop_texts(header: &mut Header) {
    header.rest.retain(|(label, _)| !matches!(label, Label::Text(_)));
}

fn chain_of(header: &mut Header) -> &mut Vec<Value> {
    let entry = header.rest.iter_mut().find(|(label, _)| *label == Label::Int(33));
    entry.and_then(|(_, value)| value.as_array_mut()).unwrap()
}

fn verdict(bytes: &[u8], demands: &Expectations) -> Verdict {
    verify(bytes, demands).0
}

#[test]
fn a_good_endorsement_is_accepted() {
    let publisher = Publisher::new(USAGE);
    let (verdict, found) = verify(&publisher.sign(), &publisher.demands());
    assert!(verdict.accepted(), "{verdict}");
    assert_eq!(found, Some(statement()));
}

#[test]
fn issuers_are_written_and_read() {
    let issuer = Publisher::new(USAGE).issuer();
    assert_eq!(issuer.to_string().parse::<Issuer>().unwrap(), issuer);
    let published =
        "did:x509:0:sha256:I__iuL25oXEVFdTP_aBLx_eT1RPHbCQ_ECBQfYZpt9s::eku:1.3.6.1.4.1.311.76.59.1.2";
    assert_eq!(published.parse::<Issuer>().unwrap().to_string(), published);
    for wrong in
        ["", "did:x509:0:sha256:AAAA::eku:1.2", "did:x509:1:sha256:", &published.replace("eku", "subject")]
    {
        assert!(wrong.parse::<Issuer>().is_err(), "{wrong}");
    }
}

#[test]
fn another_feed_version_or_image_is_refused() {
    let publisher = Publisher::new(USAGE);
    let bytes = publisher.sign();
    let with = |change: fn(&mut Expectations)| {
        let mut demands = publisher.demands();
        change(&mut demands);
        failures(&verdict(&bytes, &demands))
    };
    assert_eq!(with(|e| e.feed = "ContainerPlat-AMD-UVM".to_owned()), ["endorsement feed"]);
    assert_eq!(with(|e| e.min_svn = 101), ["endorsement SVN"]);
    assert_eq!(with(|e| e.measurement = Expect::Is(vec![[0; 48]])), ["endorsement measurement"]);
    assert_eq!(with(|e| e.now = Expect::Is(0)), ["endorsement dates"]);
    assert!(with(|e| e.now = Expect::Waived).is_empty());
}

#[test]
fn another_issuer_or_purpose_is_refused() {
    let publisher = Publisher::new(USAGE);
    let mut demands = publisher.demands();
    demands.issuer = Publisher::new(USAGE).issuer();
    let bytes = publisher.sign();
    assert_eq!(failures(&verdict(&bytes, &demands)), ["endorsement issuer", "endorsement authority"]);

    let mut demands = publisher.demands();
    demands.issuer.key_usage = "1.3.6.1.4.1.311.76.59.1.2".to_owned();
    assert_eq!(failures(&verdict(&bytes, &demands)), ["endorsement issuer", "endorsement key usage"]);

    // Who names an issuer must belong to it.
    let claimed = Publisher::new(USAGE).issuer();
    let forged = publisher.forge(|header, _| set(header, "iss", Value::Text(claimed.to_string())));
    let mut demands = publisher.demands();
    demands.issuer = claimed;
    assert_eq!(failures(&verdict(&forged, &demands)), ["endorsement authority"]);

    let other_purpose = Publisher::new("1.3.6.1.5.5.7.3.3");
    assert!(sign(&statement(), &other_purpose.key, &other_purpose.chain, USAGE).is_err());
}

#[test]
fn a_lone_certificate_and_a_foreign_chain_are_refused() {
    let (publisher, other) = (Publisher::new(USAGE), Publisher::new(USAGE));
    let lone = publisher.forge(|header, _| chain_of(header).truncate(1));
    let found = failures(&verdict(&lone, &publisher.demands()));
    assert_eq!(found, ["endorsement chain", "endorsement authority"]);
    assert!(sign(&statement(), &publisher.key, &publisher.chain[..1], USAGE).is_err());
    assert!(sign(&statement(), &other.key, &publisher.chain, USAGE).is_err());

    // A stranger puts the trusted authority above a certificate that it has not issued.
    let authority = Value::Bytes(publisher.chain[1].der().to_vec());
    let foreign = other.forge(|header, _| {
        chain_of(header)[1] = authority;
        set(header, "iss", Value::Text(publisher.issuer().to_string()));
    });
    assert_eq!(failures(&verdict(&foreign, &publisher.demands())), ["endorsement chain"]);
}

#[test]
fn every_byte_is_signed() {
    let publisher = Publisher::new(USAGE);
    let bytes = publisher.sign();
    for offset in (0..bytes.len()).step_by(3) {
        let mut flipped = bytes.clone();
        flipped[offset] ^= 1;
        let verdict = verdict(&flipped, &publisher.demands());
        // The empty unprotected header is the one part that is not signed.
        assert!(!verdict.accepted(), "byte {offset}");
    }
}

#[test]
fn malformed_endorsements_are_refused() {
    let publisher = Publisher::new(USAGE);
    let oversized = vec![0; attestation::endorsement::ENDORSEMENT_MAX + 1];
    let forged = [
        publisher.forge(|header, _| header.content_type = None),
        publisher.forge(|header, _| header.alg = None),
        publisher.forge(|header, _| header.rest.retain(|(label, _)| *label != Label::Int(33))),
        publisher.forge(|header, _| chain_of(header).clear()),
        publisher.forge(|header, _| drop_texts(header)),
        publisher.forge(|_, payload| payload.clear()),
        publisher.forge(|_, payload| *payload = br#"{"x-ms-sevsnpvm-launchmeasurement":"00"}"#.to_vec()),
        publisher.forge(|header, _| header.rest.push((Label::Int(15), Value::Map(vec![])))),
        oversized,
        vec![],
    ];
    for bytes in forged {
        assert_eq!(failures(&verdict(&bytes, &publisher.demands())), ["endorsement format"]);
    }
}

#[test]
fn claims_as_cwt_are_read_too() {
    let publisher = Publisher::new(USAGE);
    let claims = |svn: u64| {
        Value::Map(vec![
            (Value::Integer(1.into()), Value::Text(publisher.issuer().to_string())),
            (Value::Integer(2.into()), Value::Text(FEED.to_owned())),
            (Value::Text("svn".to_owned()), Value::Integer(svn.into())),
        ])
    };
    let forge = |svn| {
        publisher.forge(|header, _| {
            drop_texts(header);
            header.rest.push((Label::Int(15), claims(svn)));
        })
    };
    assert!(verdict(&forge(100), &publisher.demands()).accepted());
    assert_eq!(failures(&verdict(&forge(101), &publisher.demands())), ["endorsement format"], "two versions");
}
