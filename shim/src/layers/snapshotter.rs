//! Layer files of `uvm-snapshotter`: `<store>/layers/<n>/{layer,layer.json,fs}`.
//!
//! What the snapshotter offers is an ordinary overlay of the directories `fs`, where it mounts the layers for
//! runtimes that run on the host. A directory with a `layer.json` beside it is one of its; the layer file itself is
//! then used, and the host's mount of it never read.

use std::fs::File;
use std::io;
use std::path::Path;

use super::{LayerFile, LayersError, file_error, record};

/// Where the snapshotter mounts a layer for runtimes on the host.
const MOUNT_POINT: &str = "fs";
/// The layer file beside it.
const LAYER: &str = "layer";
/// What describes the layer file.
const DESCRIPTION: &str = "layer.json";

/// The layer file that belongs to `directory`, if it is one of the snapshotter's.
///
/// # Errors
/// When there is a description and it is not understood, or cannot be read.
pub fn find(directory: &Path) -> Result<Option<LayerFile>, LayersError> {
    if directory.file_name().is_none_or(|name| name != MOUNT_POINT) {
        return Ok(None);
    }
    let path = directory.with_file_name(DESCRIPTION);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(file_error("open", &path)(error)),
    };
    let description = record::read(file, &path)?;
    Ok(Some(LayerFile { path: directory.with_file_name(LAYER), description }))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::{Value, json};

    use super::super::Description;
    use super::*;

    fn described(json: &Value) -> Result<Option<LayerFile>, LayersError> {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("layers/7/fs");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.with_file_name("layer.json"), json.to_string()).unwrap();
        find(&directory)
    }

    fn good() -> Value {
        json!({
            "version": 1, "diff_id": "sha256:00", "root_hash": "ab".repeat(32), "data_blocks": 3, "length": 20480
        })
    }

    #[test]
    fn the_layer_file_stands_for_the_directory() {
        let layer = described(&good()).unwrap().unwrap();
        assert!(layer.path.ends_with("layers/7/layer"), "{layer:?}");
        let expected = Description { root_hash: "ab".repeat(32), data_blocks: 3, length: 20480 };
        assert_eq!(layer.description, expected);
        let mut nameless = good();
        nameless["diff_id"] = Value::Null;
        assert!(described(&nameless).unwrap().is_some());
    }

    #[test]
    fn other_directories_are_not_the_snapshotters() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(find(&root.path().join("snapshots/1/fs")).unwrap(), None);
        // A description in an ordinary directory's parent says nothing about the directory.
        fs::write(root.path().join("layer.json"), good().to_string()).unwrap();
        assert_eq!(find(&root.path().join("other")).unwrap(), None);
        assert!(find(&root.path().join("fs")).unwrap().is_some());
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let changes = [
            ("version", json!(2), "version: expected 1, found 2"),
            ("root_hash", json!("ab"), "root hash"),
            ("data_blocks", json!(0), "data blocks"),
            ("length", json!(20481), "length"),
            ("length", json!(-1), "description"),
            ("salt", json!("00"), "description"),
            ("diff_id", json!("x".repeat(5000)), "at most 4096 bytes"),
        ];
        for (key, value, message) in changes {
            let mut json = good();
            json[key] = value;
            let error = described(&json).unwrap_err().to_string();
            assert!(error.contains("layer.json") && error.contains(message), "{error}");
        }
        assert!(described(&json!([])).is_err());
    }
}
