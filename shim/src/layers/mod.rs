//! From the root file system that a snapshotter offers to verified layers on the machine's layers disk.
//!
//! A layer is a file: an erofs image, a dm-verity superblock, the hash tree over the image. Nothing is mounted on
//! the host and nothing is trusted there: the guest checks every block against the root hash that it is told, and
//! whether it believes the root hash is its policy's matter. What is checked here is checked so that mistakes are
//! found early and named well.
//!
//! - [`mounts`]: what containerd offers, as a stack of sources.
//! - [`snapshotter`]: layer files that `uvm-snapshotter` keeps.
//! - [`foreign`]: images with dm-verity metadata of containerd's own erofs snapshotter.
//! - [`pack`]: directories of the overlayfs snapshotter, packed once.
//! - [`cache`], [`record`]: what all pods remember of layers on this host.
//! - [`disk`], [`positions`]: the layers disk of a pod's machine.

pub mod cache;
pub mod disk;
pub mod foreign;
pub mod mounts;
pub mod pack;
pub mod positions;
pub mod record;
pub mod snapshotter;

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use agent_protocol::paths;
use agent_protocol::rpc::agent::Storage;
use agent_protocol::storage::{
    BLOCK_SIZE, LayerStorage, MAX_LAYERS, OverlayStorage, StorageError, VerityInfo,
};
use erofs_verity::layer::VerifyError;
use erofs_verity::source::dir::DirError;
use positions::DISK_BYTES;
use rustix::fs::OFlags;

use disk::Placed;

/// The layers disk in the guest.
const DEVICE: &str = "/dev/vdb";

/// Why a root file system cannot be shown to the guest.
#[derive(Debug, thiserror::Error)]
pub enum LayersError {
    /// Mounts that are not understood.
    #[error("root file system: expected the mounts of the uvm, overlayfs or erofs snapshotter, found {0}")]
    Mounts(String),
    /// A mount option that is not understood.
    #[error("root file system: option {option:?} of a mount of type {kind:?} is not supported")]
    Option {
        /// Type of the mount.
        kind: String,
        /// The option.
        option: String,
    },
    /// A layer that the guest could not verify.
    #[error(
        "layer {path}: no dm-verity metadata: expected the option X-containerd.dmverity=<file> (set dmverity_mode to \
         \"on\" for the erofs snapshotter, enable_dmverity for its differ)",
        path = .0.display()
    )]
    Unverified(PathBuf),
    /// More layers than the agent stacks.
    #[error("root file system: expected at most {MAX_LAYERS} layers, found {0}")]
    TooMany(usize),
    /// The layers disk has no room for another layer.
    #[error("the pod's layers disk of {DISK_BYTES} bytes has no room for another layer of {length} bytes")]
    Full {
        /// Bytes of the layer.
        length: u64,
    },
    /// A container that has its layers already.
    #[error("container {0} has layers on the pod's disk already")]
    InUse(String),
    /// A directory, the cache or a layer file cannot be used.
    #[error("cannot {what} {path}: {source}", path = .path.display())]
    File {
        /// What was attempted.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A layer file, or what describes it, is not what it should be.
    #[error("layer {path}: {field}: expected {expected}, found {found}", path = .path.display())]
    Layer {
        /// The file that is wrong.
        path: PathBuf,
        /// What about it.
        field: &'static str,
        /// What would be right.
        expected: String,
        /// What is there.
        found: String,
    },
    /// What is in the layer's file is not what is said of it.
    #[error("layer {path}: {source}", path = .path.display())]
    Verify {
        /// The layer's file.
        path: PathBuf,
        /// What differs.
        source: VerifyError,
    },
    /// The directory cannot be packed into a layer.
    #[error("layer {path}: {source}", path = .path.display())]
    Pack {
        /// The layer's directory.
        path: PathBuf,
        /// Why.
        source: DirError,
    },
}

fn file_error<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> LayersError + 'a {
    move |source| LayersError::File { what, path: path.into(), source }
}

fn layer_error(
    path: &Path,
    field: &'static str,
    expected: impl ToString,
    found: impl ToString,
) -> LayersError {
    let (expected, found) = (expected.to_string(), found.to_string());
    LayersError::Layer { path: path.into(), field, expected, found }
}

/// What the guest has to know of a layer file to verify it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// Root digest of the hash tree, 64 lower-case hexadecimal digits.
    pub root_hash: String,
    /// Blocks of 4096 bytes in the erofs image.
    pub data_blocks: u64,
    /// Bytes of image, superblock and tree, a multiple of 4096.
    pub length: u64,
}

impl Description {
    /// Checks what was read from `path`, so that nothing odd is computed with.
    fn check(self, path: &Path) -> Result<Self, LayersError> {
        let hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if self.root_hash.len() != 64 || !self.root_hash.bytes().all(hex) {
            return Err(layer_error(path, "root hash", "64 lower-case hexadecimal digits", &self.root_hash));
        }
        if !self.length.is_multiple_of(BLOCK_SIZE) || self.length > DISK_BYTES {
            let expected = format!("a multiple of {BLOCK_SIZE}, at most {DISK_BYTES}");
            return Err(layer_error(path, "length", expected, self.length));
        }
        let data = self.data_blocks.checked_mul(BLOCK_SIZE);
        if self.data_blocks == 0 || data.is_none_or(|bytes| bytes >= self.length) {
            let expected = format!("at least one, and fewer than {} bytes", self.length);
            return Err(layer_error(path, "data blocks", expected, self.data_blocks));
        }
        Ok(self)
    }
}

/// A layer file and what the guest must know of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerFile {
    /// The file. Its first `length` bytes are the layer.
    pub path: PathBuf,
    /// What is in it.
    pub description: Description,
}

impl LayerFile {
    /// Opens the file for the machine.
    ///
    /// # Errors
    /// When it is not there, is no file, or is shorter or longer than its description says.
    pub fn open(&self) -> Result<File, LayersError> {
        let open = || {
            // Whatever has this name: opening it must not wait.
            let flags = OFlags::NONBLOCK.bits().cast_signed();
            let file = File::options().read(true).custom_flags(flags).open(&self.path)?;
            Ok((file.metadata()?, file))
        };
        let (metadata, file) = open().map_err(file_error("open layer", &self.path))?;
        if !metadata.is_file() {
            return Err(layer_error(
                &self.path,
                "kind",
                "a regular file",
                format!("{:?}", metadata.file_type()),
            ));
        }
        if metadata.len() != self.description.length {
            let expected = format!("{} bytes", self.description.length);
            return Err(layer_error(&self.path, "length", expected, format!("{} bytes", metadata.len())));
        }
        Ok(file)
    }
}

/// Leaves only the topmost occurrence of each layer in `layers`, which are bottom first: nothing of a lower one
/// would show, and overlayfs refuses to stack a directory twice.
fn without_duplicates(layers: Vec<LayerFile>) -> Vec<LayerFile> {
    let mut kept: Vec<LayerFile> = Vec::with_capacity(layers.len());
    for layer in layers.into_iter().rev() {
        if kept.iter().all(|other| other.description.root_hash != layer.description.root_hash) {
            kept.push(layer);
        }
    }
    kept.reverse();
    kept
}

/// What the agent is told of `container`'s layers, which are bottom first: each with its root hash and its place on
/// the disk, and their stack.
///
/// # Errors
/// When a layer is one that the agent would refuse.
pub fn storages(container: &str, layers: &[Placed]) -> Result<Vec<Storage>, StorageError> {
    let mut storages = Vec::with_capacity(layers.len() + 1);
    for Placed { at, description } in layers {
        let layer = LayerStorage {
            device: DEVICE.into(),
            offset: *at,
            length: description.length,
            verity: VerityInfo::sha256(&description.root_hash, description.data_blocks),
        };
        storages.push(layer.to_message()?);
    }
    let lower = layers.iter().rev().map(|layer| paths::layer(&layer.description.root_hash)).collect();
    storages.push(OverlayStorage { lower, mount_point: paths::rootfs(container) }.to_message());
    Ok(storages)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn layer(root: &str, length: u64) -> LayerFile {
        let description = Description { root_hash: root.repeat(32), data_blocks: 1, length };
        LayerFile { path: "/x".into(), description }
    }

    #[test]
    fn the_topmost_of_equal_layers_stays() {
        let [a, b, c] = ["aa", "bb", "cc"].map(|root| layer(root, 8192));
        let stack = vec![a.clone(), b.clone(), a.clone(), c.clone(), b.clone()];
        assert_eq!(without_duplicates(stack), [a, c, b]);
    }

    #[test]
    fn storages_name_places_on_the_disk_and_the_stack_from_the_top() {
        let placed = |root, at| Placed { at, description: layer(root, 12288).description };
        let storages = storages("c1", &[placed("aa", 0), placed("bb", 1 << 20)]).unwrap();
        assert_eq!(storages.len(), 3);
        let layers: Vec<_> = storages[..2].iter().map(|s| LayerStorage::parse(s).unwrap()).collect();
        assert_eq!((layers[0].device.as_str(), layers[0].offset, layers[1].offset), ("/dev/vdb", 0, 1 << 20));
        let [lower, upper] = ["aa", "bb"].map(|root| format!("/run/uvm/layers/{}", root.repeat(32)));
        assert_eq!(layers[0].mount_point(), lower);
        assert_eq!(storages[2].options, [format!("lowerdir={upper}:{lower}")]);
    }

    #[test]
    fn descriptions_are_checked() {
        let good = layer("ab", 8192).description;
        assert_eq!(good.clone().check(Path::new("/x")).unwrap(), good);
        let cases = [
            (Description { root_hash: "AB".repeat(32), ..good.clone() }, "root hash"),
            (Description { root_hash: "ab".repeat(31), ..good.clone() }, "root hash"),
            (Description { root_hash: "é".repeat(32), ..good.clone() }, "root hash"),
            (Description { length: 8191, ..good.clone() }, "length"),
            (Description { length: DISK_BYTES + 4096, ..good.clone() }, "length"),
            (Description { data_blocks: 0, ..good.clone() }, "data blocks"),
            (Description { data_blocks: 2, ..good.clone() }, "data blocks"),
            (Description { data_blocks: u64::MAX, ..good.clone() }, "data blocks"),
        ];
        for (bad, field) in cases {
            let error = bad.clone().check(Path::new("/x/layer")).unwrap_err().to_string();
            assert!(error.starts_with("layer /x/layer: ") && error.contains(field), "{bad:?}: {error}");
        }
    }

    #[test]
    fn a_file_that_is_not_what_it_was_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let layer = LayerFile { path: dir.path().join("layer"), ..layer("ab", 8192) };
        let refusal = || layer.open().unwrap_err().to_string();
        assert!(refusal().contains("cannot open layer"), "{}", refusal());
        for (length, found) in [(4096, "found 4096 bytes"), (12288, "found 12288 bytes")] {
            fs::write(&layer.path, vec![0; length]).unwrap();
            assert!(refusal().contains("length: expected 8192 bytes") && refusal().ends_with(found));
        }
        fs::write(&layer.path, [0; 8192]).unwrap();
        layer.open().unwrap();
        fs::remove_file(&layer.path).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &layer.path, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
        assert!(refusal().contains("expected a regular file"), "{}", refusal());
    }
}
