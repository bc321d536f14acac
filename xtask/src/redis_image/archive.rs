//! The OCI archive: an image layout (OCI Image Format Specification 1.0) in one tar file.
//!
//! Layers are compressed tar archives; what names them is their digest, compressed in the manifest and
//! uncompressed in the configuration. Times and owners are zero and everything is sorted.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};
use tempfile::NamedTempFile;

use super::files::{Entry, Files};

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the image's configuration says.
pub(super) struct Config {
    pub(super) reference: &'static str,
    pub(super) command: &'static [&'static str],
}

/// Blobs by the hexadecimal digest that is their name.
#[derive(Default)]
struct Blobs(BTreeMap<String, Vec<u8>>);

impl Blobs {
    /// Adds a blob; returns its descriptor.
    fn add(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let digest = sha256(&bytes);
        let descriptor =
            json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len() });
        self.0.insert(digest, bytes);
        descriptor
    }
}

/// Writes the archive of an image with `layers`, bottom layer first, to `out`, which appears whole or not at all.
pub(super) fn write(layers: &[Files], config: &Config, out: &Path) -> Result<()> {
    let mut blobs = Blobs::default();
    let mut descriptors = Vec::new();
    let mut diff_ids = Vec::new();
    for files in layers {
        let tar = layer_tar(files)?;
        diff_ids.push(format!("sha256:{}", sha256(&tar)));
        descriptors.push(blobs.add(LAYER, compress(&tar)?));
    }
    let image = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": { "Env": [PATH], "Cmd": config.command, "WorkingDir": "/" },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let image = blobs.add(CONFIG, serde_json::to_vec(&image)?);
    let manifest =
        json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": image, "layers": descriptors });
    let mut manifest = blobs.add(MANIFEST, serde_json::to_vec(&manifest)?);
    let tag = config.reference.rsplit(':').next().unwrap_or("latest");
    manifest["annotations"] =
        json!({ "io.containerd.image.name": config.reference, "org.opencontainers.image.ref.name": tag });
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [manifest] });
    let layout = json!({ "imageLayoutVersion": "1.0.0" });

    let mut archive = Builder::new(Vec::new());
    append_file(&mut archive, "oci-layout", 0o644, &serde_json::to_vec(&layout)?)?;
    append_file(&mut archive, "index.json", 0o644, &serde_json::to_vec(&index)?)?;
    for (digest, bytes) in &blobs.0 {
        append_file(&mut archive, &format!("blobs/sha256/{digest}"), 0o644, bytes)?;
    }
    replace(out, &archive.into_inner()?)
}

fn layer_tar(files: &Files) -> Result<Vec<u8>> {
    let mut archive = Builder::new(Vec::new());
    for (path, entry) in &files.0 {
        match entry {
            Entry::Directory { mode } => {
                let mut header = header(EntryType::Directory, *mode, 0);
                archive.append_data(&mut header, format!("{path}/"), std::io::empty())?;
            }
            Entry::Regular { mode, content } => append_file(&mut archive, path, *mode, content)?,
            Entry::Symlink { target } => {
                let mut header = header(EntryType::Symlink, 0o777, 0);
                archive.append_link(&mut header, path, target)?;
            }
        }
    }
    Ok(archive.into_inner()?)
}

fn append_file(archive: &mut Builder<Vec<u8>>, path: &str, mode: u32, content: &[u8]) -> Result<()> {
    let mut header = header(EntryType::Regular, mode, content.len() as u64);
    archive.append_data(&mut header, path, content).with_context(|| format!("{path}: cannot archive it"))
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn compress(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), Compression::default());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn replace(out: &Path, bytes: &[u8]) -> Result<()> {
    let directory = out.parent().context("expected a path with a directory")?;
    let failed = || format!("cannot write {}", out.display());
    let mut file = NamedTempFile::new_in(directory).with_context(failed)?;
    file.write_all(bytes).with_context(failed)?;
    // Temporary files are private to their owner.
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    file.as_file().set_permissions(readable).with_context(failed)?;
    file.persist(out).with_context(failed)?;
    Ok(())
}
