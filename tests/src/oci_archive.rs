//! Small images made on the spot: OCI archives of one layer (OCI image specification 1.0).

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::command::run;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Writes an image called `name`, of executable `files` and a `config` (the `config` object of an image
/// configuration), into `folder`; gives the archive's path.
///
/// # Errors
/// When a file cannot be written.
pub fn write(folder: &Path, name: &str, files: &[(&str, &[u8])], config: &Value) -> Result<String> {
    let root = folder.join("root");
    for (path, bytes) in files {
        let path = root.join(path);
        fs::create_dir_all(path.parent().context("a folder")?)?;
        fs::write(&path, bytes)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    let layer = folder.join("layer.tar");
    tar(&root, &layer, &["."])?;

    let layout = folder.join("layout");
    let layer = blob(&layout, LAYER, &fs::read(layer)?)?;
    let image = json!({
        "architecture": "amd64", "os": "linux", "config": config,
        "rootfs": { "type": "layers", "diff_ids": [layer["digest"]] },
    });
    let image = blob(&layout, CONFIG, image.to_string().as_bytes())?;
    let manifest = json!({ "schemaVersion": 2, "config": image, "layers": [layer] });
    let mut manifest = blob(&layout, MANIFEST, manifest.to_string().as_bytes())?;
    manifest["annotations"] = json!({ "io.containerd.image.name": name });
    manifest["platform"] = json!({ "architecture": "amd64", "os": "linux" });
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(layout.join("index.json"), index.to_string())?;
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;

    let archive = folder.join("image.tar");
    tar(&layout, &archive, &["oci-layout", "index.json", "blobs"])?;
    Ok(archive.display().to_string())
}

fn tar(folder: &Path, archive: &Path, members: &[&str]) -> Result<()> {
    let (folder, archive) = (folder.display().to_string(), archive.display().to_string());
    let arguments = [&["--owner=0", "--group=0", "-C", &folder, "-cf", &archive], members].concat();
    run("tar", &arguments)?.expect_status(0)?;
    Ok(())
}

/// Adds a blob to a layout; gives its descriptor.
fn blob(layout: &Path, media_type: &str, bytes: &[u8]) -> Result<Value> {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let new = blobs.join("new");
    fs::write(&new, bytes)?;
    let said = run("sha256sum", &[&new])?.expect_status(0)?.out;
    let digest = said.get(..64).context("a digest from sha256sum")?;
    fs::rename(&new, blobs.join(digest))?;
    Ok(json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len() }))
}
