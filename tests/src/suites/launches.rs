//! `uvm-launch run`: an image by hand, without containerd.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::case::{Bed, Case};
use crate::command::{Outcome, run};
use crate::tiny_guest;

pub const CASES: &[Case] = &[
    Case { name: "launch::timeline_is_complete_and_in_order", run: timeline },
    Case { name: "launch::four_processors", run: four_processors },
    Case { name: "launch::ends_are_told_apart", run: ends },
    Case { name: "launch::flipped_root_file_system_stops_the_boot", run: flipped_rootfs },
    Case { name: "launch::other_kernel_is_refused_by_the_stub", run: other_kernel },
];

/// The boot stub refused.
pub const STATUS_STUB_REFUSED: i32 = 10;
/// The guest's kernel panicked.
const STATUS_PANIC: i32 = 11;
/// The guest reset itself.
const STATUS_RESET: i32 = 12;
/// A processor shut itself down.
const STATUS_TRIPLE_FAULT: i32 = 13;

/// `uvm-launch run` until the agent serves.
pub fn launch(bed: &Bed, image: &Path, rootfs: &Path, more: &[&str]) -> Result<Outcome> {
    let (image, rootfs) = (image.display().to_string(), rootfs.display().to_string());
    let arguments = [&["run", &image, "--rootfs", &rootfs, "--until-ready", "--json"], more].concat();
    run(bed.program("uvm-launch"), &arguments)
}

fn own_image(bed: &Bed, more: &[&str]) -> Result<Outcome> {
    launch(bed, &bed.product.join("uvm.igvm"), &bed.product.join("rootfs.img"), more)
}

fn steps(outcome: &Outcome) -> Result<Vec<(String, u64)>> {
    let report: Value = serde_json::from_str(&outcome.out).with_context(|| format!("{outcome:?}"))?;
    let steps = report["timeline"].as_array().context("a timeline")?.iter();
    steps
        .map(|step| Some((step["step"].as_str()?.to_owned(), step["at_us"].as_u64()?)))
        .collect::<Option<_>>()
        .context("steps with times")
}

fn timeline(bed: &Bed) -> Result<()> {
    let outcome = own_image(bed, &[])?.expect_status(0)?;
    let steps = steps(&outcome)?;
    let names: Vec<&str> = steps.iter().map(|(name, _)| name.as_str()).collect();
    let expected =
        ["vmm_start", "launched", "first_entry", "stub", "copied", "kernel_entry", "init", "agent_ready"];
    ensure!(names == expected, "expected {expected:?}, found {names:?}");
    ensure!(steps.is_sorted_by_key(|(_, at)| *at), "times go backwards: {steps:?}");
    Ok(())
}

fn four_processors(bed: &Bed) -> Result<()> {
    own_image(bed, &["--vcpus", "4"])?.expect_status(0)?;
    Ok(())
}

/// Each way to end has an exit status of its own and a line that says which it was.
fn ends(bed: &Bed) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("tiny.igvm");
    let ends = [
        (tiny_guest::writes(0x604, 0x34), 0, "power_off"),
        (tiny_guest::writes(0x607, 1), STATUS_PANIC, "panic"),
        (tiny_guest::writes(0x606, 1), STATUS_RESET, "reset"),
        (tiny_guest::faults(), STATUS_TRIPLE_FAULT, "triple_fault"),
    ];
    for (code, status, word) in ends {
        fs::write(&path, tiny_guest::image(&code)?)?;
        let outcome = launch(bed, &path, &bed.product.join("rootfs.img"), &[])?.expect_status(status)?;
        ensure!(outcome.out.contains(word), "expected {word}, found {outcome:?}");
    }
    Ok(())
}

/// A byte is flipped in the file system's super block, in the agent, and in the hash tree: each is found.
fn flipped_rootfs(bed: &Bed) -> Result<()> {
    let good = fs::read(bed.product.join("rootfs.img"))?;
    let info: Value = serde_json::from_slice(&fs::read(bed.product.join("rootfs.json"))?)?;
    let tree = usize::try_from(info["tree_offset"].as_u64().context("tree_offset")?)?;
    let agent = find(&good, b"\x7fELF").context("the agent in the image")?;
    let folder = tempfile::tempdir()?;
    for (what, offset) in [("super block", 1024), ("agent", agent + 64), ("hash tree", tree + 7)] {
        let mut bad = good.clone();
        bad[offset] ^= 1;
        let path = folder.path().join("rootfs.img");
        fs::write(&path, bad)?;
        let outcome = launch(bed, &bed.product.join("uvm.igvm"), &path, &[])?;
        ensure!(outcome.status == STATUS_PANIC, "{what}: expected a stopped boot, found {outcome:?}");
    }
    Ok(())
}

/// One byte of the kernel is changed after the image was built: the stub says so and nothing of it runs.
fn other_kernel(bed: &Bed) -> Result<()> {
    let mut image = fs::read(bed.product.join("uvm.igvm"))?;
    let kernel = find(&image, b"HdrS").context("the kernel in the image")? - 0x202;
    image[kernel + 0x10_0000] ^= 1;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("other.igvm");
    fs::write(&path, image)?;
    let outcome = launch(bed, &path, &bed.product.join("rootfs.img"), &[])?;
    ensure!(outcome.status == STATUS_STUB_REFUSED, "{outcome:?}");
    ensure!(outcome.out.contains("kernel does not match its hash"), "{outcome:?}");
    ensure!(!outcome.out.contains("kernel_entry"), "{outcome:?}");
    Ok(())
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
