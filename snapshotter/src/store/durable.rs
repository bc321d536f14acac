//! Writing so that a crash leaves the old file or the new one.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;

use crate::error::Error;

/// Puts `bytes` into `directory/name`, replacing what is there. After a crash or an error the file has its old
/// contents or the new ones, whole.
///
/// # Errors
/// When the file system refuses; the old file is then untouched.
pub fn replace(directory: &Path, name: &str, bytes: &[u8]) -> Result<(), Error> {
    let new = directory.join(format!(".{name}.new"));
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(&new)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&new, directory.join(name)));
    if let Err(error) = written {
        // The error that matters is the one above; a leftover is removed at the next start.
        let _ = fs::remove_file(&new);
        return Err(Error::file("write", &directory.join(name))(error));
    }
    sync_directory(directory)
}

/// Makes renames, creations and removals in `directory` outlive a crash.
///
/// # Errors
/// When the file system refuses.
pub fn sync_directory(directory: &Path) -> Result<(), Error> {
    File::open(directory).and_then(|file| file.sync_all()).map_err(Error::file("sync", directory))
}

/// Makes a directory, and those above it, unless they are there.
///
/// # Errors
/// When the file system refuses.
pub fn make_directories(path: &Path) -> Result<(), Error> {
    fs::create_dir_all(path).map_err(Error::file("make the directory", path))
}
