//! Small images made on the spot: OCI archives (OCI image specification 1.0) whose bytes depend on what is asked
//! for and on nothing else.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use anyhow::Result;
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// zstd's own default.
const ZSTD_LEVEL: i32 = 3;
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// The tar of one layer, entry by entry: everything belongs to root and was changed at the epoch.
pub struct LayerTar(Builder<Vec<u8>>);

impl Default for LayerTar {
    fn default() -> Self {
        Self(Builder::new(Vec::new()))
    }
}

impl std::fmt::Debug for LayerTar {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "LayerTar({} bytes)", self.0.get_ref().len())
    }
}

impl LayerTar {
    /// Adds a directory with mode 0755.
    ///
    /// # Errors
    /// When the path does not fit a header.
    pub fn directory(&mut self, path: &str) -> Result<()> {
        let mut header = header(EntryType::Directory, 0o755, 0)?;
        Ok(self.0.append_data(&mut header, path, std::io::empty())?)
    }

    /// Adds an executable file.
    ///
    /// # Errors
    /// When the path does not fit a header.
    pub fn file(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        let mut header = header(EntryType::Regular, 0o755, bytes.len())?;
        Ok(self.0.append_data(&mut header, path, bytes)?)
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// When a path does not fit a header.
    pub fn symlink(&mut self, path: &str, target: &str) -> Result<()> {
        Ok(self.0.append_link(&mut header(EntryType::Symlink, 0o777, 0)?, path, target)?)
    }

    /// The finished tar.
    ///
    /// # Errors
    /// None that memory does not raise.
    pub fn finish(self) -> Result<Vec<u8>> {
        Ok(self.0.into_inner()?)
    }
}

fn header(kind: EntryType, mode: u32, size: usize) -> Result<Header> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(u64::try_from(size)?);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    Ok(header)
}

/// Writes an image called `name`, of executable `files` in one layer and a `config` (the `config` object of an
/// image configuration), into `folder`; gives the archive's path.
///
/// # Errors
/// When a file cannot be written.
pub fn write(folder: &Path, name: &str, files: &[(&str, &[u8])], config: &Value) -> Result<String> {
    let mut layer = LayerTar::default();
    for (path, bytes) in files {
        layer.file(path, bytes)?;
    }
    write_layers(folder, name, &[layer.finish()?], config)
}

/// Writes an image of these layers, bottom first, which are compressed in turn as OCI allows: not at all, by gzip,
/// by zstd; gives the archive's path.
///
/// # Errors
/// When a file cannot be written.
pub fn write_layers(folder: &Path, name: &str, tars: &[Vec<u8>], config: &Value) -> Result<String> {
    let mut blobs = Blobs::default();
    let (mut diff_ids, mut layers) = (Vec::new(), Vec::new());
    for (tar, number) in tars.iter().zip(0..) {
        diff_ids.push(digest(tar));
        layers.push(match number % 3 {
            0 => blobs.add(LAYER, tar.clone()),
            1 => blobs.add(&format!("{LAYER}+gzip"), gzip(tar)?),
            _ => blobs.add(&format!("{LAYER}+zstd"), zstd::encode_all(&tar[..], ZSTD_LEVEL)?),
        });
    }
    let image = json!({
        "architecture": "amd64", "os": "linux", "config": config,
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let image = blobs.add(CONFIG, image.to_string().into());
    let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": image, "layers": layers });
    let mut manifest = blobs.add(MANIFEST, manifest.to_string().into());
    manifest["annotations"] = json!({ "io.containerd.image.name": name });
    manifest["platform"] = json!({ "architecture": "amd64", "os": "linux" });
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [manifest] });

    fs::create_dir_all(folder)?;
    let path = folder.join("image.tar");
    let mut archive = Builder::new(File::create(&path)?);
    append(&mut archive, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    append(&mut archive, "index.json", index.to_string().as_bytes())?;
    for (digest, bytes) in &blobs.0 {
        append(&mut archive, &format!("blobs/{}", digest.replace(':', "/")), bytes)?;
    }
    archive.into_inner()?;
    Ok(path.display().to_string())
}

fn append(archive: &mut Builder<File>, path: &str, bytes: &[u8]) -> Result<()> {
    Ok(archive.append_data(&mut header(EntryType::Regular, 0o644, bytes.len())?, path, bytes)?)
}

/// Blobs by their digests.
#[derive(Default)]
struct Blobs(BTreeMap<String, Vec<u8>>);

impl Blobs {
    /// Adds a blob; gives its descriptor.
    fn add(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let (digest, size) = (digest(&bytes), bytes.len());
        let descriptor = json!({ "mediaType": media_type, "digest": digest, "size": size });
        self.0.insert(digest, bytes);
        descriptor
    }
}

/// `sha256:` and 64 hexadecimal digits.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), Compression::fast());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}
