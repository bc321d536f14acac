//! Bad input: a clear error, and nothing left behind.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::launches::launch;
use crate::case::{Bed, Case};
use crate::command::{Outcome, run};
use crate::ctr::{self, RUNTIME, import_busybox};
use crate::ledger::Ledger;

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

/// The image's platform header is changed from native to TDX, checksum and all.
fn other_platform(bed: &Bed) -> Result<()> {
    let mut image = fs::read(bed.product.join("uvm.igvm"))?;
    // IGVM_VHS_SUPPORTED_PLATFORM of type NATIVE (0) behind its 8-byte header at the end of the fixed header.
    let platform = FIXED_HEADER_BYTES + 8;
    ensure!(image[platform + 5] == 0, "the native platform is not where the format puts it");
    image[platform + 5] = PLATFORM_TDX;
    fix_checksum(&mut image)?;
    with_image(bed, &image, |outcome| refused(outcome, "expected platform native"))
}

const FIXED_HEADER_BYTES: usize = 24;
const PLATFORM_TDX: u8 = 3;

/// The checksum covers the fixed and the variable headers, with its own field zero.
fn fix_checksum(image: &mut [u8]) -> Result<()> {
    let word = |image: &[u8], at: usize| -> Result<usize> {
        let bytes = image.get(at..).and_then(|rest| rest.first_chunk()).context("a fixed header")?;
        Ok(usize::try_from(u32::from_le_bytes(*bytes))?)
    };
    let end = word(image, 8)? + word(image, 12)?;
    image[20..24].fill(0);
    let sum = crc32(&image[..end]);
    image[20..24].copy_from_slice(&sum.to_le_bytes());
    Ok(())
}

/// CRC-32 of IEEE 802.3, bit by bit: it runs once.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}

fn missing_kvm(bed: &Bed) -> Result<()> {
    let launcher = bed.program("uvm-launch").display().to_string();
    let (image, rootfs) = (bed.product.join("uvm.igvm"), bed.product.join("rootfs.img"));
    // A mount namespace of its own, in which /dev/kvm is hidden behind an empty /dev.
    let script = format!(
        "mount -t tmpfs none /dev && exec {launcher} run {} --rootfs {} --until-ready",
        image.display(),
        rootfs.display()
    );
    refused(run("unshare", &["--mount", "sh", "-c", &script])?, "/dev/kvm")
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

/// The test image with one more file: the start of an ELF program for another machine.
fn other_architecture_image(bed: &Bed, folder: &Path) -> Result<String> {
    let mut program = fs::read(bed.program("uvm-vmm"))?;
    // e_machine: AArch64.
    program[18..20].copy_from_slice(&183u16.to_le_bytes());
    program.truncate(8192);
    let root = folder.join("root");
    fs::create_dir_all(root.join("bin"))?;
    fs::write(root.join("bin/program"), program)?;
    let archive = folder.join("arm.tar");
    let (root, archive) = (root.display().to_string(), archive.display().to_string());
    run("chmod", &["755", &format!("{root}/bin/program")])?.expect_status(0)?;
    archive_folder(&root, folder, &archive)?;
    Ok(archive)
}

/// An OCI archive of one layer.
fn archive_folder(root: &str, folder: &Path, archive: &str) -> Result<()> {
    let layout = folder.join("layout");
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let layer = folder.join("layer.tar").display().to_string();
    run("tar", &["-C", root, "-cf", &layer, "."])?.expect_status(0)?;
    let blob = |path: &str| -> Result<(String, u64)> {
        let digest = run("sha256sum", &[path])?.expect_status(0)?.out[..64].to_owned();
        let size = fs::copy(path, blobs.join(&digest))?;
        Ok((format!("sha256:{digest}"), size))
    };
    let json = |value: serde_json::Value| -> Result<(String, u64)> {
        let path = folder.join("blob.json");
        fs::write(&path, value.to_string())?;
        blob(&path.display().to_string())
    };
    let (layer, layer_size) = blob(&layer)?;
    let (config, config_size) = json(serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": [layer] },
    }))?;
    let (manifest, manifest_size) = json(serde_json::json!({
        "schemaVersion": 2,
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size },
        "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": layer_size }],
    }))?;
    let index = serde_json::json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest, "size": manifest_size,
            "annotations": { "io.containerd.image.name": ARM_IMAGE },
            "platform": { "architecture": "amd64", "os": "linux" },
        }],
    });
    fs::write(layout.join("index.json"), index.to_string())?;
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let layout = layout.display().to_string();
    run("tar", &["-C", &layout, "-cf", archive, "oci-layout", "index.json", "blobs"])?.expect_status(0)?;
    Ok(())
}
