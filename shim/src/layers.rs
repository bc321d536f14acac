//! From the root file system that a snapshotter offers to a disk of verified layers.
//!
//! containerd's overlayfs snapshotter gives an overlay mount (or, for a single layer, a bind mount). Nothing is
//! mounted here: the mount's layer directories are read, and each is packed once into an erofs image with its
//! dm-verity tree. The packed file stays in a cache that all pods share, under a key made of the directory's
//! path, device, inode and change time. It appears under its name only when it is whole, and a file lock per
//! key makes parallel shims pack the same layer once.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use agent_protocol::paths;
use agent_protocol::rpc::agent::Storage;
use agent_protocol::storage::{LayerStorage, OverlayStorage, StorageError, VerityInfo};
use containerd_shim::protos::api::Mount;
use erofs_verity::layer::Settings;
use erofs_verity::source::dir::{self, DirError, Fidelity};
use launch::control::{MAX_SEGMENTS, Segment};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Longest description of a packed layer that is read, in bytes.
const MAX_DESCRIPTION_BYTES: u64 = 4096;

/// Why a root file system cannot be shown to the guest.
#[derive(Debug, thiserror::Error)]
pub enum LayersError {
    /// A kind of mount that is not understood.
    #[error("root file system: expected one overlay or bind mount of the overlayfs snapshotter, found {0}")]
    Mounts(String),
    /// A mount option that is not understood.
    #[error("root file system: overlay mount option {0:?} is not supported")]
    Option(String),
    /// More layers than one disk takes.
    #[error("root file system: expected at most {MAX_SEGMENTS} layers, found {0}")]
    TooMany(usize),
    /// A directory, the cache or a packed file cannot be used.
    #[error("cannot {what} {path}: {source}", path = .path.display())]
    File {
        /// What was attempted.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The directory cannot be packed into a layer.
    #[error("layer {path}: {source}", path = .path.display())]
    Pack {
        /// The layer's directory.
        path: PathBuf,
        /// Why.
        source: DirError,
    },
    /// The layer cannot be described to the agent.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

fn file_error<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> LayersError + 'a {
    move |source| LayersError::File { what, path: path.into(), source }
}

/// The directories of a root file system.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Directories {
    /// Read-only layers, bottom first.
    lower: Vec<PathBuf>,
    /// The container's writable layer; what is in it already is shown on top.
    upper: Option<PathBuf>,
}

impl Directories {
    /// Reads the directories out of the mounts that containerd would have a shim make.
    ///
    /// # Errors
    /// When the mounts are not those of the overlayfs snapshotter.
    pub fn from_mounts(mounts: &[Mount]) -> Result<Self, LayersError> {
        let [mount] = mounts else {
            return Err(LayersError::Mounts(format!("{} mounts", mounts.len())));
        };
        match mount.type_.as_str() {
            "overlay" => Self::from_overlay(&mount.options),
            "bind" => {
                let source = PathBuf::from(&mount.source);
                let writable = !mount.options.iter().any(|option| option == "ro");
                Ok(if writable {
                    Self { lower: Vec::new(), upper: Some(source) }
                } else {
                    Self { lower: vec![source], upper: None }
                })
            }
            other => Err(LayersError::Mounts(format!("a mount of type {other:?}"))),
        }
    }

    fn from_overlay(options: &[String]) -> Result<Self, LayersError> {
        let mut directories = Self::default();
        for option in options {
            match option.split_once('=') {
                // A backslash would escape a colon; the snapshotter's own paths have neither.
                Some(("lowerdir", list)) if !list.contains('\\') => {
                    directories.lower = list.split(':').rev().map(PathBuf::from).collect();
                }
                Some(("upperdir", path)) => directories.upper = Some(path.into()),
                // What these change is where and how the host would write.
                Some(("workdir", _)) | Some(("index" | "metacopy" | "nfs_export", "off")) => {}
                None if option == "volatile" || option == "ro" || option == "rw" => {}
                _ => return Err(LayersError::Option(option.clone())),
            }
        }
        let all = directories.lower.iter().chain(&directories.upper);
        if directories.lower.is_empty() || !all.clone().all(|path| path.is_absolute()) {
            return Err(LayersError::Mounts(format!("an overlay of {:?}", all.collect::<Vec<_>>())));
        }
        Ok(directories)
    }

    /// Packs what is not packed yet. Shared layers go to `cache`; the container's own, if it has anything in
    /// it, to `private`. The result is bottom first, and never empty.
    ///
    /// # Errors
    /// When a layer cannot be read, packed or stored. Nothing half-written is left under a layer's name.
    pub fn pack(&self, cache: &Path, private: &Path) -> Result<Vec<PackedLayer>, LayersError> {
        let mut packed = Vec::new();
        for directory in &self.lower {
            packed.push(pack_shared(directory, cache)?);
        }
        if let Some(upper) = &self.upper {
            let mut entries = fs::read_dir(upper).map_err(file_error("read", upper))?;
            if packed.is_empty() || entries.next().is_some() {
                packed.push(pack_to(upper, private)?);
            }
        }
        if packed.len() > MAX_SEGMENTS {
            return Err(LayersError::TooMany(packed.len()));
        }
        Ok(packed)
    }
}

/// A layer file and what the guest must know of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedLayer {
    path: PathBuf,
    description: Description,
}

/// What stands beside a packed layer in the cache, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    /// Root digest of the verity tree, 64 hexadecimal digits.
    root: String,
    /// Blocks of 4096 bytes in the erofs image.
    data_blocks: u64,
    /// Bytes of the file.
    length: u64,
}

/// Name of a layer directory in the cache. A directory that was removed and made again differs in its inode
/// or its change time.
fn key(directory: &Path) -> Result<String, LayersError> {
    let stat = fs::metadata(directory).map_err(file_error("read", directory))?;
    let mut hash = Sha256::new();
    hash.update(directory.as_os_str().as_encoded_bytes());
    // The path cannot contain the separator, so that no two inputs run together.
    hash.update([0]);
    for number in [stat.dev(), stat.ino()] {
        hash.update(number.to_le_bytes());
    }
    for number in [stat.ctime(), stat.ctime_nsec()] {
        hash.update(number.to_le_bytes());
    }
    Ok(hex::encode(hash.finalize()))
}

fn pack_shared(directory: &Path, cache: &Path) -> Result<PackedLayer, LayersError> {
    fs::create_dir_all(cache).map_err(file_error("create", cache))?;
    let key = key(directory)?;
    let path = cache.join(format!("{key}.layer"));
    let lock_path = cache.join(format!("{key}.lock"));
    let lock = File::create(&lock_path).map_err(file_error("create", &lock_path))?;
    flock(&lock, FlockOperation::LockExclusive)
        .map_err(|errno| file_error("lock", &lock_path)(errno.into()))?;
    // The lock ends with the file, so with this function.
    match described(&path) {
        Some(description) => Ok(PackedLayer { path, description }),
        None => pack_to(directory, &path),
    }
}

/// The description of the layer file at `path`, if both are there and agree.
fn described(path: &Path) -> Option<Description> {
    let beside = path.with_extension("json");
    let small = fs::metadata(&beside).ok().is_some_and(|stat| stat.len() <= MAX_DESCRIPTION_BYTES);
    let text = small.then(|| fs::read(&beside).ok()).flatten()?;
    let description: Description = serde_json::from_slice(&text).ok()?;
    (fs::metadata(path).ok()?.len() == description.length).then_some(description)
}

/// Packs `directory` into the file `path`, and its description beside it.
fn pack_to(directory: &Path, path: &Path) -> Result<PackedLayer, LayersError> {
    let mut settings = Settings::default();
    if let Some(beside) = path.parent() {
        settings.spool = beside.into();
    }
    let mut layer = None;
    write_whole(path, |file| {
        let packed = dir::pack(directory, Fidelity::Portable, file, &settings)
            .map_err(|source| LayersError::Pack { path: directory.into(), source })?;
        layer = Some(packed);
        Ok(())
    })?;
    let Some(layer) = layer else {
        return Err(file_error("write", path)(io::ErrorKind::WriteZero.into()));
    };
    let description =
        Description { root: layer.root.to_string(), data_blocks: layer.data_blocks, length: layer.length };
    let beside = path.with_extension("json");
    write_whole(&beside, |file| {
        serde_json::to_writer(file, &description).map_err(|error| file_error("write", &beside)(error.into()))
    })?;
    Ok(PackedLayer { path: path.into(), description })
}

/// Makes `path` appear when `write` has succeeded and its bytes are on the disk, or not at all.
fn write_whole(
    path: &Path,
    write: impl FnOnce(&mut File) -> Result<(), LayersError>,
) -> Result<(), LayersError> {
    let unfinished = path.with_added_extension("new");
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&unfinished)
        .map_err(file_error("create", &unfinished))?;
    let written = write(&mut file).and_then(|()| {
        file.sync_data().map_err(file_error("write", &unfinished))?;
        fs::rename(&unfinished, path).map_err(file_error("rename", &unfinished))
    });
    if written.is_err() {
        // The error that is reported is the first one; a left-over is overwritten by the next attempt.
        let _ = fs::remove_file(&unfinished);
    }
    written
}

/// The files of a disk that shows `layers` one after another.
///
/// # Errors
/// When a packed layer cannot be opened.
pub fn segments(layers: &[PackedLayer]) -> Result<Vec<(File, Segment)>, LayersError> {
    layers
        .iter()
        .map(|layer| {
            let file = File::open(&layer.path).map_err(file_error("open", &layer.path))?;
            Ok((file, Segment { offset: 0, length: layer.description.length }))
        })
        .collect()
}

/// What the agent is told of the disk in `slot`: each layer with its root digest, and their stack.
///
/// # Errors
/// When a layer is one that the agent would refuse.
pub fn storages(container: &str, slot: u32, layers: &[PackedLayer]) -> Result<Vec<Storage>, LayersError> {
    let letter = u8::try_from(slot).ok().and_then(|slot| b'a'.checked_add(slot)).map_or('?', char::from);
    let mut offset = 0;
    let mut storages = Vec::with_capacity(layers.len() + 1);
    for (index, PackedLayer { description, .. }) in layers.iter().enumerate() {
        let layer = LayerStorage {
            device: format!("/dev/vd{letter}"),
            offset,
            length: description.length,
            verity: VerityInfo::sha256(&description.root, description.data_blocks),
            mount_point: paths::layer(container, index),
        };
        storages.push(layer.to_message()?);
        offset += description.length;
    }
    let lower = (0..layers.len()).rev().map(|index| paths::layer(container, index)).collect();
    storages.push(OverlayStorage { lower, mount_point: paths::rootfs(container) }.to_message());
    Ok(storages)
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        Mount { type_: kind.into(), source: source.into(), options, ..Mount::default() }
    }

    fn layer_directory(root: &Path, name: &str, content: &str) -> PathBuf {
        let path = root.join(name);
        fs::create_dir(&path).unwrap();
        fs::write(path.join("file"), content).unwrap();
        path
    }

    #[test]
    fn overlay_layers_come_bottom_first() {
        let options = ["index=off", "workdir=/s/3/work", "upperdir=/s/3/fs", "lowerdir=/s/2/fs:/s/1/fs"];
        let directories = Directories::from_mounts(&[mount("overlay", "overlay", &options)]).unwrap();
        assert_eq!(directories.lower, [PathBuf::from("/s/1/fs"), "/s/2/fs".into()]);
        assert_eq!(directories.upper, Some("/s/3/fs".into()));
    }

    #[test]
    fn a_bind_mount_is_one_layer() {
        let view = Directories::from_mounts(&[mount("bind", "/s/1/fs", &["ro", "rbind"])]).unwrap();
        assert_eq!(view, Directories { lower: vec!["/s/1/fs".into()], upper: None });
        let active = Directories::from_mounts(&[mount("bind", "/s/1/fs", &["rw", "rbind"])]).unwrap();
        assert_eq!(active, Directories { lower: Vec::new(), upper: Some("/s/1/fs".into()) });
    }

    #[test]
    fn other_mounts_are_refused() {
        let cases = [
            vec![],
            vec![mount("ext4", "/dev/sda", &[])],
            vec![mount("overlay", "overlay", &["lowerdir=relative"])],
            vec![mount("overlay", "overlay", &["upperdir=/u"])],
            vec![mount("overlay", "overlay", &["lowerdir=/a\\:b"])],
            vec![mount("overlay", "overlay", &["lowerdir=/a", "userxattr"])],
            vec![mount("bind", "/a", &["ro"]), mount("bind", "/b", &["ro"])],
        ];
        for mounts in cases {
            assert!(Directories::from_mounts(&mounts).is_err(), "{mounts:?}");
        }
    }

    #[test]
    fn a_layer_is_packed_once_and_again_when_its_directory_changes() {
        let root = tempfile::tempdir().unwrap();
        let cache = root.path().join("cache");
        let directory = layer_directory(root.path(), "fs", "one");
        let first = pack_shared(&directory, &cache).unwrap();
        let inode = |layer: &PackedLayer| fs::metadata(&layer.path).unwrap().ino();
        let made = inode(&first);
        assert_eq!(pack_shared(&directory, &cache).unwrap(), first);
        assert_eq!(inode(&first), made, "the second pack reuses the file");

        fs::write(directory.join("more"), "two").unwrap();
        let second = pack_shared(&directory, &cache).unwrap();
        assert_ne!(second.path, first.path);
        assert_ne!(second.description.root, first.description.root);
    }

    #[test]
    fn a_damaged_cache_entry_is_packed_again() {
        let root = tempfile::tempdir().unwrap();
        let cache = root.path().join("cache");
        let directory = layer_directory(root.path(), "fs", "one");
        let layer = pack_shared(&directory, &cache).unwrap();
        File::options().write(true).open(&layer.path).unwrap().set_len(4096).unwrap();
        assert_eq!(pack_shared(&directory, &cache).unwrap(), layer);
        assert_eq!(fs::metadata(&layer.path).unwrap().len(), layer.description.length);
    }

    #[test]
    fn parallel_packs_give_one_file() {
        let root = tempfile::tempdir().unwrap();
        let cache = root.path().join("cache");
        let directory = layer_directory(root.path(), "fs", "one");
        let start = Barrier::new(4);
        let pack = || {
            start.wait();
            let layer = pack_shared(&directory, &cache).unwrap();
            fs::metadata(&layer.path).unwrap().ino()
        };
        let inodes: Vec<u64> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(pack)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(inodes.iter().all(|inode| *inode == inodes[0]), "{inodes:?}");
    }

    #[test]
    fn an_empty_writable_layer_is_left_out_and_a_full_one_is_on_top() {
        let root = tempfile::tempdir().unwrap();
        let (cache, private) = (root.path().join("cache"), root.path().join("private.layer"));
        let lower = layer_directory(root.path(), "lower", "one");
        let upper = root.path().join("upper");
        fs::create_dir(&upper).unwrap();
        let directories = Directories { lower: vec![lower], upper: Some(upper.clone()) };
        assert_eq!(directories.pack(&cache, &private).unwrap().len(), 1);
        fs::write(upper.join("file"), "two").unwrap();
        let packed = directories.pack(&cache, &private).unwrap();
        assert_eq!((packed.len(), &packed[1].path), (2, &private));
    }

    #[test]
    fn a_failed_pack_leaves_nothing_under_the_name() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("x.layer");
        let failed = write_whole(&path, |_| Err(LayersError::TooMany(0)));
        assert!(failed.is_err());
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn storages_follow_one_another_on_the_device() {
        let layer = |length| PackedLayer {
            path: "/x".into(),
            description: Description { root: "ab".repeat(32), data_blocks: 1, length },
        };
        let storages = storages("c1", 2, &[layer(12288), layer(16384)]).unwrap();
        assert_eq!(storages.len(), 3);
        let layers: Vec<_> = storages[..2].iter().map(|s| LayerStorage::parse(s).unwrap()).collect();
        assert_eq!((layers[0].device.as_str(), layers[0].offset, layers[1].offset), ("/dev/vdc", 0, 12288));
        assert_eq!(storages[2].options, ["lowerdir=/run/uvm/layers/c1/1:/run/uvm/layers/c1/0"]);
    }
}
