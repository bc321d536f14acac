//! Disk space of a writable directory.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::error::Error;

/// Disk space.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes that are allocated.
    pub bytes: u64,
    /// Files and directories.
    pub inodes: u64,
}

/// Adds up what is below and including `root`, on its file system. A file with several names counts once; what
/// vanishes meanwhile does not count.
///
/// # Errors
/// When a directory cannot be read.
pub fn of_directory(root: &Path) -> Result<Usage, Error> {
    let mut usage = Usage::default();
    let mut linked = HashSet::new();
    let device = fs::symlink_metadata(root).map_err(Error::file("read", root))?.dev();
    let mut pending = vec![root.to_path_buf()];
    while let Some(path) = pending.pop() {
        let metadata = match fs::symlink_metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::file("read", &path)(error)),
        };
        if metadata.dev() != device {
            continue;
        }
        if metadata.nlink() > 1 && !metadata.is_dir() && !linked.insert(metadata.ino()) {
            continue;
        }
        usage.inodes += 1;
        usage.bytes = usage.bytes.saturating_add(metadata.blocks().saturating_mul(512));
        if metadata.is_dir() {
            match fs::read_dir(&path) {
                Ok(entries) => pending.extend(entries.flatten().map(|entry| entry.path())),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::file("list", &path)(error)),
            }
        }
    }
    Ok(usage)
}
