//! `id-block` and `endorse`, with keys in files and keys elsewhere.

use attestation::id_block::{IdAuth, IdBlock};
use p384::ecdsa::signature::Signer as _;
use p384::ecdsa::{DerSignature, Signature, SigningKey};
use p384::elliptic_curve::Generate as _;
use p384::pkcs8::{EncodePrivateKey as _, EncodePublicKey as _, LineEnding};
use sim_tee::chain::Authority;
use x509_cert::builder::profile::BuilderProfile;
use x509_cert::builder::{Builder as _, CertificateBuilder};
use x509_cert::der::asn1::{ObjectIdentifier, OctetString};
use x509_cert::der::oid::AssociatedOid as _;
use x509_cert::der::{Decode as _, Encode as _, EncodePem as _};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::ExtendedKeyUsage;
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::SubjectPublicKeyInfoRef;
use x509_cert::{Certificate, SubjectPublicKeyInfo, TbsCertificate};

use crate::bench::{Bench, recipe};

const USAGE: &str = "1.3.6.1.4.1.311.76.59.1.5";

fn bench() -> Bench {
    let bench = Bench::new();
    bench.build("uvm", &recipe("'snp'"));
    bench
}

fn key(bench: &Bench, name: &str) -> SigningKey {
    let key = SigningKey::generate();
    bench.write(name, key.to_pkcs8_pem(LineEnding::LF).unwrap().as_bytes());
    let public = key.verifying_key().to_public_key_pem(LineEnding::LF).unwrap();
    bench.write(&format!("{name}.pub"), public.as_bytes());
    key
}

#[test]
fn an_id_block_signed_here_is_what_the_firmware_takes() {
    let bench = bench();
    key(&bench, "id");
    key(&bench, "author");
    let arguments = "id-block --image uvm.igvm --vcpus 2 --guest-svn 3 --key id --author-key author \
                     --out block --auth auth --json";
    let said = bench.run(&arguments.split_whitespace().collect::<Vec<_>>());
    assert_eq!(said.status, 0, "{}", said.err);
    let (block, auth) = (bench.read("block"), bench.read("auth"));
    let (block, auth) = (IdBlock::parse(&block).unwrap(), IdAuth::parse(&auth).unwrap());
    assert_eq!(auth.verify(block), Ok(()));
    assert_eq!(block.launch_digest, bench.digest("uvm.igvm", 2));
    assert_eq!((block.guest_svn.get(), block.policy.get()), (3, 0x3_0000));
    let json = said.json();
    assert_eq!(json["id_key_digest"], hex::encode(auth.id_key.digest()));
    assert_eq!(json["author_key_digest"], hex::encode(auth.author_key.digest()));
}

#[test]
fn an_id_block_is_signed_elsewhere() {
    let bench = bench();
    let key = key(&bench, "id");
    let run = |arguments: &str| bench.run(&arguments.split_whitespace().collect::<Vec<_>>());
    let said = run("id-block --image uvm.igvm --to-be-signed --out block");
    assert_eq!(said.status, 0, "{}", said.err);
    said.has(&["not signed"]);
    let signature: Signature = key.sign(&bench.read("block"));
    bench.write("signature", signature.to_der().as_bytes());
    let second =
        "id-block --image uvm.igvm --public-key id.pub --signature signature --out block --auth auth";
    assert_eq!(run(second).status, 0);
    let (block, auth) = (bench.read("block"), bench.read("auth"));
    assert_eq!(IdAuth::parse(&auth).unwrap().verify(IdBlock::parse(&block).unwrap()), Ok(()));

    // The signature is of a block for one virtual CPU, not two.
    run(&format!("{second} --vcpus 2")).refuses("signature does not verify");
    run("id-block --image uvm.igvm --out block --auth auth").refuses("expected --key, --to-be-signed");
    run("id-block --measurement 00 --out block").refuses("expected 96 hexadecimal digits, found 2");
}

/// A certificate for one purpose.
struct Publisher(Name);

impl BuilderProfile for Publisher {
    fn get_issuer(&self, _subject: &Name) -> Name {
        self.0.clone()
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
        let usages = ExtendedKeyUsage(vec![ObjectIdentifier::new(USAGE).unwrap()]);
        let extn_value = OctetString::new(usages.to_der()?)?;
        Ok(vec![Extension { extn_id: ExtendedKeyUsage::OID, critical: false, extn_value }])
    }
}

/// Writes a signer's chain of two certificates.
fn chain(bench: &Bench, key: &SigningKey) {
    let root = Authority::root("CN=authority").unwrap();
    let authority = Certificate::from_der(root.certificate()).unwrap();
    let issuer = authority.tbs_certificate();
    let leaf = CertificateBuilder::new(
        Publisher(issuer.subject().clone()),
        SerialNumber::from(9u32),
        *issuer.validity(),
        SubjectPublicKeyInfo::from_key(key.verifying_key()).unwrap(),
    );
    let leaf = leaf.unwrap().build::<_, DerSignature>(root.key()).unwrap();
    let pem = [leaf, authority].map(|certificate| certificate.to_pem(LineEnding::LF).unwrap());
    bench.write("chain", pem.concat().as_bytes());
}

#[test]
fn an_endorsement_stands_in_for_a_measurement() {
    use evidence::policy::GuestPolicy;
    use evidence::sim::Answer;
    let bench = bench();
    let key = key(&bench, "signer");
    chain(&bench, &key);
    let run = |arguments: &str| bench.run(&arguments.split_whitespace().collect::<Vec<_>>());
    let arguments = format!(
        "endorse --image uvm.igvm --vcpus 2 --feed UVM --svn 7 --key signer --chain chain --key-usage {USAGE} \
         --out endorsement --json"
    );
    let said = run(&arguments);
    assert_eq!(said.status, 0, "{}", said.err);
    let issuer = said.json()["issuer"].as_str().unwrap().to_owned();

    let launch = sim_tee::Launch::new(bench.digest("uvm.igvm", 2), [0; 32], GuestPolicy::PRODUCTION);
    let answer = sim_tee::SimTee::new(&launch).unwrap().report([0; 64]).unwrap();
    let Answer { report, certificates } = Answer::parse(&answer).unwrap();
    let (report, certificates) = (report.to_vec(), certificates.to_vec());
    let bundle = measure::bundle::Bundle { provider: Some("sim".into()), report, certificates };
    bench.write("report", &bundle.to_json().unwrap());
    let verify = format!(
        "verify report --allow-sim --endorsement endorsement --issuer {issuer} --feed UVM --waive host-data \
         --waive report-data"
    );
    let said = run(&verify);
    assert_eq!(said.status, 0, "{}{}", said.out, said.err);
    said.has(&["ok      endorsement measurement", "ok      measurement"]);
    let said = run(&format!("{verify} --min-endorsed-svn 8"));
    assert_eq!(said.status, 1);
    said.has(&["FAILED  endorsement SVN: expected at least 8, found 7", "FAILED  measurement"]);
    assert_eq!(run(&verify.replace("--feed UVM", "--feed OTHER")).status, 1);
}
