//! Layer files that are changed behind the runtime's back, as whoever owns the host can.
//!
//! A container either sees what its image says or an error; the host's own log and the errors of the request say
//! which layer is not what it was.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::case::{Bed, Case};
use crate::command::eventually;
use crate::cri::{Container, Cri, Pod};
use crate::ctr::transfer;
use crate::ledger::processes;
use crate::oci_archive::{LayerTar, digest, write_layers};
use crate::snapshots::{SNAPSHOTTER, StoredLayer, stored_layers};

pub const CASES: &[Case] = &[
    Case { name: "tampering::flipped_tree_before_start", run: tree },
    Case { name: "tampering::flipped_data_before_start", run: data },
    Case { name: "tampering::flipped_block_while_running", run: running },
    Case { name: "tampering::superblock_of_the_tree_is_not_read", run: superblock },
    Case { name: "tampering::truncated_and_extended", run: resized },
    Case { name: "tampering::truncated_while_running", run: truncated_running },
    Case { name: "tampering::swapped_layers", run: swapped },
];

const BLOCK: u64 = 4096;
/// Bytes of the file that is changed, and of the file beside it that is not: together more blocks than one block of
/// hashes covers, so that the tree has two levels.
pub const TARGET: usize = 400 * 1024;
/// See [`TARGET`].
pub const OTHER: usize = 300 * 1024;
/// How long a report takes from the guest to the host's log.
const REPORTED: Duration = Duration::from_secs(20);

/// An image in the store: a shell in the lowest layer, and above it two layers of equal length, each with a
/// `target` and an `other`.
#[derive(Debug)]
pub struct TwoLayers {
    /// Its reference.
    pub name: String,
    /// Its layers, bottom first.
    pub stored: Vec<StoredLayer>,
}

/// Bytes of the file `number`, no two blocks alike.
#[must_use]
pub fn content(number: u64, length: usize) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        // xorshift64.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..length).map(|_| next()).collect()
}

fn tars() -> Result<Vec<Vec<u8>>> {
    let mut base = LayerTar::default();
    base.directory("bin")?;
    base.file("bin/busybox", &fs::read("/bin/busybox").context("/bin/busybox")?)?;
    for name in ["sh", "cat", "sleep", "sha256sum"] {
        base.symlink(&format!("bin/{name}"), "busybox")?;
    }
    let mut tars = vec![base.finish()?];
    for (number, folder) in [(1, "one"), (2, "two")] {
        let mut tar = LayerTar::default();
        tar.directory(folder)?;
        tar.file(&format!("{folder}/target"), &content(number, TARGET))?;
        tar.file(&format!("{folder}/other"), &content(100 + number, OTHER))?;
        tars.push(tar.finish()?);
    }
    Ok(tars)
}

/// The image, called `name`, for as long as `check` takes.
///
/// # Errors
/// When it cannot be imported, and those of `check`.
pub fn with_image(name: &str, check: impl FnOnce(&TwoLayers) -> Result<()>) -> Result<()> {
    let (folder, tars) = (tempfile::tempdir()?, tars()?);
    let name = format!("docker.io/library/tampering-{name}:uvm");
    let archive = write_layers(folder.path(), &name, &tars, &json!({ "Env": ["PATH=/bin"] }))?;
    let import = ["-n", "k8s.io", "images", "import", "--snapshotter", SNAPSHOTTER, &archive];
    transfer(&import)?.expect_status(0)?;
    let outcome = find(&name, &tars).and_then(|image| {
        let whole = image.stored.iter().map(|layer| fs::read(&layer.path)).collect::<Result<Vec<_>, _>>()?;
        let outcome = check(&image);
        // The next image of these layers may come before they are gone from the store.
        for (layer, bytes) in image.stored.iter().zip(whole) {
            fs::write(&layer.path, bytes)?;
        }
        outcome
    });
    transfer(&["-n", "k8s.io", "images", "rm", "--sync", &name])?.expect_status(0)?;
    outcome
}

fn find(name: &str, tars: &[Vec<u8>]) -> Result<TwoLayers> {
    let all = stored_layers()?;
    let mut stored = Vec::new();
    for tar in tars {
        let diff_id = Some(digest(tar));
        let layer = all.iter().find(|layer| layer.diff_id == diff_id);
        stored.push(layer.with_context(|| format!("{diff_id:?} in {all:?}"))?.clone());
    }
    ensure!(stored[1].length == stored[2].length, "expected layers of equal length, found {stored:?}");
    ensure!(stored[1].data_blocks > 128, "expected a tree of two levels over {:?}", stored[1]);
    Ok(TwoLayers { name: name.to_owned(), stored })
}

impl TwoLayers {
    /// A container that waits, in `pod`.
    fn run(&self, cri: &mut Cri, pod: &Pod, name: &str) -> Result<String> {
        let command = &["sleep", "1000"];
        cri.run_container(pod, &Container { name, image: &self.name, command, mounts: &[] })
    }

    /// No container comes to life, and the error names the layer: by its root hash, or by its place in the store.
    fn expect_refused(&self, cri: &mut Cri, pod: &Pod, name: &str, layer: &StoredLayer) -> Result<()> {
        let Err(refusal) = self.run(cri, pod, name) else { anyhow::bail!("{name}: a container runs") };
        let said = format!("{refusal:#}");
        println!("      {name}: {}", brief(&said));
        let folder = layer.path.parent().context("a folder")?.display().to_string();
        ensure!(said.contains(&layer.root_hash) || said.contains(&format!("{folder}/")), "{name}: {said}");
        Ok(())
    }
}

/// What a person would look at first.
fn brief(said: &str) -> String {
    let tail: Vec<char> = said.chars().rev().take(300).collect();
    tail.into_iter().rev().collect()
}

/// A pod for as long as `check` takes.
fn in_pod(name: &str, check: impl FnOnce(&mut Cri, &Pod) -> Result<()>) -> Result<()> {
    let (logs, mut cri) = (tempfile::tempdir()?, Cri::connect()?);
    let pod = cri.run_pod(name, logs.path())?;
    let outcome = check(&mut cri, &pod);
    cri.remove_pod(&pod)?;
    outcome
}

/// Flips a bit of the byte at `offset`; a second time, flips it back.
fn flip(path: &Path, offset: u64) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset)?;
    file.write_all_at(&[byte[0] ^ 1], offset)?;
    Ok(())
}

/// Where in the layer's file the first bytes of `wanted` are.
fn position(layer: &StoredLayer, wanted: &[u8]) -> Result<u64> {
    let bytes = fs::read(&layer.path)?;
    let mut blocks = bytes.chunks_exact(usize::try_from(BLOCK)?);
    let at = blocks.position(|block| wanted.starts_with(block)).context("the file in its layer")?;
    Ok(u64::try_from(at)? * BLOCK)
}

/// What containerd and the shims log from now on.
struct HostLog {
    file: File,
    from: u64,
}

impl HostLog {
    fn now() -> Result<Self> {
        // Debian's process of this name is one; its standard error is the node's log of it.
        let process = processes("containerd")?.into_iter().min().context("containerd")?;
        let file = File::open(format!("/proc/{process}/fd/2"))?;
        let from = file.metadata()?.len();
        Ok(Self { file, from })
    }

    /// Waits for a line with all of `words`.
    fn expect(&self, words: &[&str]) -> Result<()> {
        let line = eventually(&format!("{words:?} in the log"), REPORTED, || {
            let length = self.file.metadata()?.len().saturating_sub(self.from);
            let mut bytes = vec![0; usize::try_from(length)?];
            self.file.read_exact_at(&mut bytes, self.from)?;
            let text = String::from_utf8_lossy(&bytes);
            let line = text.lines().find(|line| words.iter().all(|word| line.contains(word)));
            Ok(line.map(str::to_owned))
        })?;
        println!("      log: {}", brief(&line));
        Ok(())
    }
}

/// The whole file is read, and is what the image says.
fn expect_whole(cri: &mut Cri, container: &str, path: &str, content: &[u8]) -> Result<()> {
    let seen = cri.succeed(container, &["sha256sum", path])?;
    let expected = digest(content).replace("sha256:", "");
    ensure!(seen.starts_with(&expected), "{path}: expected {expected}, found {seen:?}");
    Ok(())
}

/// Reading the file ends with an error, and nothing that was read before it is wrong.
fn expect_error(cri: &mut Cri, container: &str, path: &str, content: &[u8]) -> Result<()> {
    let answer = cri.exec_sync(container, &["cat", path])?;
    let said = String::from_utf8_lossy(&answer.stderr).to_lowercase();
    ensure!(answer.exit_code != 0, "{path}: {} bytes were read", answer.stdout.len());
    ensure!(said.contains("i/o error") || said.contains("input/output"), "{path}: {said:?}");
    ensure!(content.starts_with(&answer.stdout), "{path}: other bytes were served");
    Ok(())
}

/// Each level of the tree, and the image's own superblock, which is the first block that is verified.
fn tree(_: &Bed) -> Result<()> {
    with_image("tree", |image| {
        in_pod("tree", |cri, pod| {
            let layer = &image.stored[1];
            let top = (layer.data_blocks + 1) * BLOCK;
            let places = [("top", top + 7), ("leaf-0", top + BLOCK + 9), ("leaf-1", top + 2 * BLOCK + 3)];
            for (name, offset) in places.into_iter().chain([("image-superblock", 1024 + 40)]) {
                flip(&layer.path, offset)?;
                image.expect_refused(cri, pod, name, layer)?;
                flip(&layer.path, offset)?;
            }
            // The pod is none the worse for it.
            let container = image.run(cri, pod, "good")?;
            expect_whole(cri, &container, "/one/target", &content(1, TARGET))
        })
    })
}

fn data(_: &Bed) -> Result<()> {
    with_image("data", |image| {
        let (layer, target) = (&image.stored[1], content(1, TARGET));
        let offset = position(layer, &target)? + 40 * BLOCK + 17;
        flip(&layer.path, offset)?;
        in_pod("data", |cri, pod| {
            let log = HostLog::now()?;
            let container = image.run(cri, pod, "main")?;
            expect_whole(cri, &container, "/one/other", &content(101, OTHER))?;
            expect_error(cri, &container, "/one/target", &target)?;
            let block = format!("block {} ", offset / BLOCK);
            log.expect(&[&layer.root_hash, &block, &container])?;
            expect_whole(cri, &container, "/two/target", &content(2, TARGET))
        })
    })
}

/// A block that nobody has read yet.
fn running(_: &Bed) -> Result<()> {
    with_image("running", |image| {
        in_pod("running", |cri, pod| {
            let (layer, target) = (&image.stored[2], content(2, TARGET));
            let container = image.run(cri, pod, "main")?;
            expect_whole(cri, &container, "/two/other", &content(102, OTHER))?;
            let (log, offset) = (HostLog::now()?, position(layer, &target)? + 4000);
            flip(&layer.path, offset)?;
            expect_error(cri, &container, "/two/target", &target)?;
            log.expect(&[&layer.root_hash, &format!("block {} ", offset / BLOCK), &container])?;
            expect_whole(cri, &container, "/two/other", &content(102, OTHER))?;
            expect_whole(cri, &container, "/one/target", &content(1, TARGET))
        })
    })
}

/// The block between data and tree describes the tree to tools. The guest is told all of it in the request, so
/// whatever stands there, the layer is served, and served right.
fn superblock(_: &Bed) -> Result<()> {
    with_image("superblock", |image| {
        let layer = &image.stored[1];
        for offset in [0, 16, 100] {
            flip(&layer.path, layer.data_blocks * BLOCK + offset)?;
        }
        in_pod("superblock", |cri, pod| {
            let container = image.run(cri, pod, "main")?;
            expect_whole(cri, &container, "/one/target", &content(1, TARGET))?;
            expect_whole(cri, &container, "/one/other", &content(101, OTHER))
        })
    })
}

fn resize(path: &Path, length: u64) -> Result<()> {
    Ok(OpenOptions::new().write(true).open(path)?.set_len(length)?)
}

fn resized(_: &Bed) -> Result<()> {
    with_image("resized", |image| {
        in_pod("resized", |cri, pod| {
            let layer = &image.stored[1];
            let whole = fs::read(&layer.path)?;
            let lengths = [0, BLOCK, layer.data_blocks * BLOCK, layer.length - 1, layer.length + BLOCK];
            for length in lengths {
                resize(&layer.path, length)?;
                image.expect_refused(cri, pod, &format!("bytes-{length}"), layer)?;
                fs::write(&layer.path, &whole)?;
            }
            let container = image.run(cri, pod, "good")?;
            expect_whole(cri, &container, "/one/target", &content(1, TARGET))
        })
    })
}

/// Blocks that are not there any more cannot be read; the machine lives on.
fn truncated_running(_: &Bed) -> Result<()> {
    with_image("cut", |image| {
        in_pod("cut", |cri, pod| {
            let (layer, target) = (&image.stored[2], content(2, TARGET));
            let container = image.run(cri, pod, "main")?;
            resize(&layer.path, position(layer, &target)? + 10 * BLOCK)?;
            expect_error(cri, &container, "/two/target", &target)?;
            expect_whole(cri, &container, "/one/target", &content(1, TARGET))
        })
    })
}

/// Two files of the same length, each whole, in each other's place.
fn swapped(_: &Bed) -> Result<()> {
    with_image("swapped", |image| {
        let (one, two) = (&image.stored[1], &image.stored[2]);
        let aside = one.path.with_file_name("aside");
        for (from, to) in [(&one.path, &aside), (&two.path, &one.path), (&aside, &two.path)] {
            fs::rename(from, to)?;
        }
        in_pod("swapped", |cri, pod| image.expect_refused(cri, pod, "main", one))
    })
}
