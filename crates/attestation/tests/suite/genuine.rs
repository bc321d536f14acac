//! Evidence that AMD's hardware made, as the `sev` crate ships it with its tests.

use std::fs;

use attestation::{
    Expect, Verdict,
    snp::{Certificates, Expectations, PolicyRule, verify},
    x509::Certificate,
};
use evidence::{
    report::Report,
    tcb::{Product, Tcb},
};

use crate::support::{NOW, certificate, failures, package};

/// The boot loader 3, TEE 0, SNP 8, microcode 115 of the sample.
const SAMPLE_TCB: Tcb = Tcb { fmc: None, bootloader: 3, tee: 0, snp: 8, microcode: 115 };

fn file(path: &str) -> Vec<u8> {
    fs::read(package("sev").join(path)).unwrap()
}

fn report() -> Vec<u8> {
    hex::decode(String::from_utf8(file("tests/certs_data/report_milan.hex")).unwrap().trim()).unwrap()
}

fn chain(line: &str) -> Certificates {
    let mut certificates = Certificates::default();
    certificates.add(certificate(&file(&format!("tests/certs_data/vcek_{line}.der")))).unwrap();
    for signer in Certificate::from_pem(&file(&format!("tests/certs_data/cert_chain_{line}"))).unwrap() {
        certificates.add(signer).unwrap();
    }
    certificates
}

/// What the sample meets; its guest is nobody's here.
fn demands() -> Expectations {
    Expectations {
        now: NOW,
        allow_sim: false,
        excluded_products: vec![],
        revocation: Expect::Waived,
        tcb_floor: Expect::Is(vec![(Product::Milan, SAMPLE_TCB)]),
        platform: Expect::Waived,
        vmpl: Expect::Waived,
        policy: PolicyRule::no_debug_no_migration(),
        measurement: Expect::Waived,
        guest_svn: Expect::Waived,
        id_key_digest: Expect::Waived,
        author_key_digest: Expect::Waived,
        host_data: Expect::Waived,
        report_data: Expect::Waived,
    }
}

fn check(demands: &Expectations) -> Verdict {
    verify(&report(), &chain("milan"), demands)
}

#[test]
fn a_genuine_report_is_accepted() {
    let verdict = check(&demands());
    assert!(verdict.accepted(), "{verdict}");
    assert!(verdict.to_string().contains("root key: AMD's for Milan, pinned"), "{verdict}");
}

#[test]
fn a_genuine_report_can_be_refused() {
    let mut excluded = demands();
    excluded.excluded_products = vec![Product::Milan];
    assert_eq!(failures(&check(&excluded)), ["product line allowed"]);
    let mut floor = demands();
    floor.tcb_floor = Expect::Is(vec![(Product::Milan, Tcb { microcode: 116, ..SAMPLE_TCB })]);
    assert!(failures(&check(&floor)).contains(&"reported TCB"));
    let mut late = demands();
    late.now = 1_967_225_600;
    assert_eq!(failures(&check(&late)), ["certificate dates"], "the VCEK's certificate ended in 2030");
}

#[test]
fn a_flipped_bit_breaks_the_genuine_signature() {
    for offset in [0x10, 0x20, 0x90, 0xc0, 0x140, 0x1a0, 0x1f0, 0x2a0, 0x2e8] {
        let mut flipped = report();
        flipped[offset] ^= 1;
        let verdict = verify(&flipped, &chain("milan"), &demands());
        assert!(verdict.failed("report signature"), "{offset:#x}: {verdict}");
    }
}

#[test]
fn another_lines_chain_does_not_fit() {
    let verdict = verify(&report(), &chain("turin"), &demands());
    for expected in ["report signature", "chip", "endorsed TCB", "reported TCB"] {
        assert!(verdict.failed(expected), "{verdict}");
    }
    assert!(!verdict.failed("root key") && !verdict.failed("endorsement key certificate"), "{verdict}");
}

#[test]
fn amds_roots_are_pinned_and_their_signatures_hold() {
    for line in ["milan", "genoa", "turin"] {
        let pem = |name: &str| {
            let path = format!("src/certs/snp/builtin/{line}/{name}.pem");
            Certificate::from_pem(&file(&path)).unwrap().remove(0)
        };
        let (ark, ask) = (pem("ark"), pem("ask"));
        ark.check_issued_by(&ark).unwrap();
        ask.check_issued_by(&ark).unwrap();
        assert!(ark.check_issued_by(&ask).is_err());
        let mut certificates = chain("milan");
        certificates.add(ark).unwrap();
        certificates.add(ask).unwrap();
        let verdict = verify(&report(), &certificates, &demands());
        assert!(!verdict.failed("root key") && !verdict.failed("signer certificate"), "{verdict}");
        assert_eq!(verdict.accepted(), line == "milan", "{verdict}");
    }
}

#[test]
fn the_sample_reads_as_the_sev_crate_reads_it() {
    use sev::{firmware::guest::AttestationReport, parser::ByteParser as _};
    let bytes = report();
    let ours = Report::parse(&bytes).unwrap();
    let theirs = AttestationReport::from_bytes(&bytes).unwrap();
    assert_eq!(ours.version.get(), theirs.version);
    assert_eq!(ours.policy().0, u64::from(theirs.policy));
    assert_eq!(ours.measurement, theirs.measurement);
    assert_eq!(ours.report_data, theirs.report_data);
    assert_eq!(ours.host_data, theirs.host_data);
    assert_eq!(ours.chip_id, theirs.chip_id);
    assert_eq!(ours.report_id, theirs.report_id);
    assert_eq!(ours.author_key_digest, theirs.author_key_digest);
    assert_eq!(ours.platform_info().0, u64::from(theirs.plat_info));
    assert_eq!(ours.key_info().0, u32::from(theirs.key_info));
    let tcb = ours.launch_tcb.decode(Product::Milan).unwrap();
    let their_tcb = theirs.launch_tcb;
    assert_eq!(
        (tcb.bootloader, tcb.tee, tcb.snp, tcb.microcode),
        (their_tcb.bootloader, their_tcb.tee, their_tcb.snp, their_tcb.microcode)
    );
    assert_eq!(ours.signature.r, *theirs.signature.r());
    assert_eq!(ours.signature.s, *theirs.signature.s());
}
