//! The snapshotter, as its users see it: through `ctr`, and what it keeps on disk.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::command::Outcome;
use crate::ctr::ctr;

/// Its name in containerd.
pub const SNAPSHOTTER: &str = "uvm";
/// Where it keeps everything.
pub const STORE: &str = "/var/lib/uvm-snapshotter";
/// Where it answers containerd.
pub const SOCKET: &str = "/run/uvm-snapshotter/snapshotter.sock";
/// The label by which a committed snapshot tells its layer's root hash.
pub const ROOT_HASH: &str = "containerd.io/snapshot/uvm.root-hash";

/// A layer in the store.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct StoredLayer {
    /// The layer file.
    pub path: PathBuf,
    /// Root hash, in hexadecimal digits.
    pub root_hash: String,
    /// Digest of the uncompressed tar, if it came from one.
    pub diff_id: Option<String>,
    /// Blocks of 4096 bytes of the file system image, which the hash tree's superblock follows.
    pub data_blocks: u64,
    /// Length of the file in bytes.
    pub length: u64,
    /// Bytes that the file takes on disk.
    pub allocated: u64,
}

/// The layers in the store.
///
/// # Errors
/// When one of them is not whole.
pub fn stored_layers() -> Result<Vec<StoredLayer>> {
    let mut layers = Vec::new();
    for entry in fs::read_dir(Path::new(STORE).join("layers"))?.flatten() {
        let description = entry.path().join("layer.json");
        let text = fs::read(&description).with_context(|| description.display().to_string())?;
        let fields: Value = serde_json::from_slice(&text)?;
        let path = entry.path().join("layer");
        let metadata = fs::metadata(&path).with_context(|| path.display().to_string())?;
        ensure!(fields["length"].as_u64() == Some(metadata.len()), "{}: {fields}", path.display());
        layers.push(StoredLayer {
            path,
            root_hash: fields["root_hash"].as_str().context("a root hash")?.to_owned(),
            diff_id: fields["diff_id"].as_str().map(str::to_owned),
            data_blocks: fields["data_blocks"].as_u64().context("a number of data blocks")?,
            length: metadata.len(),
            allocated: metadata.blocks() * 512,
        });
    }
    layers.sort();
    Ok(layers)
}

/// `ctr snapshots --snapshotter uvm` with these arguments.
///
/// # Errors
/// When it does not end in time.
pub fn snapshots(arguments: &[&str]) -> Result<Outcome> {
    ctr(&[&["snapshots", "--snapshotter", SNAPSHOTTER], arguments].concat())
}

/// A snapshot in `ctr snapshots ls`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its parent's key; empty if it has none.
    pub parent: String,
    /// `Committed`, `Active` or `View`.
    pub kind: String,
}

/// What `ctr snapshots ls` shows in `namespace`, by key.
///
/// # Errors
/// When `ctr` fails, or shows something else than key, parent and kind.
pub fn list(namespace: &str) -> Result<BTreeMap<String, Listed>> {
    let list = ["--namespace", namespace, "snapshots", "--snapshotter", SNAPSHOTTER, "ls"];
    let shown = ctr(&list)?.expect_status(0)?.out;
    let mut listed = BTreeMap::new();
    for line in shown.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (key, parent, kind) = match fields[..] {
            [key, kind] => (key, "", kind),
            [key, parent, kind] => (key, parent, kind),
            _ => anyhow::bail!("expected key, parent and kind, found {line:?}"),
        };
        listed.insert(key.to_owned(), Listed { parent: parent.to_owned(), kind: kind.to_owned() });
    }
    Ok(listed)
}

/// Sizes in bytes that `ctr snapshots usage` shows, by key.
///
/// # Errors
/// When `ctr` fails, or shows something else than key, size and inodes.
pub fn usage() -> Result<BTreeMap<String, u64>> {
    let shown = snapshots(&["usage", "-b"])?.expect_status(0)?.out;
    let mut sizes = BTreeMap::new();
    for line in shown.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [key, size, _] = fields[..] else { anyhow::bail!("expected three columns, found {line:?}") };
        sizes.insert(key.to_owned(), size.parse().with_context(|| line.to_owned())?);
    }
    Ok(sizes)
}

/// The root hash in a snapshot's label.
///
/// # Errors
/// When there is no such snapshot, or it has no such label.
pub fn root_hash(key: &str) -> Result<String> {
    let shown = snapshots(&["info", key])?.expect_status(0)?.out;
    let fields: Value = serde_json::from_str(&shown).with_context(|| shown.clone())?;
    Ok(fields["Labels"][ROOT_HASH].as_str().with_context(|| shown.clone())?.to_owned())
}
