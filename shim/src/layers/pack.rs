//! Layers out of directories of the overlayfs snapshotter: each is packed once into a layer file, which stays in the
//! cache for all pods.

use std::fs::{self, File};
use std::path::Path;

use erofs_verity::layer::{Layer, Settings};
use erofs_verity::source::dir::{self, Fidelity};

use super::cache::{Entry, recall, remember, write_whole};
use super::{Description, LayerFile, LayersError};

/// The layer file of `directory`, which any container may use.
///
/// # Errors
/// When the directory cannot be read, or the cache not written.
pub fn shared(directory: &Path, cache: &Path) -> Result<LayerFile, LayersError> {
    let entry = Entry::lock(cache, directory)?;
    let path = entry.layer();
    let remembered = recall(&entry.record())
        .filter(|known| fs::metadata(&path).is_ok_and(|metadata| metadata.len() == known.length));
    if let Some(description) = remembered {
        return Ok(LayerFile { path, description });
    }
    let layer = to(directory, &path)?;
    remember(&layer.description, &entry.record())?;
    Ok(layer)
}

/// Packs `directory` into the file `path`.
///
/// # Errors
/// When the directory cannot be read, or the file not written. Nothing is under the name `path` then.
pub fn to(directory: &Path, path: &Path) -> Result<LayerFile, LayersError> {
    let mut settings = Settings::default();
    if let Some(beside) = path.parent() {
        settings.spool = beside.into();
    }
    let write = |file: &mut File, _: &Path| {
        dir::pack(directory, Fidelity::Portable, file, &settings)
            .map_err(|source| LayersError::Pack { path: directory.into(), source })
    };
    let Layer { root, data_blocks, length, .. } = write_whole(path, write)?;
    let description = Description { root_hash: root.to_string(), data_blocks, length };
    Ok(LayerFile { path: path.into(), description })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::path::PathBuf;
    use std::sync::Barrier;

    use super::*;

    fn layer_directory(root: &Path) -> (PathBuf, PathBuf) {
        let path = root.join("fs");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("file"), "one").unwrap();
        (path, root.join("cache"))
    }

    fn inode(layer: &LayerFile) -> u64 {
        fs::metadata(&layer.path).unwrap().ino()
    }

    #[test]
    fn a_layer_is_packed_once_and_again_when_its_directory_changes() {
        let root = tempfile::tempdir().unwrap();
        let (directory, cache) = layer_directory(root.path());
        let first = shared(&directory, &cache).unwrap();
        let made = inode(&first);
        assert_eq!(shared(&directory, &cache).unwrap(), first);
        assert_eq!(inode(&first), made, "the second pack reuses the file");
        first.open().unwrap();

        fs::write(directory.join("more"), "two").unwrap();
        let second = shared(&directory, &cache).unwrap();
        assert_ne!(second.path, first.path);
        assert_ne!(second.description.root_hash, first.description.root_hash);
    }

    #[test]
    fn a_damaged_cache_entry_is_packed_again() {
        let root = tempfile::tempdir().unwrap();
        let (directory, cache) = layer_directory(root.path());
        let layer = shared(&directory, &cache).unwrap();
        File::options().write(true).open(&layer.path).unwrap().set_len(4096).unwrap();
        assert!(layer.open().is_err());
        assert_eq!(shared(&directory, &cache).unwrap(), layer);
        layer.open().unwrap();
    }

    #[test]
    fn parallel_packs_give_one_file() {
        let root = tempfile::tempdir().unwrap();
        let (directory, cache) = layer_directory(root.path());
        let start = Barrier::new(4);
        let pack = || {
            start.wait();
            inode(&shared(&directory, &cache).unwrap())
        };
        let inodes: Vec<u64> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(pack)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(inodes.iter().all(|inode| *inode == inodes[0]), "{inodes:?}");
    }
}
