//! `explain` and `verify`, on reports of a simulated secure processor.

use evidence::policy::GuestPolicy;
use evidence::sim::Answer;
use measure::bundle::Bundle;
use sha2::{Digest as _, Sha256};
use sim_tee::{Launch, SimTee};

use crate::bench::{Bench, recipe};

const POLICY: &[u8] = b"package agent_policy\n";
const NONCE: &str = "00112233";

/// A folder with a sim image and a report of its launch with two virtual CPUs, answering [`NONCE`], under [`POLICY`].
fn bench() -> Bench {
    let bench = Bench::new();
    bench.build("sim", &recipe("'none', 'sim'"));
    bench.write("policy.rego", POLICY);
    report(&bench, "report.json", bench.digest("sim.igvm", 2), GuestPolicy::PRODUCTION);
    bench
}

fn report(bench: &Bench, name: &str, measurement: [u8; 48], policy: GuestPolicy) {
    let launch = Launch::new(measurement, Sha256::digest(POLICY).into(), policy);
    let nonce = hex::decode(NONCE).unwrap();
    let answer = SimTee::new(&launch).unwrap().report(evidence::report_data(&nonce)).unwrap();
    let Answer { report, certificates } = Answer::parse(&answer).unwrap();
    let bundle =
        Bundle { provider: Some("sim".into()), report: report.to_vec(), certificates: certificates.to_vec() };
    bench.write(name, &bundle.to_json().unwrap());
    bench.write("bare", report);
}

#[test]
fn explain_finds_the_launch() {
    let bench = bench();
    bench.build("other", &recipe("'sim'").replace("quiet", "loud"));
    for report in ["report.json", "bare"] {
        let said = bench.run(&["explain", report, "--image", "other.igvm", "--image", "sim.igvm"]);
        assert_eq!(said.status, 0, "{}", said.err);
        said.has(&["sim.igvm: sim on kvm, 2 vCPUs: reproduces the measurement", "agrees   guest policy"]);
        assert!(!said.out.contains("other.igvm"), "{}", said.out);
    }
    let said =
        bench.run(&["explain", "report.json", "--image", "sim.igvm", "--policy", "policy.rego", "--json"]);
    let json = said.json();
    assert_eq!(json["matches"][0]["vcpus"], 2);
    assert!(
        json["matches"][0]["findings"].as_array().unwrap().iter().all(|finding| finding["agrees"] == true)
    );
}

#[test]
fn explain_says_what_comes_nearest_and_why_it_fails() {
    let bench = bench();
    report(&bench, "strange.json", [7; 48], GuestPolicy(0xB_0000));
    let said = bench.run(&["explain", "strange.json", "--image", "sim.igvm", "--host-data", &"0".repeat(64)]);
    assert_eq!(said.status, 1);
    said.has(&[
        "No image reproduces the measurement",
        "agrees   provider: simulated",
        "differs  host data: expected 000000",
        "differs  guest policy: expected 0x30000 (abi 0.0, smt), found 0xb0000 (abi 0.0, smt, debug)",
        "differs  measurement: expected",
    ]);
    bench.run(&["explain", "policy.rego", "--image", "sim.igvm"]).refuses("policy.rego");
}

#[test]
fn explain_finds_what_is_out_of_the_ordinary() {
    let bench = bench();
    bench.build("debug", &(recipe("'sim'") + "snp_policy = 0xb0000\n"));
    report(&bench, "debug.json", bench.digest("debug.igvm", 1), GuestPolicy(0xB_0000));
    let said = bench.run(&["explain", "debug.json", "--image", "sim.igvm"]);
    said.has(&["but only so: the image is built for guest policy 0xb0000", "differs  guest policy"]);
}

/// Demands that the report of [`bench`] meets.
const DEMANDS: [&str; 11] = [
    "verify",
    "report.json",
    "--allow-sim",
    "--image",
    "sim.igvm",
    "--vcpus",
    "1-4",
    "--policy",
    "policy.rego",
    "--nonce",
    NONCE,
];

/// The demands with one of their words replaced.
fn with(word: &'static str, other: &'static str) -> Vec<&'static str> {
    DEMANDS.into_iter().map(|of| if of == word { other } else { of }).collect()
}

#[test]
fn verify_accepts_what_it_should() {
    let bench = bench();
    let said = bench.run(&DEMANDS);
    assert_eq!(said.status, 0, "{}{}", said.out, said.err);
    said.has(&["ok      report signature", "ok      measurement", "ok      host data", "\naccepted\n"]);
    let json = bench.run(&[&DEMANDS[..], &["--json"]].concat()).json();
    assert_eq!(json["accepted"], true);
    assert!(json["checks"].as_array().unwrap().iter().any(|check| check["name"] == "report data"));
}

#[test]
fn verify_names_what_fails() {
    let bench = bench();
    report(&bench, "debug.json", bench.digest("sim.igvm", 2), GuestPolicy(0xB_0000));
    report(&bench, "other.json", [1; 48], GuestPolicy::PRODUCTION);
    let cases = [
        (with("--allow-sim", "--json"), "root"),
        (with(NONCE, "00112234"), "report data"),
        (with("1-4", "3-4"), "measurement"),
        (with("report.json", "other.json"), "measurement"),
        (with("report.json", "debug.json"), "debug"),
        (with("policy.rego", "sim.toml"), "host data"),
        ([&DEMANDS[..], &["--min-tcb", "genoa:bootloader=10,tee=0,snp=23,microcode=85"]].concat(), "TCB"),
        ([&DEMANDS[..], &["--min-guest-svn", "1"]].concat(), "SVN"),
        ([&DEMANDS[..], &["--time", "1"]].concat(), "dates"),
    ];
    for (arguments, name) in cases {
        let said = bench.run(&[&arguments[..], &["--json"]].concat());
        let said = if arguments.contains(&"--json") { bench.run(&arguments) } else { said };
        assert_eq!(said.status, 1, "{arguments:?}: {}{}", said.out, said.err);
        let json = said.json();
        let failed = json["checks"].as_array().unwrap().iter().filter(|check| check["outcome"] == "failed");
        let failed: Vec<_> = failed.map(|check| check["name"].as_str().unwrap()).collect();
        assert!(failed.iter().any(|failed| failed.contains(name)), "{arguments:?}: {name} in {failed:?}");
    }
}

#[test]
fn what_ties_evidence_to_a_guest_is_demanded_or_waived_by_name() {
    let bench = bench();
    let said = bench.run(&["verify", "report.json", "--allow-sim"]);
    said.refuses("--waive measurement");
    let waive = ["--waive", "measurement", "--waive", "host-data", "--waive", "report-data"];
    let said = bench.run(&[&["verify", "report.json", "--allow-sim"][..], &waive].concat());
    assert_eq!(said.status, 0, "{}{}", said.out, said.err);
    said.has(&["waived  measurement", "waived  host data", "waived  report data"]);
    bench.run(&[&["verify", "sim.toml"][..], &waive].concat()).refuses("a TDX quote needs --collateral");
}
