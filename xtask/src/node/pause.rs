//! The sandbox ("pause") image of the node: containerd's CRI plugin wants one for every pod, even where the runtime
//! needs none, and the node cannot pull.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The image's name in containerd.
const NAME: &str = "localhost/pause:node";
/// Statically linked, and able to sleep for ever. It goes by its own name in the image: its name selects what it does.
const PROGRAM: &str = "/bin/busybox";

/// Writes the image as an OCI archive into `folder`; gives its path.
///
/// # Errors
/// When a file cannot be read or written.
pub fn archive(folder: &Path) -> Result<PathBuf> {
    let program = fs::read(PROGRAM).with_context(|| format!("cannot read {PROGRAM}"))?;
    let mut layer = tar::Builder::new(Vec::new());
    append(&mut layer, "busybox", 0o755, &program)?;
    let layer = layer.into_inner()?;

    let path = folder.join("pause.tar");
    let mut archive = tar::Builder::new(File::create(&path)?);
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": { "Entrypoint": ["/busybox", "sleep", "infinity"] },
        "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
    });
    let layer = blob(&mut archive, "application/vnd.oci.image.layer.v1.tar", &layer)?;
    let config =
        blob(&mut archive, "application/vnd.oci.image.config.v1+json", &serde_json::to_vec(&config)?)?;
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": [layer] });
    let mut manifest =
        blob(&mut archive, "application/vnd.oci.image.manifest.v1+json", &serde_json::to_vec(&manifest)?)?;
    manifest["annotations"] = json!({ "io.containerd.image.name": NAME });
    manifest["platform"] = json!({ "architecture": "amd64", "os": "linux" });
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    append(&mut archive, "index.json", 0o644, &serde_json::to_vec(&index)?)?;
    append(&mut archive, "oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    archive.finish()?;
    Ok(path)
}

/// Adds a blob and gives its descriptor.
fn blob(archive: &mut tar::Builder<File>, media_type: &str, bytes: &[u8]) -> Result<Value> {
    let digest = digest(bytes);
    append(archive, &format!("blobs/{}", digest.replace(':', "/")), 0o644, bytes)?;
    Ok(json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() }))
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn append<W: std::io::Write>(
    archive: &mut tar::Builder<W>,
    path: &str,
    mode: u32,
    bytes: &[u8],
) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_size(u64::try_from(bytes.len())?);
    Ok(archive.append_data(&mut header, path, bytes)?)
}
