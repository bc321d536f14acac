//! The file behind a pod's encrypted scratch device.
//!
//! It has no name, so that it goes with the machine that has it open, whatever happens to the shim; and no blocks
//! until something is written, so that a pod costs what it uses. What is in it is ciphertext under a key that never
//! leaves the guest.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Why there is no scratch device.
#[derive(Debug, thiserror::Error)]
#[error("cannot make a scratch file of {bytes} bytes in {path}: {source}", path = .path.display())]
pub struct ScratchError {
    path: PathBuf,
    bytes: u64,
    source: io::Error,
}

/// Makes an empty file of `bytes` in `directory`, for nobody but root.
///
/// # Errors
/// When the system refuses.
pub fn make(directory: &Path, bytes: u64) -> Result<File, ScratchError> {
    let make = || {
        fs::create_dir_all(directory)?;
        let file = tempfile::tempfile_in(directory)?;
        // Its mode would be the umask's; /proc leads to a file without a name too.
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        file.set_len(bytes)?;
        Ok(file)
    };
    make().map_err(|source| ScratchError { path: directory.into(), bytes, source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn the_file_has_a_length_and_neither_name_nor_blocks() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("scratch");
        let file = make(&directory, 64 << 20).unwrap();
        let stat = file.metadata().unwrap();
        assert_eq!((stat.len(), stat.nlink(), stat.blocks(), stat.mode() & 0o777), (64 << 20, 0, 0, 0o600));
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_that_cannot_be_is_named() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("file");
        fs::write(&path, "").unwrap();
        let error = make(&path, 4096).unwrap_err().to_string();
        assert!(error.contains("4096 bytes in") && error.contains("file"), "{error}");
    }
}
