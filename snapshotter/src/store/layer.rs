//! Layers on disk: `layers/<n>/layer` with its description beside it, and layers that are being made.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use erofs_verity::layer::Layer;
use erofs_verity::verity::RootDigest;
use serde::{Deserialize, Serialize};

use super::{Store, durable};
use crate::digest::Digest;
use crate::error::Error;

/// The layer file in a layer's directory.
pub const FILE: &str = "layer";
/// Its description.
pub const DESCRIPTION: &str = "layer.json";
/// Where the host mounts it.
pub const MOUNT_POINT: &str = "fs";
/// Longest description that is read, in bytes.
const MAX_DESCRIPTION_BYTES: u64 = 4096;
const VERSION: u32 = 1;

/// What `layer.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    version: u32,
    /// Digest of the uncompressed tar; none for what was packed from a directory.
    pub diff_id: Option<Digest>,
    root_hash: String,
    /// Blocks of 4096 bytes of the erofs image.
    pub data_blocks: u64,
    /// Bytes of the layer file.
    pub length: u64,
}

impl Description {
    /// Describes a layer that was just written.
    #[must_use]
    pub fn new(layer: &Layer, diff_id: Option<Digest>) -> Self {
        Self {
            version: VERSION,
            diff_id,
            root_hash: layer.root.to_string(),
            data_blocks: layer.data_blocks,
            length: layer.length,
        }
    }

    /// Root digest of the hash tree, in hexadecimal digits.
    #[must_use]
    pub fn root_hash(&self) -> &str {
        &self.root_hash
    }

    /// Root digest of the hash tree.
    ///
    /// # Errors
    /// When the text that was read is none.
    pub fn root(&self) -> Result<RootDigest, Error> {
        let invalid = |error: erofs_verity::verity::RootDigestError| Error::Invalid(error.to_string());
        self.root_hash.parse().map_err(invalid)
    }

    /// Reads the description in a layer's directory and compares it with the layer file.
    ///
    /// # Errors
    /// When it cannot be read, is not a description, or the file is of another length.
    pub fn read(directory: &Path) -> Result<Self, Error> {
        let path = directory.join(DESCRIPTION);
        let inconsistent = |what: String| Error::Inconsistent { path: path.clone(), what };
        let size = fs::metadata(&path).map_err(Error::file("read", &path))?.len();
        if size > MAX_DESCRIPTION_BYTES {
            return Err(inconsistent(format!(
                "expected at most {MAX_DESCRIPTION_BYTES} bytes, found {size}"
            )));
        }
        let bytes = fs::read(&path).map_err(Error::file("read", &path))?;
        let description: Self =
            serde_json::from_slice(&bytes).map_err(|error| inconsistent(error.to_string()))?;
        if description.version != VERSION {
            return Err(inconsistent(format!("expected version {VERSION}, found {}", description.version)));
        }
        description.root().map_err(|error| inconsistent(error.to_string()))?;
        let file = directory.join(FILE);
        let length = fs::metadata(&file).map_err(Error::file("read", &file))?.len();
        if length != description.length {
            let what = format!("expected {} bytes, found {length}", description.length);
            return Err(Error::Inconsistent { path: file, what });
        }
        Ok(description)
    }
}

/// A layer that is being made, in a directory that vanishes unless it is published.
pub struct StagedLayer {
    pub(super) directory: PathBuf,
    file: File,
}

impl StagedLayer {
    pub(super) fn create(directory: PathBuf) -> Result<Self, Error> {
        let path = directory.join(FILE);
        fs::create_dir(&directory).map_err(Error::file("make the directory", &directory))?;
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        match file {
            Ok(file) => Ok(Self { directory, file }),
            Err(error) => {
                let _ = fs::remove_dir(&directory);
                Err(Error::file("make", &path)(error))
            }
        }
    }

    /// The layer file, empty and open for reading and writing.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Writes the description and makes everything durable, still in the staging directory.
    pub(super) fn complete(&self, description: &Description) -> Result<(), Error> {
        let path = self.directory.join(FILE);
        let written = self.file.metadata().map_err(Error::file("read", &path))?.len();
        if written != description.length {
            let what = format!("expected {} bytes to be written, found {written}", description.length);
            return Err(Error::Inconsistent { path, what });
        }
        self.file
            .set_permissions(Permissions::from_mode(0o444))
            .and_then(|()| self.file.sync_all())
            .map_err(Error::file("sync", &path))?;
        durable::make_directories(&self.directory.join(MOUNT_POINT))?;
        let mut text = serde_json::to_vec(description)
            .map_err(|error| Error::file("write", &path)(io::Error::other(error)))?;
        text.push(b'\n');
        durable::replace(&self.directory, DESCRIPTION, &text)
    }
}

impl Drop for StagedLayer {
    fn drop(&mut self) {
        // After publication the directory is not there any more. What cannot be removed goes at the next start.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Keeps a layer in the store while no snapshot refers to it yet.
pub struct LayerPin {
    pub(super) store: Arc<Store>,
    pub(super) id: u64,
    pub(super) description: Description,
}

impl LayerPin {
    /// What the layer is.
    #[must_use]
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// The layer's number.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }
}

impl Clone for LayerPin {
    fn clone(&self) -> Self {
        self.store.pin_again(self)
    }
}

impl Drop for LayerPin {
    fn drop(&mut self) {
        self.store.unpin(self.id);
    }
}

impl std::fmt::Debug for LayerPin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LayerPin").field("id", &self.id).field("description", &self.description).finish()
    }
}

/// Disk space of a layer: bytes that are allocated to it, and its files and directories.
///
/// # Errors
/// When the layer file cannot be looked at.
pub fn usage(directory: &Path) -> Result<super::usage::Usage, Error> {
    let path = directory.join(FILE);
    let blocks = fs::metadata(&path).map_err(Error::file("read", &path))?.blocks();
    // The directory, the mount point, the layer file, its description.
    Ok(super::usage::Usage { bytes: blocks.saturating_mul(512), inodes: 4 })
}
