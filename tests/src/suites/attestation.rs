//! Measured launches, in simulation: what is predicted, measured, reported and verified is one and the same.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::launches::STATUS_STUB_REFUSED;
use crate::case::{Bed, Case};
use crate::command::{Outcome, run};
use crate::ctr::{self, Detached, import_busybox};
use crate::tampering::{Pages, with_parameters};

pub const CASES: &[Case] = &[
    Case { name: "attestation::report_is_what_was_predicted", run: report },
    Case { name: "attestation::measured_layout_boots", run: measured_layout },
    Case { name: "attestation::pod_is_bound_to_its_policy", run: pod },
    Case { name: "attestation::kernel_changed_in_shared_memory", run: changed_kernel },
    Case { name: "attestation::hostile_parameters_are_refused", run: hostile_parameters },
    Case { name: "attestation::host_data_that_differs_is_refused", run: other_host_data },
    Case { name: "attestation::image_for_another_tee_is_refused", run: other_tee },
    Case { name: "attestation::debug_policy_is_refused", run: debug_policy },
];

/// SHA-256 of nothing in particular.
const HOST_DATA: &str = "5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef";
const OTHER_HOST_DATA: &str = "6f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef";
const NONCE: &str = "00112233445566778899aabbccddeeff";
/// `uvm-launch verify` does not believe it.
const STATUS_NO: i32 = 1;
const STATUS_LAUNCH_REFUSED: i32 = 2;
const STATUS_AGENT_REFUSED: i32 = 15;

fn sim_image(bed: &Bed) -> PathBuf {
    bed.product.join("uvm-sim.igvm")
}

fn tool(bed: &Bed, arguments: &[&str]) -> Result<Outcome> {
    run(bed.program("uvm-launch"), arguments)
}

/// The digest that `uvm-launch measure` predicts.
fn predicted(bed: &Bed, image: &Path, vcpus: &str) -> Result<String> {
    let image = image.display().to_string();
    let arguments = ["measure", &image, "--tee", "sim", "--backend", "kvm", "--vcpus", vcpus, "--json"];
    let outcome = tool(bed, &arguments)?.expect_status(0)?;
    let measurements: Value = serde_json::from_str(&outcome.out)?;
    let digest = measurements["launches"][0]["digests"][0]["digest"].as_str();
    Ok(digest.with_context(|| format!("a digest in {outcome:?}"))?.to_owned())
}

/// `uvm-launch run --tee sim` until the agent serves.
fn launch(bed: &Bed, image: &Path, more: &[&str]) -> Result<Outcome> {
    let rootfs = bed.product.join("rootfs.img").display().to_string();
    let image = image.display().to_string();
    let arguments =
        [&["run", &image, "--rootfs", &rootfs, "--tee", "sim", "--until-ready", "--json"], more].concat();
    tool(bed, &arguments)
}

fn measured(outcome: &Outcome) -> Result<String> {
    let summary: Value = serde_json::from_str(&outcome.out).with_context(|| format!("{outcome:?}"))?;
    let digest = summary["measurement"]["digest"].as_str();
    Ok(digest.with_context(|| format!("a measurement in {outcome:?}"))?.to_owned())
}

/// `uvm-launch verify` with everything that an owner knows; `changes` are arguments of its own.
fn verify(bed: &Bed, report: &Path, image: &Path, vcpus: &str, changes: &[&str]) -> Result<Outcome> {
    let (report, image) = (report.display().to_string(), image.display().to_string());
    let known = ["verify", &report, "--image", &image, "--tee", "sim", "--vcpus", vcpus, "--nonce", NONCE];
    tool(bed, &[&known, changes].concat())
}

fn report(bed: &Bed) -> Result<()> {
    let (folder, image) = (tempfile::tempdir()?, sim_image(bed));
    let path = folder.path().join("report.json");
    let file = path.display().to_string();
    let digest = predicted(bed, &image, "2")?;
    let flags = ["--vcpus", "2", "--host-data", HOST_DATA, "--report", &file, "--nonce", NONCE];
    let outcome = launch(bed, &image, &flags)?.expect_status(0)?;
    ensure!(measured(&outcome)? == digest, "expected measurement {digest}, found {outcome:?}");

    let good = ["--allow-sim", "--host-data", HOST_DATA];
    verify(bed, &path, &image, "2", &good)?.expect_status(0)?;
    // Each claim that differs, and the check that has to say so.
    let floor = "genoa:bootloader=255,tee=0,snp=0,microcode=0";
    let wrong: [(&str, &[&str], &str); 5] = [
        ("2", &["--host-data", HOST_DATA], "root"),
        ("2", &["--allow-sim", "--host-data", OTHER_HOST_DATA], "host data"),
        ("1", &["--allow-sim", "--host-data", HOST_DATA], "measurement"),
        ("2", &["--allow-sim", "--host-data", HOST_DATA, "--min-tcb", floor], "TCB"),
        ("2", &["--allow-sim", "--host-data", HOST_DATA, "--id-key-digest", &"11".repeat(48)], "ID key"),
    ];
    for (vcpus, changes, words) in wrong {
        let outcome = verify(bed, &path, &image, vcpus, changes)?.expect_status(STATUS_NO)?;
        ensure!(outcome.out.contains(words), "expected words on {words}, found {outcome:?}");
    }
    let image = image.display().to_string();
    let outcome = tool(bed, &["explain", &file, "--image", &image])?.expect_status(0)?;
    ensure!(outcome.out.contains("2 vCPUs: reproduces the measurement"), "{outcome:?}");
    Ok(())
}

/// The kernel in measured pages: more of them, the same boot.
fn measured_layout(bed: &Bed) -> Result<()> {
    let image = bed.product.join("uvm-sim-measured.igvm");
    let outcome = launch(bed, &image, &[])?.expect_status(0)?;
    ensure!(measured(&outcome)? == predicted(bed, &image, "1")?, "{outcome:?}");
    Ok(())
}

/// A pod that containerd starts: its host data is the digest of the policy in its annotation.
fn pod(bed: &Bed) -> Result<()> {
    import_busybox(bed)?;
    let (folder, image) = (tempfile::tempdir()?, sim_image(bed));
    let (report, policy) = (folder.path().join("report.json"), folder.path().join("policy.rego"));
    fs::write(&policy, "package agent_policy\n")?;
    let (report_file, policy_file) = (report.display().to_string(), policy.display().to_string());
    let config = bed.product.join("uvm-sim.toml").display().to_string();
    // The policy's bytes in base64.
    let annotation = "io.katacontainers.config.agent.policy=cGFja2FnZSBhZ2VudF9wb2xpY3kK";
    let flags = ["--runtime-config-path", &config, "--annotation", annotation];
    let _pod = Detached::start(&flags, "attested", &["sleep", "1000"])?;
    let vsock = "/run/uvm/default/attested/vsock";
    tool(bed, &["report", "--vsock", vsock, "--nonce", NONCE, "--out", &report_file])?.expect_status(0)?;
    let good = ["--allow-sim", "--policy", &policy_file];
    verify(bed, &report, &image, "1", &good)?.expect_status(0)?;
    let other = ["--allow-sim", "--host-data", HOST_DATA];
    verify(bed, &report, &image, "1", &other)?.expect_status(STATUS_NO)?;

    let bad = ["--runtime-config-path", &config, "--annotation", "io.katacontainers.config.agent.policy=%"];
    ctr::run_once(&bad, "bad-policy", &["true"])?.expect_refusal("base64")?;
    Ok(())
}

/// What the hostile machine monitor beside this program prints and returns.
fn hostile_vmm(bed: &Bed, arguments: &[&str]) -> Result<Outcome> {
    let program = std::env::current_exe()?.with_file_name("hostile-vmm");
    let image = sim_image(bed).display().to_string();
    let rootfs = bed.product.join("rootfs.img").display().to_string();
    run(program, &[&[image.as_str(), &rootfs], arguments].concat())
}

/// Before it is copied, a change is found; once it is copied, a change has no effect: what is hashed is what
/// runs.
fn changed_kernel(bed: &Bed) -> Result<()> {
    let outcome = hostile_vmm(bed, &["flip", "stub", "1048576"])?.expect_status(STATUS_STUB_REFUSED)?;
    ensure!(outcome.out.contains("flipped"), "{outcome:?}");
    ensure!(outcome.out.contains("kernel does not match its hash"), "{outcome:?}");
    let outcome = hostile_vmm(bed, &["flip", "copied", "1048576"])?.expect_status(0)?;
    ensure!(outcome.out.contains("flipped\n") && outcome.out.contains("KernelEntry"), "{outcome:?}");
    Ok(())
}

/// A host that fills the parameter page as it likes. The page is not measured, so the digest stays what it was:
/// it is the guest that has to refuse.
fn hostile_parameters(bed: &Bed) -> Result<()> {
    const ALL: Pages = (0, 0x1_0000);
    let (folder, good) = (tempfile::tempdir()?, fs::read(sim_image(bed))?);
    let path = folder.path().join("hostile.igvm");
    let digest = predicted(bed, &sim_image(bed), "1")?;
    let endless = vec![(0, 1); 10_000];
    let cases: [(&str, u32, &[Pages], &str); 9] = [
        ("no processors", 0, &[ALL], "vCPU count: expected 1 to 64, found 0"),
        ("5,000 processors", 5000, &[ALL], "vCPU count: expected 1 to 64, found 5000"),
        ("no memory", 1, &[], "memory map: expected RAM, found none"),
        ("overlap", 1, &[(0, 0x8000), (0x7000, 0x8000)], "memory map: entry 1"),
        ("wrap", 1, &[(0, 0x8000), (u64::MAX, 2)], "memory map: entry 1"),
        ("a hole over the stub", 1, &[(0, 0x100), (0x150, 0x8000)], "memory map: expected RAM at"),
        ("the device hole", 1, &[(0, 0x10_0000)], "memory map: entry 0 lies in the device hole"),
        ("too many", 1, &endless[..9], "memory map: entry 1"),
        ("10,000 entries", 1, &endless, "memory map: expected a last entry"),
    ];
    for (what, vcpus, map, words) in cases {
        fs::write(&path, with_parameters(&good, vcpus, map)?)?;
        let outcome = launch(bed, &path, &[])?;
        ensure!(outcome.status == STATUS_STUB_REFUSED, "{what}: {outcome:?}");
        ensure!(outcome.out.contains(words), "{what}: expected {words:?}, found {outcome:?}");
        ensure!(measured(&outcome)? == digest, "{what}: the digest moved: {outcome:?}");
    }
    fs::write(&path, with_parameters(&good, 1, &[ALL])?)?;
    launch(bed, &path, &[])?.expect_status(0)?;
    Ok(())
}

/// A host that tells the guest another policy digest than it launched with.
fn other_host_data(bed: &Bed) -> Result<()> {
    let outcome = hostile_vmm(bed, &["tell", HOST_DATA, OTHER_HOST_DATA])?;
    ensure!(outcome.out.contains("refused") && outcome.out.contains("host data"), "{outcome:?}");
    let outcome = hostile_vmm(bed, &["tell", HOST_DATA, HOST_DATA])?;
    ensure!(outcome.out.contains("ready"), "{outcome:?}");
    Ok(())
}

fn other_tee(bed: &Bed) -> Result<()> {
    let outcome = launch(bed, &bed.product.join("uvm.igvm"), &[])?.expect_status(STATUS_LAUNCH_REFUSED)?;
    ensure!(outcome.err.contains("snp") && outcome.err.contains("sim"), "{outcome:?}");
    Ok(())
}

/// An image whose policy lets the host debug the guest: the guest does not serve, and the verifier says why not.
fn debug_policy(bed: &Bed) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (recipe, image) = (folder.path().join("debug.toml"), folder.path().join("debug.igvm"));
    let own = fs::read_to_string(bed.product.join("uvm-sim.recipe.toml"))?;
    fs::write(&recipe, format!("{own}\nsnp_policy = 0xb0000\n"))?;
    let [recipe, kernel, stub, out] =
        [&recipe, &bed.product.join("bzImage"), &bed.product.join("boot-stub"), &image]
            .map(|path| path.display().to_string());
    let flags = ["build", &recipe, "--kernel", &kernel, "--stub", &stub, "--out", &out];
    tool(bed, &flags)?.expect_status(0)?;
    let outcome = launch(bed, &image, &[])?.expect_status(STATUS_AGENT_REFUSED)?;
    ensure!(outcome.out.contains("debug"), "{outcome:?}");
    Ok(())
}
