//! Simulated machines, each wrong in one way.

use attestation::{
    Expect,
    snp::{Certificates, CertificatesError, verify},
    x509::{Error, RevocationList},
};
use evidence::{
    certificates::{self, Kind},
    policy::GuestPolicy,
    report_data,
    tcb::{Product, Tcb},
};
use p384::ecdsa::{DerSignature, signature::Signer as _};
use sim_tee::{Launch, PRODUCT, TCB, chain::name};
use x509_cert::{
    Certificate as Parsed, Version,
    crl::{CertificateList, RevokedCert, TbsCertList},
    der::{
        Decode as _, Encode as _,
        asn1::{BitString, UtcTime},
    },
    time::Time,
};

use crate::support::{
    HOST_DATA, MEASUREMENT, Machine, NOW, REPORT_DATA, certificate, check, demands, evidence_of, failures,
    good, launch,
};

#[test]
fn a_good_machine_is_accepted() {
    let (report, table) = good();
    let verdict = check(&report, &table, &demands());
    assert!(verdict.accepted(), "{verdict}");
    assert!(verdict.checks.len() > 30, "{verdict}");
    assert!(verdict.to_string().contains("nothing protects this guest"));
    assert!(Machine::new().check(&demands()).accepted());
}

#[test]
fn simulation_is_refused_unless_allowed() {
    let (report, table) = good();
    let mut demands = demands();
    demands.allow_sim = false;
    assert_eq!(failures(&check(&report, &table, &demands)), ["root key"]);
}

#[test]
fn a_renamed_simulated_root_is_no_root() {
    for root in ["ARK-Genoa", "ARK-Milan", "SIMULATED", "AMD"] {
        let names = [root.to_owned(), name("ASK"), name("VCEK")];
        let verdict = Machine::named(names, TCB).check(&demands());
        assert_eq!(failures(&verdict), ["root key", "certificate names"], "{root}");
    }
    let amd = ["ARK-Genoa", "SEV-Genoa", "SEV-VCEK"].map(str::to_owned);
    let verdict = Machine::named(amd, TCB).check(&demands());
    assert_eq!(failures(&verdict), ["root key", "certificate names"]);
}

#[test]
fn a_report_of_another_machine_is_not_by_this_chip() {
    let (report, _) = good();
    let (_, table) = good();
    let verdict = check(&report, &table, &demands());
    assert_eq!(failures(&verdict), ["chip", "report signature"]);
}

#[test]
fn another_guest_on_a_good_machine_is_refused() {
    for (launch, expected) in [
        (Launch { measurement: [0; 48], ..launch() }, "measurement"),
        (Launch { host_data: [0; 32], ..launch() }, "host data"),
        (Launch { guest_svn: 4, ..launch() }, "guest SVN"),
        (Launch { id_key_digest: [0; 48], ..launch() }, "ID key digest"),
        (Launch { author_key_digest: None, ..launch() }, "author key digest"),
    ] {
        let (report, table) = evidence_of(&launch);
        assert_eq!(failures(&check(&report, &table, &demands())), [expected]);
    }
}

#[test]
fn policies_that_open_the_guest_are_refused() {
    let production = GuestPolicy::PRODUCTION.0;
    for (policy, expected) in [
        (production | GuestPolicy::DEBUG, ["policy debug", "policy"]),
        (production | GuestPolicy::MIGRATE_MA, ["policy migration", "policy"]),
        (production & !GuestPolicy::SMT, ["policy SMT", "policy"]),
        (production | GuestPolicy::SINGLE_SOCKET, ["policy single socket", "policy"]),
        (production | 1 << 63, ["policy reserved bits", "policy"]),
    ] {
        let (report, table) = evidence_of(&Launch { policy: GuestPolicy(policy), ..launch() });
        assert_eq!(failures(&check(&report, &table, &demands())), expected);
    }
    let mut demands = demands();
    demands.policy.min_abi = Expect::Is((1, 51));
    let (report, table) = good();
    assert_eq!(failures(&check(&report, &table, &demands)), ["policy ABI"]);
}

#[test]
fn a_replayed_report_has_another_nonce() {
    let (report, table) = good();
    let mut demands = demands();
    demands.report_data = Expect::Is(report_data(b"fresh nonce"));
    assert_eq!(failures(&check(&report, &table, &demands)), ["report data"]);
}

#[test]
fn each_tcb_is_held_against_the_floor() {
    let below = Tcb { snp: TCB.snp - 1, ..TCB };
    for above in [
        Tcb { bootloader: TCB.bootloader + 1, ..TCB },
        Tcb { tee: TCB.tee + 1, ..TCB },
        Tcb { snp: TCB.snp + 1, ..TCB },
        Tcb { microcode: TCB.microcode + 1, ..TCB },
    ] {
        let mut demands = demands();
        demands.tcb_floor = Expect::Is(vec![(Product::Turin, TCB), (PRODUCT, above)]);
        let expected = ["reported TCB", "committed TCB", "launch TCB", "current TCB"];
        assert_eq!(failures(&Machine::new().check(&demands)), expected);
    }
    let mut committed = Machine::new();
    committed.report.committed_tcb = below.encode(PRODUCT);
    assert_eq!(failures(&committed.check(&demands())), ["committed TCB"]);
    let mut launched = Machine::new();
    launched.report.launch_tcb = below.encode(PRODUCT);
    assert_eq!(failures(&launched.check(&demands())), ["launch TCB"]);
    let mut unknown = demands();
    unknown.tcb_floor = Expect::Is(vec![(Product::Turin, Tcb::default())]);
    assert!(Machine::new().check(&unknown).failed("reported TCB"), "a line without a floor has no excuse");
}

#[test]
fn the_endorsement_key_is_for_the_reported_tcb() {
    let other = Tcb { microcode: TCB.microcode - 1, ..TCB };
    let verdict = Machine::named(["ARK", "ASK", "VCEK"].map(name), other).check(&demands());
    assert_eq!(failures(&verdict), ["endorsed TCB"]);
}

#[test]
fn a_provider_key_is_accepted_in_its_own_chain_only() {
    let vlek = Machine::with_vlek();
    assert!(vlek.check(&demands()).accepted(), "{}", vlek.check(&demands()));

    let mut claims_vcek = Machine::with_vlek();
    claims_vcek.report.key_info = 1.into();
    assert_eq!(failures(&claims_vcek.check(&demands())), ["certificates"]);
    claims_vcek.signing_key = Kind::Vcek;
    assert!(claims_vcek.check(&demands()).failed("certificates"), "an ASVK is no ASK");

    let mut claims_vlek = Machine::new();
    claims_vlek.report.key_info = (1 << 2 | 1).into();
    assert_eq!(failures(&claims_vlek.check(&demands())), ["certificates"]);

    let mut swapped = Machine::named(["ARK", "ASK", "VLEK"].map(name), TCB);
    assert_eq!(failures(&swapped.check(&demands())), ["certificate names"]);
    swapped = Machine::named(["ARK", "ASVK", "VLEK"].map(name), TCB);
    swapped.report.key_info = (1 << 2 | 1).into();
    swapped.signing_key = Kind::Vlek;
    assert_eq!(
        failures(&swapped.check(&demands())),
        ["chip"],
        "a chip's certificate under a provider's name"
    );
}

#[test]
fn product_lines_are_told_apart_and_can_be_excluded() {
    let mut demands = demands();
    demands.excluded_products = vec![PRODUCT];
    let (report, table) = good();
    assert_eq!(failures(&check(&report, &table, &demands)), ["product line allowed"]);

    let mut turin = Machine::new();
    (turin.report.cpuid_family, turin.report.cpuid_model) = (0x1a, 0x02);
    let verdict = turin.check(&crate::support::demands());
    assert!(verdict.failed("endorsed product") && verdict.failed("reported TCB"), "{verdict}");

    let mut unknown = Machine::new();
    unknown.report.cpuid_family = 0x17;
    let verdict = unknown.check(&crate::support::demands());
    assert!(verdict.failed("product line") && verdict.failed("product line allowed"), "{verdict}");
}

#[test]
fn certificates_have_their_time() {
    for now in [NOW - 10 * 366 * 86_400, NOW + 30 * 366 * 86_400, 0, u64::MAX] {
        let mut demands = demands();
        demands.now = now;
        assert_eq!(failures(&Machine::new().check(&demands)), ["certificate dates"], "{now}");
    }
}

#[test]
fn links_of_other_chains_do_not_fit() {
    let (one, other) = (Machine::new(), Machine::new());
    let table = |ask: &[u8], ark: &[u8]| {
        certificates::encode(&[(Kind::Vcek, &one.endorsement), (Kind::Ask, ask), (Kind::Ark, ark)]).unwrap()
    };
    let mixed = table(other.signer.certificate(), other.root.certificate());
    assert_eq!(failures(&check(&one.signed(), &mixed, &demands())), ["endorsement key certificate"]);
    let mixed = table(one.signer.certificate(), other.root.certificate());
    assert_eq!(failures(&check(&one.signed(), &mixed, &demands())), ["signer certificate"]);
    let verdict = check(&one.signed(), &[], &demands());
    assert_eq!(failures(&verdict), ["certificates"]);
    assert!(verdict.to_string().contains("none of ARK, ASK, VCEK"));
}

#[test]
fn an_endorsement_key_cannot_issue() {
    let machine = Machine::new();
    let leaf = certificate(&machine.endorsement);
    assert_eq!(leaf.check_issued_by(&leaf), Err(Error::NotAuthority("SIMULATED VCEK".to_owned())));
}

#[test]
fn the_verifiers_own_certificates_go_first() {
    let (one, other) = (Machine::new(), Machine::new());
    let mut certificates = Certificates::from_table(&other.table()).unwrap();
    for der in [&one.endorsement[..], one.signer.certificate(), one.root.certificate()] {
        certificates.add(certificate(der)).unwrap();
    }
    assert!(verify(&one.signed(), &certificates, &demands()).accepted());
    let stranger = sim_tee::chain::Authority::root("localhost").unwrap();
    let refused = certificates.add(certificate(stranger.certificate()));
    assert_eq!(refused, Err(CertificatesError::Role("localhost".to_owned())));
}

/// A list by `machine`'s root: of these serial numbers, from `from` to `to`.
fn list(machine: &Machine, revoked: &[u8], from: u64, to: Option<u64>) -> RevocationList {
    let root = Parsed::from_der(machine.root.certificate()).unwrap();
    let signer = Parsed::from_der(machine.signer.certificate()).unwrap();
    assert_eq!(signer.tbs_certificate().serial_number().as_bytes(), [1]);
    let time = |at| Time::UtcTime(UtcTime::from_unix_duration(std::time::Duration::from_secs(at)).unwrap());
    let entry = |serial: &u8| RevokedCert {
        serial_number: u32::from(*serial).into(),
        revocation_date: time(from),
        crl_entry_extensions: None,
    };
    let tbs_cert_list = TbsCertList {
        version: Version::V2,
        signature: root.signature_algorithm().clone(),
        issuer: root.tbs_certificate().subject().clone(),
        this_update: time(from),
        next_update: to.map(time),
        revoked_certificates: (!revoked.is_empty()).then(|| revoked.iter().map(entry).collect()),
        crl_extensions: None,
    };
    let signature: DerSignature = machine.root.key().sign(&tbs_cert_list.to_der().unwrap());
    let list = CertificateList {
        tbs_cert_list,
        signature_algorithm: root.signature_algorithm().clone(),
        signature: BitString::from_bytes(signature.as_bytes()).unwrap(),
    };
    RevocationList::from_der(&list.to_der().unwrap()).unwrap()
}

#[test]
fn revocation_lists_are_current_complete_and_the_roots_own() {
    let machine = Machine::new();
    let with = |lists: Vec<RevocationList>| {
        let mut demands = demands();
        demands.revocation = Expect::Is(lists);
        machine.check(&demands)
    };
    let (before, after) = (NOW - 86_400, NOW + 86_400);
    assert!(with(vec![list(&machine, &[], before, Some(after))]).accepted());
    assert!(with(vec![list(&machine, &[2, 3], before, Some(after))]).accepted());
    for (lists, reason) in [
        (vec![], "no list of"),
        (vec![list(&machine, &[7, 1], before, Some(after))], "is revoked"),
        (vec![list(&machine, &[], before - 86_400, Some(before))], "is valid from"),
        (vec![list(&machine, &[], after, Some(after + 1))], "is valid from"),
        (vec![list(&machine, &[], before, None)], "no next update"),
        (vec![list(&Machine::new(), &[], before, Some(after))], "is not signed by"),
    ] {
        let verdict = with(lists);
        assert_eq!(failures(&verdict), ["revocation"], "{verdict}");
        assert!(verdict.to_string().contains(reason), "{verdict}");
    }
}

#[test]
fn waived_demands_are_listed_and_values_are_shown() {
    let (report, table) = good();
    let mut demands = demands();
    demands.measurement = Expect::Waived;
    demands.host_data = Expect::Waived;
    let verdict = check(&report, &table, &demands).to_string();
    assert!(verdict.contains(&format!("waived  measurement: {}", hex::encode(MEASUREMENT))), "{verdict}");
    assert!(verdict.contains(&format!("waived  host data: {}", hex::encode(HOST_DATA))), "{verdict}");
    assert!(verdict.contains(&format!("ok      report data: {}", hex::encode(REPORT_DATA))), "{verdict}");
}
