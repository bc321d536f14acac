use boot_abi::{CONFIG_GPA, Config, STUB_GPA};
use evidence::report::Report;
use launch::digest::LaunchDigest;
use launch::image::{Page, PageKind, Start};
use launch::snp::vmsa;
use zerocopy::{FromZeros as _, IntoBytes as _};

use super::*;
use crate::cpu::Model;

fn image(policy: u64) -> Image {
    let mut config =
        Config { magic: Config::MAGIC, max_vcpus: 4, tee: 2, guest_policy: policy, ..Config::new_zeroed() };
    let line = format!("quiet uvm.snp_policy={policy:#x}");
    config.command_line[..line.len()].copy_from_slice(line.as_bytes());
    config.command_line_bytes = u16::try_from(line.len()).unwrap();
    let mut data = config.as_bytes().to_vec();
    data.resize(4096, 0);
    let stub = Page { gpa: STUB_GPA, kind: PageKind::Measured, data: vec![1; 4096].into() };
    let config = Page { gpa: CONFIG_GPA, kind: PageKind::Measured, data: data.into() };
    Image {
        platform: Platform::Snp,
        // Not in the order of addresses, so that backends differ.
        pages: vec![config, stub],
        parameters: Vec::new(),
        start: Start::Snp { gpa: boot_abi::VMSA_GPA, vmsa: Box::new(vmsa::base()) },
        guest_policy: Some(policy),
        id_block: None,
    }
}

fn report(measurement: LaunchDigest, policy: u64) -> Claims {
    let mut report = Report::unsigned(3).unwrap();
    report.measurement = measurement.0;
    report.policy = policy.into();
    Claims::Snp(Box::new(report))
}

fn digest(image: &Image, profile: &Profile, vcpus: u32) -> LaunchDigest {
    profile.digests(image, vcpus).unwrap().pop().unwrap()
}

fn ours(backend: Backend) -> Profile {
    Profile::ours(Tee::Snp, backend)
}

fn explained(claims: &Claims, image: &Image) -> Explanation {
    let candidates = [Candidate { name: "uvm.igvm", image }];
    explain(claims, &candidates, &Circumstances::default())
}

#[test]
fn vcpus_and_backend_are_found() {
    let image = image(0x3_0000);
    for vcpus in 1..=4 {
        let found = explained(&report(digest(&image, &ours(Backend::Kvm), vcpus), 0x3_0000), &image);
        let [found] = found.matches.as_slice() else { panic!("{found:?}") };
        assert_eq!((found.vcpus, found.backend, &found.cause), (Some(vcpus), "kvm", &None));
        assert!(found.findings.iter().all(|finding| finding.agrees));
    }
    let found = explained(&report(digest(&image, &ours(Backend::Mshv), 1), 0x3_0000), &image);
    assert_eq!((found.matches[0].vcpus, found.matches[0].backend), (None, "mshv"));
}

#[test]
fn what_is_out_of_the_ordinary_gets_a_cause() {
    let image = image(0x3_0000);
    let cause = |measurement, policy| {
        let found = explained(&report(measurement, policy), &image);
        found.matches.into_iter().next().and_then(|found| found.cause).unwrap_or_default()
    };
    let five = digest(&image, &ours(Backend::Kvm), 5);
    assert_eq!(cause(five, 0x3_0000), "more vCPUs than the image starts with, 4");
    let milan: Model = "EPYC-Milan".parse().unwrap();
    let on_milan = digest(&image, &Profile { cpu: Some(milan), ..ours(Backend::Kvm) }, 2);
    assert!(cause(on_milan, 0x3_0000).contains("processor EPYC-Milan"));
    let debug = digest(&self::image(0xB_0000), &ours(Backend::Kvm), 2);
    assert!(cause(debug, 0xB_0000).contains("guest policy 0xb0000"));
    let mut swapped = self::image(0x3_0000);
    if let Start::Snp { vmsa, .. } = &mut swapped.start {
        vmsa.sev_features = 0x21.into();
    }
    assert!(cause(digest(&swapped, &ours(Backend::Kvm), 1), 0x3_0000).contains("debug-swap"));
    swapped = self::image(0x3_0000);
    swapped.pages.reverse();
    assert!(cause(digest(&swapped, &ours(Backend::Kvm), 3), 0x3_0000).contains("order of their addresses"));
}

#[test]
fn the_nearest_comes_first_and_says_what_is_against_it() {
    let (plain, debug) = (image(0x3_0000), image(0xB_0000));
    let candidates =
        [Candidate { name: "plain.igvm", image: &plain }, Candidate { name: "debug.igvm", image: &debug }];
    let known = Circumstances { provider: Some("sim"), host_data: Some(HostData([1; 32])) };
    let found = explain(&report(LaunchDigest([9; 48]), 0xB_0000), &candidates, &known);
    assert!(found.matches.is_empty());
    assert_eq!(found.nearest[0].image, "debug.igvm (SEV-SNP)");
    let against = found.nearest[0].findings.iter().filter(|finding| !finding.agrees);
    assert_eq!(
        against.map(|finding| finding.what).collect::<Vec<_>>(),
        ["provider", "host data", "measurement"]
    );
    assert!(
        found.nearest[1].findings.iter().any(|finding| finding.what == "guest policy" && !finding.agrees)
    );
}

#[test]
fn a_report_of_another_platform_is_told_as_such() {
    let mut tdx = image(0x3_0000);
    (tdx.platform, tdx.start, tdx.guest_policy) = (Platform::Tdx, Start::Reset, None);
    let found = explained(&report(LaunchDigest([9; 48]), 0x3_0000), &tdx);
    let [finding] = found.nearest[0].findings.as_slice() else { panic!("{found:?}") };
    assert_eq!(
        (finding.what, finding.expected.as_str(), finding.found.as_str()),
        ("platform", "TDX", "SEV-SNP")
    );
}
