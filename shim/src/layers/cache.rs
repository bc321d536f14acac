//! What all pods remember of layers on this host: files under names that change with what they were made of.
//!
//! A name is made of a path and of device, inode and change time of what is there, so that a directory that was
//! removed and made again has another. A file appears under its name only when it is whole and on the disk; a lock
//! for each name makes parallel shims do the work once.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

use super::{Description, LayersError, file_error, record};

/// The name of something in the cache, locked against other shims as long as this lives.
#[derive(Debug)]
pub struct Entry {
    stem: PathBuf,
    _lock: File,
}

impl Entry {
    /// Locks the name that `source` has now. Waits for whoever has it locked.
    ///
    /// # Errors
    /// When `source` or the cache cannot be used.
    pub fn lock(cache: &Path, source: &Path) -> Result<Self, LayersError> {
        fs::create_dir_all(cache).map_err(file_error("create", cache))?;
        let stem = cache.join(name(source)?);
        let path = stem.with_added_extension("lock");
        let lock = File::create(&path).map_err(file_error("create", &path))?;
        flock(&lock, FlockOperation::LockExclusive)
            .map_err(|errno| file_error("lock", &path)(errno.into()))?;
        Ok(Self { stem, _lock: lock })
    }

    /// Where the layer file is, or is to be.
    #[must_use]
    pub fn layer(&self) -> PathBuf {
        self.stem.with_added_extension("layer")
    }

    /// Where the record of the layer is, or is to be.
    #[must_use]
    pub fn record(&self) -> PathBuf {
        self.stem.with_added_extension("json")
    }
}

fn name(source: &Path) -> Result<String, LayersError> {
    let stat = fs::metadata(source).map_err(file_error("read", source))?;
    let mut hash = Sha256::new();
    hash.update(source.as_os_str().as_encoded_bytes());
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

/// The description at `path`, if there is one that is understood. Any other is as good as none: it is made again.
#[must_use]
pub fn recall(path: &Path) -> Option<Description> {
    record::read(File::open(path).ok()?, path).ok()
}

/// Keeps a description at `path`.
///
/// # Errors
/// When it cannot be written.
pub fn remember(description: &Description, path: &Path) -> Result<(), LayersError> {
    write_whole(path, |file, path| record::write(description, file, path))
}

/// Makes `path` appear when `write` has succeeded and its bytes are on the disk, or not at all.
///
/// # Errors
/// Those of `write`, and when the file cannot be made, synchronised or renamed.
pub fn write_whole<T>(
    path: &Path,
    write: impl FnOnce(&mut File, &Path) -> Result<T, LayersError>,
) -> Result<T, LayersError> {
    let unfinished = path.with_added_extension("new");
    let mut options = File::options();
    let mut file = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&unfinished)
        .map_err(file_error("create", &unfinished))?;
    let written = write(&mut file, &unfinished).and_then(|written| {
        file.sync_data().map_err(file_error("write", &unfinished))?;
        fs::rename(&unfinished, path).map_err(file_error("rename", &unfinished))?;
        Ok(written)
    });
    if written.is_err() {
        // The error that is reported is the first one; a left-over is overwritten by the next attempt.
        let _ = fs::remove_file(&unfinished);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_nothing_under_the_name() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("x.layer");
        let failed: Result<(), _> = write_whole(&path, |_, _| Err(LayersError::TooMany(0)));
        assert!(failed.is_err());
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_name_changes_with_what_it_is_made_of() {
        let root = tempfile::tempdir().unwrap();
        let [one, two] = ["one", "two"].map(|name| root.path().join(name));
        fs::create_dir(&one).unwrap();
        fs::create_dir(&two).unwrap();
        let before = name(&one).unwrap();
        assert_eq!(name(&one).unwrap(), before);
        assert_ne!(name(&two).unwrap(), before);
        fs::write(one.join("file"), "").unwrap();
        assert_ne!(name(&one).unwrap(), before);
        assert!(name(&root.path().join("none")).is_err());
    }

    #[test]
    fn what_is_remembered_is_recalled_unless_it_is_damaged() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("x.json");
        assert_eq!(recall(&path), None);
        let description = Description { root_hash: "ab".repeat(32), data_blocks: 1, length: 8192 };
        remember(&description, &path).unwrap();
        assert_eq!(recall(&path), Some(description));
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("\"version\":1", "\"version\":0")).unwrap();
        assert_eq!(recall(&path), None);
    }
}
