//! Bad input: a clear error, and nothing left behind.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use igvm::{IgvmDirectiveHeader, IgvmFile, IgvmPlatformHeader, IgvmRevision};
use igvm_defs::{
    IGVM_SEV_SNP_PLATFORM_VERSION, IGVM_VHS_SUPPORTED_PLATFORM, IgvmPageDataFlags, IgvmPageDataType,
    IgvmPlatformType,
};

use super::launches::launch;
use crate::case::{Bed, Case};
use crate::command::Outcome;
use crate::ctr::{self, RUNTIME, import_busybox};
use crate::ledger::Ledger;
use crate::oci_archive;

pub const CASES: &[Case] = &[
    Case { name: "refusal::truncated_image_at_50_places", run: truncated_image },
    Case { name: "refusal::image_without_the_platform", run: other_platform },
    Case { name: "refusal::missing_kvm", run: missing_kvm },
    Case { name: "refusal::unknown_configuration_key", run: unknown_key },
    Case { name: "refusal::command_that_does_not_exist", run: missing_command },
    Case { name: "refusal::program_of_another_architecture", run: other_architecture },
];

/// The launch was refused.
const STATUS_REFUSED: i32 = 2;

fn refused(outcome: Outcome, words: &str) -> Result<()> {
    outcome.expect_status(STATUS_REFUSED)?.expect_refusal(words)?;
    Ok(())
}

fn with_image(bed: &Bed, bytes: &[u8], check: impl FnOnce(Outcome) -> Result<()>) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("bad.igvm");
    fs::write(&path, bytes)?;
    check(launch(bed, &path, &bed.product.join("rootfs.img"), &[])?)
}

fn truncated_image(bed: &Bed) -> Result<()> {
    let before = Ledger::take()?;
    let whole = fs::read(bed.product.join("uvm.igvm"))?;
    for place in 0..50 {
        let length = whole.len() * place / 50;
        with_image(bed, &whole[..length], |outcome| refused(outcome, "IGVM file"))
            .with_context(|| format!("cut to {length} bytes"))?;
    }
    before.expect_nothing_new()
}

/// A well-formed image for SEV-SNP alone.
fn other_platform(bed: &Bed) -> Result<()> {
    let platform = IgvmPlatformHeader::SupportedPlatform(IGVM_VHS_SUPPORTED_PLATFORM {
        compatibility_mask: 1,
        highest_vtl: 0,
        platform_type: IgvmPlatformType::SEV_SNP,
        platform_version: IGVM_SEV_SNP_PLATFORM_VERSION,
        shared_gpa_boundary: 0,
    });
    let page = IgvmDirectiveHeader::PageData {
        gpa: 0x10_0000,
        compatibility_mask: 1,
        flags: IgvmPageDataFlags::new(),
        data_type: IgvmPageDataType::NORMAL,
        data: vec![0x90; 4096],
    };
    let file = IgvmFile::new(IgvmRevision::V1, vec![platform], Vec::new(), vec![page])?;
    let mut bytes = Vec::new();
    file.serialize(&mut bytes)?;
    with_image(bed, &bytes, |outcome| refused(outcome, "expected platform native, found SEV-SNP"))
}

fn missing_kvm(bed: &Bed) -> Result<()> {
    const HIDDEN: &str = "/dev/kvm-hidden";
    fs::rename("/dev/kvm", HIDDEN)?;
    let outcome = launch(bed, &bed.product.join("uvm.igvm"), &bed.product.join("rootfs.img"), &[]);
    fs::rename(HIDDEN, "/dev/kvm")?;
    refused(outcome?, "cannot open /dev/kvm")
}

fn unknown_key(bed: &Bed) -> Result<()> {
    import_busybox(bed)?;
    let before = Ledger::take()?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("uvm.toml");
    let good = fs::read_to_string(bed.product.join("uvm.toml"))?;
    fs::write(&path, format!("{good}\nkernel_params = \"x\"\n"))?;
    let path = path.display().to_string();
    let flags = ["--runtime-config-path", &path];
    ctr::run_once(&flags, "unknown-key", &["true"])?.expect_refusal("kernel_params")?;
    before.expect_nothing_new()
}

fn missing_command(bed: &Bed) -> Result<()> {
    import_busybox(bed)?;
    let before = Ledger::take()?;
    ctr::run_once(&[], "no-command", &["/no/such/program"])?.expect_refusal("/no/such/program")?;
    before.expect_nothing_new()
}

/// A root file system whose only program is one for 64-bit Arm.
fn other_architecture(bed: &Bed) -> Result<()> {
    import_busybox(bed)?;
    let before = Ledger::take()?;
    let folder = tempfile::tempdir()?;
    let archive = other_architecture_image(bed, folder.path())?;
    ctr::ctr(&["image", "import", &archive])?.expect_status(0)?;
    let name = ARM_IMAGE;
    let outcome = ctr::ctr(&["run", "--rm", "--runtime", RUNTIME, name, "arm", "/bin/program"])?;
    ctr::ctr(&["image", "rm", name])?.expect_status(0)?;
    outcome.expect_refusal("architecture")?;
    before.expect_nothing_new()
}

const ARM_IMAGE: &str = "docker.io/library/arm:uvm";

/// An image whose one file is the start of an ELF program for another machine.
fn other_architecture_image(bed: &Bed, folder: &Path) -> Result<String> {
    let mut program = fs::read(bed.program("uvm-vmm"))?;
    // e_machine: AArch64.
    program[18..20].copy_from_slice(&183u16.to_le_bytes());
    program.truncate(8192);
    oci_archive::write(folder, ARM_IMAGE, &[("bin/program", &program)], &serde_json::json!({}))
}
