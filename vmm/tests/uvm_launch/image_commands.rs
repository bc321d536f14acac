//! `build`, `inspect`, `measure` and `diff`.

use launch::image::{Image, Platform};
use launch::snp::{Backend, digests};
use launch::tdx::mrtd;

use crate::bench::{Bench, recipe};

const ALL: &str = "'none', 'snp', 'tdx'";

#[test]
fn inspect_shows_headers_pages_policy_and_cost() {
    let bench = Bench::new();
    bench.build("uvm", &recipe(ALL));
    let said = bench.run(&["inspect", "uvm.igvm"]);
    said.has(&[
        "platform: native",
        "platform: SEV-SNP",
        "platform: TDX",
        "guest policy: 0x30000: smt",
        "command line: quiet root=/dev/dm-0 uvm.tee=snp uvm.snp_policy=0x30000",
        "layout window:",
        "estimate:",
        "sev_features         0x1 (snp)",
        "vCPU 0: architectural reset state",
        "boot stub",
    ]);
    let json = bench.run(&["inspect", "uvm.igvm", "--json"]).json();
    let platforms: Vec<_> =
        json["platforms"].as_array().unwrap().iter().map(|p| p["platform"].clone()).collect();
    assert_eq!(platforms, ["native", "SEV-SNP", "TDX"]);
    let snp = &json["platforms"][1];
    let measured = snp["pages"]["measured"].as_u64().unwrap();
    assert!(measured <= 32, "{measured}");
    assert_eq!(snp["estimated_launch_ms"].as_u64().unwrap(), measured);
    let pages = |said: &serde_json::Value| said["platforms"][1]["runs"].as_array().unwrap().len();
    let each = bench.run(&["inspect", "uvm.igvm", "--pages", "--json"]).json();
    let image = Image::decode(&bench.read("uvm.igvm"), Platform::Snp).unwrap();
    assert_eq!(pages(&each), image.pages.len());
    assert!(pages(&json) < pages(&each));
}

#[test]
fn measure_prints_what_the_library_computes() {
    let bench = Bench::new();
    bench.build("uvm", &recipe(ALL));
    let file = bench.read("uvm.igvm");
    let snp = Image::decode(&file, Platform::Snp).unwrap();
    let on_kvm = digests(&snp, Backend::Kvm, 4, 0);
    let said = bench.run(&["measure", "uvm.igvm", "--tee", "snp", "--vcpus", "1-4"]);
    for (vcpus, digest) in (1..).zip(&on_kvm) {
        said.has(&[&format!("{vcpus:5}  {digest}\n")]);
    }
    let said = bench.run(&["measure", "uvm.igvm", "--tee", "snp", "--backend", "mshv", "--vcpus", "2"]);
    said.has(&[&format!("  any  {}\n", digests(&snp, Backend::Mshv, 1, 0)[0])]);
    let said = bench.run(&["measure", "uvm.igvm", "--tee", "tdx"]);
    said.has(&[&mrtd(&Image::decode(&file, Platform::Tdx).unwrap()).to_string()]);
    let json = bench.run(&["measure", "uvm.igvm", "--vcpus", "2-3", "--json"]).json();
    let launches = json["launches"].as_array().unwrap();
    assert_eq!(
        launches.iter().map(|launch| launch["tee"].as_str().unwrap()).collect::<Vec<_>>(),
        ["snp", "tdx"]
    );
    assert_eq!(launches[0]["digests"][1]["digest"], on_kvm[2].to_string());
    let milan =
        bench.run(&["measure", "uvm.igvm", "--tee", "snp", "--vcpus", "2", "--cpu-model", "EPYC-Milan"]);
    milan.has(&[&digests(&snp, Backend::Kvm, 2, 0xA0_0F11)[1].to_string()]);
}

#[test]
fn questions_without_an_answer_are_refused() {
    let bench = Bench::new();
    bench.build("uvm", &recipe(ALL));
    bench.build("native", &recipe("'none'"));
    let refuses = |arguments: &[&str], why: &str| bench.run(arguments).refuses(why);
    refuses(&["measure", "uvm.igvm", "--vcpus", "5"], "expected 1 to 4, which is the image's limit, found 5");
    refuses(&["measure", "uvm.igvm", "--vcpus", "0"], "expected a number from 1 to 64");
    refuses(
        &["measure", "uvm.igvm", "--tee", "sim"],
        "expected snp, which the image's configuration page names",
    );
    refuses(
        &["measure", "uvm.igvm", "--tee", "tdx", "--backend", "mshv"],
        "expected kvm for tdx, found mshv",
    );
    refuses(&["measure", "native.igvm"], "expected platform SEV-SNP, found native");
    refuses(&["measure", "uvm.igvm", "--cpu-model", "Xeon"], "expected EPYC, EPYC-Rome");
    refuses(&["inspect", "kernel"], "kernel");
    refuses(&["inspect", "nothing"], "cannot read nothing");
    refuses(&["diff", "uvm.igvm", "kernel"], "kernel");
    bench.write("long", &vec![0; (16 << 20) + 1]);
    refuses(&["inspect", "long"], "expected at most 16777216 bytes, found more");
}

#[test]
fn diff_names_the_cause_and_the_bytes() {
    let bench = Bench::new();
    bench.build("a", &recipe("'snp'"));
    bench.build("b", &recipe("'snp'").replace("quiet", "debug").replace("max_vcpus = 4", "max_vcpus = 8"));
    let said = bench.run(&["diff", "a.igvm", "b.igvm"]);
    assert_eq!(said.status, 1);
    said.has(&[
        "measures differently",
        "command line:",
        "- quiet",
        "+ debug",
        "configuration max_vcpus: 4 -> 8",
        "page 0x142000 (configuration):",
    ]);
    let json = bench.run(&["diff", "a.igvm", "b.igvm", "--json"]).json();
    assert_eq!(json["same"], false);
    let kinds: Vec<_> = json["platforms"][0]["differences"]
        .as_array()
        .unwrap()
        .iter()
        .map(|d| d["difference"].clone())
        .collect();
    assert!(kinds.iter().any(|kind| kind == "command_line") && kinds.iter().any(|kind| kind == "bytes"));

    bench.build("policy", &(recipe("'snp'") + "snp_policy = 0xb0000\n"));
    let said = bench.run(&["diff", "a.igvm", "policy.igvm"]);
    said.has(&["guest policy: 0x30000 -> 0xb0000 +debug", "+ uvm.snp_policy=0xb0000"]);
}

#[test]
fn diff_of_one_image_compares_launches() {
    let bench = Bench::new();
    bench.build("a", &recipe(ALL));
    let said = bench.run(&["diff", "a.igvm", "a.igvm"]);
    assert_eq!(said.status, 0);
    said.has(&["measures the same; 0 differences"]);
    let said = bench.run(&["diff", "a.igvm", "a.igvm", "--tee", "snp", "--vcpus", "1,2"]);
    assert_eq!(said.status, 1);
    said.has(&["number of vCPUs: 1 -> 2"]);
    let said = bench.run(&["diff", "a.igvm", "a.igvm", "--tee", "snp", "--backend", "kvm,mshv"]);
    assert_eq!(said.status, 1);
    said.has(&["backend: kvm -> mshv"]);
}

#[test]
fn the_measured_layout_shows_its_price() {
    let bench = Bench::new();
    bench.build("window", &recipe("'snp'"));
    bench.build("measured", &(recipe("'snp'") + "layout = 'measured'\n"));
    bench.run(&["inspect", "measured.igvm"]).has(&["layout measured:"]);
    bench.run(&["diff", "window.igvm", "measured.igvm"]).has(&["layout: window -> measured", "only in B:"]);
}
