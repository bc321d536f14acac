//! An image's layers, each in the two forms that are compared: as containerd's own overlayfs snapshotter unpacks it,
//! and as a layer file of ours that the kernel mounts.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use erofs_verity::BLOCK_SIZE;
use erofs_verity::layer::Layer;
use oci_layer::{Converted, Limits, convert};
use serde_json::Value;

use crate::command::{eventually, run};
use crate::ctr::{ctr, transfer};
use crate::oci_archive::digest;

/// containerd's namespace for these images.
const NAMESPACE: &str = "unpacked";
/// How long it may take to see a view of an image's layers.
const VIEW_LIMIT: Duration = Duration::from_secs(30);

/// An OCI archive, taken apart.
#[derive(Debug)]
pub struct Image {
    archive: PathBuf,
    name: String,
    /// The layers as they are distributed, bottom first.
    pub blobs: Vec<Vec<u8>>,
    /// Digests of their uncompressed forms.
    diff_ids: Vec<String>,
}

impl Image {
    /// Reads the archive of one image.
    ///
    /// # Errors
    /// When it is none.
    pub fn open(archive: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(File::open(archive)?).entries()? {
            let mut entry = entry?;
            let path = entry.path()?.display().to_string();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            files.insert(path, bytes);
        }
        let json = |path: &str| -> Result<Value> {
            Ok(serde_json::from_slice(files.get(path).with_context(|| path.to_owned())?)?)
        };
        let blob = |of: &Value| -> Result<String> {
            Ok(format!("blobs/{}", of["digest"].as_str().context("a digest")?.replace(':', "/")))
        };
        let index = json("index.json")?;
        let manifest = &index["manifests"][0];
        let name = manifest["annotations"]["io.containerd.image.name"].as_str().context("a name")?.to_owned();
        let manifest = json(&blob(manifest)?)?;
        let config = json(&blob(&manifest["config"])?)?;
        let mut blobs = Vec::new();
        for layer in manifest["layers"].as_array().context("layers")? {
            let path = blob(layer)?;
            blobs.push(files.get(&path).context(path)?.clone());
        }
        let diff_ids = config["rootfs"]["diff_ids"].as_array().context("diff ids")?;
        let diff_ids = diff_ids.iter().filter_map(|id| id.as_str().map(str::to_owned)).collect();
        Ok(Self { archive: archive.to_owned(), name, blobs, diff_ids })
    }

    /// Has containerd import and unpack it, shows `check` the directories of its layers, bottom first, and removes
    /// it. `Err` of the inner result is containerd's refusal.
    ///
    /// # Errors
    /// When `check` fails, or containerd does not do what it is asked.
    pub fn unpacked<T>(&self, check: impl FnOnce(&[PathBuf]) -> Result<T>) -> Result<Result<T, String>> {
        let archive = self.archive.display().to_string();
        let import = ["-n", NAMESPACE, "images", "import", "--snapshotter", "overlayfs", &archive];
        let outcome = transfer(&import)?;
        let checked = if outcome.status == 0 {
            self.directories().and_then(|directories| check(&directories)).map(Ok)
        } else {
            Ok(Err(outcome.err))
        };
        transfer(&["-n", NAMESPACE, "images", "rm", "--sync", &self.name])?.expect_status(0)?;
        checked
    }

    /// Where the snapshotter keeps the layers: what a view of the topmost one is mounted from.
    fn directories(&self) -> Result<Vec<PathBuf>> {
        let (bottom, others) = self.diff_ids.split_first().context("a layer")?;
        let chain = |below: String, diff_id: &String| digest(format!("{below} {diff_id}").as_bytes());
        let top = others.iter().fold(bottom.clone(), chain);
        let snapshots = ["-n", NAMESPACE, "snapshots", "--snapshotter", "overlayfs"];
        let call = |arguments: &[&str]| ctr(&[&snapshots[..], arguments].concat());
        // Nothing holds the view: containerd may collect it as garbage at once.
        let mount = eventually("a view of the layers", VIEW_LIMIT, || {
            call(&["view", "view-of-layers", &top])?;
            let mount = call(&["mounts", "/", "view-of-layers"])?;
            call(&["rm", "view-of-layers"])?;
            Ok((mount.status == 0).then_some(mount.out))
        })?;
        let mut words = mount.split_whitespace();
        let lower = mount.split([' ', ',']).find_map(|option| option.trim().strip_prefix("lowerdir="));
        let mut directories: Vec<PathBuf> = match lower {
            Some(lower) => lower.split(':').map(PathBuf::from).collect(),
            // One layer alone is a bind mount.
            None => words.find(|word| word.ends_with("/fs")).map(PathBuf::from).into_iter().collect(),
        };
        directories.reverse();
        ensure!(directories.len() == self.diff_ids.len(), "expected a directory for each layer in {mount:?}");
        Ok(directories)
    }
}

/// A layer file of ours.
#[derive(Debug)]
pub struct LayerFile {
    path: PathBuf,
    /// What the conversion says of it.
    pub converted: Converted,
}

impl LayerFile {
    /// Converts `blob` to a new file at `path`. `Err` of the inner result is the refusal.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn convert(blob: &[u8], path: &Path) -> Result<Result<Self, String>> {
        let _ = fs::remove_file(path);
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        let converted = convert(blob, &file, &Limits::default());
        let layer = |converted| Self { path: path.to_owned(), converted };
        Ok(converted.map(layer).map_err(|error| error.to_string()))
    }

    /// Has erofs-utils and cryptsetup check it.
    ///
    /// # Errors
    /// With what they say against it.
    pub fn expect_sound(&self) -> Result<()> {
        let path = self.path.display().to_string();
        let Layer { root, tree_offset, .. } = self.converted.layer;
        run("fsck.erofs", &[&path])?.expect_status(0)?;
        // The superblock is the block in front of the tree.
        let offset = format!("--hash-offset={}", tree_offset - u64::try_from(BLOCK_SIZE)?);
        run("veritysetup", &["verify", &path, &path, &root.to_string(), &offset])?.expect_status(0)?;
        Ok(())
    }

    /// Mounts it for as long as `look` takes.
    ///
    /// # Errors
    /// When the kernel refuses it, or `look` fails.
    pub fn mounted<T>(&self, look: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        let folder = tempfile::tempdir()?;
        let (file, place) = (self.path.display().to_string(), folder.path().display().to_string());
        run("mount", &["-t", "erofs", "-o", "ro,loop", &file, &place])?.expect_status(0)?;
        let seen = look(folder.path());
        let unmounted = run("umount", &[&place])?;
        if unmounted.status != 0 {
            bail!("cannot unmount {place}: {unmounted:?}");
        }
        seen
    }
}
