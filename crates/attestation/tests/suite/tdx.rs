//! Genuine quotes, as the `dcap-qvl` crate ships them with its tests.

use std::fs;

use attestation::{
    Expect, Verdict,
    tdx::{Collateral, Expectations, QUOTE_MAX, mr_config_id, verify},
};

use crate::support::{failures, package};

/// 2025-06-25, when the sample's collateral was fresh.
const NOW: u64 = 1_750_850_000;
/// Offset of the TD report in a version 4 quote.
const BODY: usize = 48;

fn quote() -> Vec<u8> {
    fs::read(package("dcap-qvl").join("sample/tdx_quote")).unwrap()
}

fn collateral() -> Collateral {
    let json = fs::read(package("dcap-qvl").join("sample/tdx_quote_collateral.json")).unwrap();
    Collateral::from_json(&json).unwrap()
}

fn field<const N: usize>(offset: usize) -> [u8; N] {
    quote()[BODY + offset..][..N].try_into().unwrap()
}

/// What the sample meets, with nothing waived.
fn demands() -> Expectations {
    Expectations {
        now: NOW,
        statuses: vec!["UpToDate".to_owned()],
        advisories: Expect::Is(vec![]),
        module_svn: Expect::Is([6, 1]),
        xfam: Expect::Is(field(128)),
        mrtd: Expect::Is(vec![[0; 48], field(136)]),
        mr_config_id: Expect::Is(field(184)),
        mr_owner: Expect::Is(field(232)),
        mr_owner_config: Expect::Is(field(280)),
        rtmrs: [328, 376, 424, 472].map(|offset| Expect::Is(field(offset))),
        report_data: Expect::Is(field(520)),
    }
}

fn check(demands: &Expectations) -> Verdict {
    verify(&quote(), &collateral(), demands)
}

#[test]
fn a_genuine_quote_is_accepted() {
    let verdict = check(&demands());
    assert!(verdict.accepted(), "{verdict}");
}

#[test]
fn each_demand_is_held_against_the_quote() {
    type Change = fn(&mut Expectations);
    let changes: [(Change, &str); 13] = [
        (|e| e.statuses = vec!["SWHardeningNeeded".to_owned()], "TCB status"),
        (|e| e.module_svn = Expect::Is([7, 1]), "TDX module SVN"),
        (|e| e.module_svn = Expect::Is([0, 2]), "TDX module SVN"),
        (|e| e.xfam = Expect::Is([3, 0, 0, 0, 0, 0, 0, 0]), "XFAM"),
        (|e| e.mrtd = Expect::Is(vec![[1; 48]]), "MRTD"),
        (|e| e.mrtd = Expect::Is(vec![]), "MRTD"),
        (|e| e.mr_config_id = Expect::Is(mr_config_id(&[1; 32])), "MRCONFIGID"),
        (|e| e.mr_owner = Expect::Is([1; 48]), "MROWNER"),
        (|e| e.mr_owner_config = Expect::Is([1; 48]), "MROWNERCONFIG"),
        (|e| e.rtmrs[0] = Expect::Is([1; 48]), "RTMR0"),
        (|e| e.rtmrs[3] = Expect::Is([1; 48]), "RTMR3"),
        (|e| e.report_data = Expect::Is([1; 64]), "report data"),
        (|e| e.statuses = vec![], "TCB status"),
    ];
    for (change, expected) in changes {
        let mut demands = demands();
        change(&mut demands);
        assert_eq!(failures(&check(&demands)), [expected]);
    }
}

#[test]
fn stale_collateral_and_forged_quotes_are_refused() {
    for now in [NOW + 60 * 86_400, NOW - 365 * 86_400] {
        let mut demands = demands();
        demands.now = now;
        assert_eq!(failures(&check(&demands)), ["quote"], "{now}");
    }
    for offset in [0, 4, BODY + 120, BODY + 136, BODY + 184, BODY + 520, 640, 700, 800] {
        let mut flipped = quote();
        flipped[offset] ^= 1;
        assert_eq!(failures(&verify(&flipped, &collateral(), &demands())), ["quote"], "byte {offset}");
    }
    assert_eq!(failures(&verify(&vec![0; QUOTE_MAX + 1], &collateral(), &demands())), ["quote"]);
    assert_eq!(failures(&verify(&[], &collateral(), &demands())), ["quote"]);
}

#[test]
fn an_enclave_is_no_trust_domain() {
    let folder = package("dcap-qvl").join("sample");
    let json = fs::read(folder.join("sgx_quote_collateral.json")).unwrap();
    let quote = fs::read(folder.join("sgx_quote")).unwrap();
    let mut demands = demands();
    demands.statuses = vec!["ConfigurationAndSWHardeningNeeded".to_owned()];
    demands.advisories = Expect::Waived;
    let verdict = verify(&quote, &Collateral::from_json(&json).unwrap(), &demands);
    assert_eq!(failures(&verdict), ["TEE type"]);
}

#[test]
fn an_open_advisory_needs_leave() {
    let folder = package("dcap-qvl").join("sample");
    let json = fs::read(folder.join("sgx_quote_collateral.json")).unwrap();
    let quote = fs::read(folder.join("sgx_quote")).unwrap();
    let verdict = verify(&quote, &Collateral::from_json(&json).unwrap(), &demands());
    assert!(verdict.failed("advisories") && verdict.failed("TCB status"), "{verdict}");
}

#[test]
fn host_data_fills_the_first_32_bytes() {
    let id = mr_config_id(&[7; 32]);
    assert_eq!((&id[..32], &id[32..]), (&[7; 32][..], &[0; 16][..]));
}
