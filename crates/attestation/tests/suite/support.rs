//! Evidence to order: a simulated machine whose every part can be wrong, and the demands that a good one meets.

use std::{path::PathBuf, process::Command, sync::OnceLock};

use attestation::{
    Expect, Verdict,
    snp::{Certificates, Expectations, PlatformRule, PolicyRule, verify},
    x509::Certificate,
};
use evidence::{
    certificates::{self, Kind},
    policy::GuestPolicy,
    report::Report,
    sim::Answer,
    tcb::{Product, Tcb},
};
use p384::ecdsa::SigningKey;
use sim_tee::{
    Launch, PRODUCT, SimTee, TCB,
    chain::{Authority, EndorsementKey, name},
};
use zerocopy::IntoBytes as _;

/// 2026-01-01, in Unix seconds.
pub const NOW: u64 = 1_767_225_600;
pub const MEASUREMENT: [u8; 48] = [0x11; 48];
pub const HOST_DATA: [u8; 32] = [0x22; 32];
pub const REPORT_DATA: [u8; 64] = [0x33; 64];
pub const ID_KEY: [u8; 48] = [0x44; 48];
pub const AUTHOR_KEY: [u8; 48] = [0x55; 48];
pub const GUEST_SVN: u32 = 5;

pub fn launch() -> Launch {
    Launch {
        guest_svn: GUEST_SVN,
        id_key_digest: ID_KEY,
        author_key_digest: Some(AUTHOR_KEY),
        ..Launch::new(MEASUREMENT, HOST_DATA, GuestPolicy::PRODUCTION)
    }
}

/// What [`launch`] meets on a simulated platform, with no demand waived but that of revocation lists.
pub fn demands() -> Expectations {
    Expectations {
        now: NOW,
        allow_sim: true,
        excluded_products: vec![Product::Milan],
        revocation: Expect::Waived,
        tcb_floor: Expect::Is(vec![(PRODUCT, TCB)]),
        platform: Expect::Is(PlatformRule { set: 0, clear: u64::MAX }),
        vmpl: Expect::Is(0),
        policy: PolicyRule {
            debug: Expect::Is(false),
            migrate_ma: Expect::Is(false),
            smt: Expect::Is(true),
            single_socket: Expect::Is(false),
            min_abi: Expect::Is((0, 0)),
            exact: Expect::Is(GuestPolicy::PRODUCTION),
        },
        measurement: Expect::Is(vec![MEASUREMENT]),
        guest_svn: Expect::Is(GUEST_SVN),
        id_key_digest: Expect::Is(ID_KEY),
        author_key_digest: Expect::Is(AUTHOR_KEY),
        host_data: Expect::Is(HOST_DATA),
        report_data: Expect::Is(REPORT_DATA),
    }
}

/// Report and certificate table of a machine that meets [`demands`].
pub fn good() -> (Vec<u8>, Vec<u8>) {
    evidence_of(&launch())
}

pub fn evidence_of(launch: &Launch) -> (Vec<u8>, Vec<u8>) {
    let answer = SimTee::new(launch).unwrap().report(REPORT_DATA).unwrap();
    let answer = Answer::parse(&answer).unwrap();
    (answer.report.to_vec(), answer.certificates.to_vec())
}

pub fn check(report: &[u8], table: &[u8], expectations: &Expectations) -> Verdict {
    verify(report, &Certificates::from_table(table).unwrap(), expectations)
}

/// The names of the checks that failed.
pub fn failures(verdict: &Verdict) -> Vec<&'static str> {
    verdict.failures().map(|check| check.name).collect()
}

/// A chain whose parts the test names, and a report that it may change before it is signed.
pub struct Machine {
    pub root: Authority,
    pub signer: Authority,
    pub key: SigningKey,
    pub endorsement: Vec<u8>,
    pub report: Report,
    pub signing_key: Kind,
}

impl Machine {
    pub fn new() -> Self {
        Self::named(["ARK", "ASK", "VCEK"].map(name), TCB)
    }

    /// With these common names, and an endorsement key for this TCB.
    pub fn named(names: [String; 3], tcb: Tcb) -> Self {
        let (report, _) = good();
        let report = Report::parse(&report).unwrap().clone();
        let holder = EndorsementKey::Vcek { product: PRODUCT, tcb, chip_id: report.chip_id };
        Self::holding(names, &holder, report, Kind::Vcek)
    }

    /// A machine whose provider signs.
    pub fn with_vlek() -> Self {
        let (report, _) = good();
        let mut report = Report::parse(&report).unwrap().clone();
        report.key_info = (1 << 2 | 1).into();
        let holder = EndorsementKey::Vlek { product: PRODUCT, tcb: TCB, provider: "test".to_owned() };
        Self::holding(["ARK", "ASVK", "VLEK"].map(name), &holder, report, Kind::Vlek)
    }

    fn holding(names: [String; 3], holder: &EndorsementKey, report: Report, signing_key: Kind) -> Self {
        let root = Authority::root(&names[0]).unwrap();
        let signer = root.subordinate(&names[1]).unwrap();
        let (key, endorsement) = signer.endorse(&names[2], holder).unwrap();
        Self { root, signer, key, endorsement, report, signing_key }
    }

    pub fn table(&self) -> Vec<u8> {
        certificates::encode(&[
            (self.signing_key, &self.endorsement),
            (Kind::Ask, self.signer.certificate()),
            (Kind::Ark, self.root.certificate()),
        ])
        .unwrap()
    }

    pub fn signed(&self) -> Vec<u8> {
        let mut report = self.report.clone();
        sim_tee::sign(&mut report, &self.key).unwrap();
        report.as_bytes().to_vec()
    }

    pub fn check(&self, expectations: &Expectations) -> Verdict {
        check(&self.signed(), &self.table(), expectations)
    }
}

pub fn certificate(der: &[u8]) -> Certificate {
    Certificate::from_der(der).unwrap()
}

/// The folder of a dependency's sources: some of them ship genuine evidence.
pub fn package(name: &str) -> PathBuf {
    static METADATA: OnceLock<serde_json::Value> = OnceLock::new();
    let metadata = METADATA.get_or_init(|| {
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
        // Packages of other platforms are not on a machine that has only built this.
        let platform = ["--filter-platform", "x86_64-unknown-linux-gnu"];
        let arguments = [&["metadata", "--format-version", "1", "--offline"][..], &platform].concat();
        let output =
            Command::new(cargo).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    });
    let mut packages = metadata["packages"].as_array().unwrap().iter();
    let package = packages.find(|package| package["name"] == name).unwrap();
    PathBuf::from(package["manifest_path"].as_str().unwrap()).parent().unwrap().to_owned()
}
