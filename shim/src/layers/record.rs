//! What stands beside a layer file, as JSON: in the snapshotter's store as `layer.json`, in the cache as
//! `<key>.json`.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Description, LayersError, file_error, layer_error};

/// The one version that is understood. A record of another version is of a layer file that another writer made.
const VERSION: u64 = 1;
/// Longest record that is read, in bytes.
const MAX_RECORD_BYTES: u64 = 4096;

/// The JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    version: u64,
    /// What the layer was made of: for people and the snapshotter, nothing that could be checked here.
    diff_id: Option<String>,
    root_hash: String,
    data_blocks: u64,
    length: u64,
}

/// Reads and checks the record in `file`, whose name is `path`.
///
/// # Errors
/// When it cannot be read, is not understood, or describes what no layer can be.
pub fn read(file: File, path: &Path) -> Result<Description, LayersError> {
    let Record { version, diff_id: _, root_hash, data_blocks, length } = read_json(file, path)?;
    if version != VERSION {
        return Err(layer_error(path, "version", VERSION, version));
    }
    Description { root_hash, data_blocks, length }.check(path)
}

/// Writes the record of a layer to `file`, whose name is `path`.
///
/// # Errors
/// When it cannot be written.
pub fn write(description: &Description, file: &mut File, path: &Path) -> Result<(), LayersError> {
    let Description { root_hash, data_blocks, length } = description.clone();
    let record = Record { version: VERSION, diff_id: None, root_hash, data_blocks, length };
    let text = serde_json::to_vec(&record).map_err(|error| file_error("write", path)(error.into()))?;
    file.write_all(&text).map_err(file_error("write", path))
}

/// Reads a small JSON file, whose name is `path`.
///
/// # Errors
/// When it cannot be read, is too long, or not of the expected form.
pub fn read_json<T: DeserializeOwned>(file: File, path: &Path) -> Result<T, LayersError> {
    let mut text = Vec::new();
    file.take(MAX_RECORD_BYTES + 1).read_to_end(&mut text).map_err(file_error("read", path))?;
    if text.len() as u64 > MAX_RECORD_BYTES {
        return Err(layer_error(path, "description", format!("at most {MAX_RECORD_BYTES} bytes"), "more"));
    }
    serde_json::from_slice(&text).map_err(|error| layer_error(path, "description", "its JSON", error))
}
