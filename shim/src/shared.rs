//! Copies of the host's files for a pod's containers.
//!
//! The guest shares no file system with the host: `/etc/hosts`, `resolv.conf`, ConfigMaps and the like are
//! read once and sent. Sizes are bounded, symbolic links stay links, and anything that is neither a file, a
//! directory nor a link is refused. What a container writes to its copy does not come back.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use agent_protocol::rpc::agent::CopyFileRequest;
use rustix::fs::{Mode, OFlags};

use crate::spec::SharedPath;

/// Most bytes of one file.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Most bytes of all files of one pod.
pub const MAX_POD_BYTES: u64 = 16 << 20;
/// Most files, directories and links of one pod.
const MAX_POD_ENTRIES: usize = 4096;

const S_IFMT: u32 = 0o170_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;
/// Mode of directories on the way to a copy that the host does not name.
const PARENT_MODE: u32 = S_IFDIR | 0o755;

/// Why a file cannot be copied.
#[derive(Debug, thiserror::Error)]
pub enum SharedError {
    /// It cannot be read.
    #[error("cannot read {path} for the guest: {source}", path = .path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is too large.
    #[error("{path}: a bind mount is copied into the guest: expected a file of at most {MAX_FILE_BYTES} bytes, found {found}", path = .path.display())]
    TooLarge {
        /// Which file.
        path: PathBuf,
        /// Its size in bytes.
        found: u64,
    },
    /// All of them are too large.
    #[error("{path}: bind mounts are copied into the guest: expected at most {MAX_POD_BYTES} bytes and {MAX_POD_ENTRIES} files in a pod", path = .path.display())]
    Budget {
        /// The file that did not fit.
        path: PathBuf,
    },
    /// It is no file, directory or link.
    #[error("{path}: expected a file, a directory or a symbolic link, found a file of mode {mode:o}", path = .path.display())]
    Kind {
        /// Which file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// A path or link that the protocol cannot carry.
    #[error("{path:?}: expected a path in UTF-8")]
    Name {
        /// Which path.
        path: PathBuf,
    },
}

/// What a pod's copies may still take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    bytes: u64,
    entries: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { bytes: MAX_POD_BYTES, entries: MAX_POD_ENTRIES }
    }
}

impl Budget {
    fn take(&mut self, path: &Path, bytes: u64) -> Result<(), SharedError> {
        match (self.bytes.checked_sub(bytes), self.entries.checked_sub(1)) {
            (Some(bytes), Some(entries)) => {
                *self = Self { bytes, entries };
                Ok(())
            }
            _ => Err(SharedError::Budget { path: path.into() }),
        }
    }
}

/// Reads what `shared` names, as the requests that make its copy: parents before what is in them. A symbolic
/// link at the top is followed, as mount(2) does.
///
/// # Errors
/// When something cannot be read, is of another kind, or does not fit the budget.
pub fn read(shared: &SharedPath, budget: &mut Budget) -> Result<Vec<CopyFileRequest>, SharedError> {
    let failed = |source| SharedError::Read { path: shared.host.clone(), source };
    let host = fs::canonicalize(&shared.host).map_err(failed)?;
    let mut requests = Vec::new();
    let mut pending = vec![(host, shared.guest.clone())];
    while let Some((host, guest)) = pending.pop() {
        requests.push(request(&host, &guest, budget)?);
        if fs::symlink_metadata(&host).is_ok_and(|stat| stat.is_dir()) {
            let failed = |source| SharedError::Read { path: host.clone(), source };
            for entry in fs::read_dir(&host).map_err(failed)? {
                let name = entry.map_err(failed)?.file_name();
                if pending.len() >= MAX_POD_ENTRIES {
                    return Err(SharedError::Budget { path: host.join(name) });
                }
                pending.push((host.join(&name), guest.join(&name)));
            }
        }
    }
    Ok(requests)
}

fn request(host: &Path, guest: &Path, budget: &mut Budget) -> Result<CopyFileRequest, SharedError> {
    let failed = |source| SharedError::Read { path: host.into(), source };
    let stat = fs::symlink_metadata(host).map_err(failed)?;
    let data = match stat.mode() & S_IFMT {
        S_IFDIR => Vec::new(),
        S_IFLNK => fs::read_link(host).map_err(failed)?.as_os_str().as_bytes().to_vec(),
        S_IFREG => read_file(host)?,
        _ => return Err(SharedError::Kind { path: host.into(), mode: stat.mode() }),
    };
    budget.take(host, data.len() as u64)?;
    let path = guest.to_str().ok_or_else(|| SharedError::Name { path: guest.into() })?;
    let owner = |id: u32| i32::try_from(id).unwrap_or(0);
    Ok(CopyFileRequest {
        path: path.into(),
        file_size: i64::try_from(data.len()).unwrap_or(i64::MAX),
        file_mode: stat.mode(),
        dir_mode: PARENT_MODE,
        uid: owner(stat.uid()),
        gid: owner(stat.gid()),
        data,
        ..CopyFileRequest::default()
    })
}

fn read_file(path: &Path) -> Result<Vec<u8>, SharedError> {
    let failed = |source| SharedError::Read { path: path.into(), source };
    // What was looked at may have been exchanged since: no link is followed, and nothing blocks.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file =
        File::from(rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?);
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(SharedError::Kind { path: path.into(), mode: metadata.mode() });
    }
    let found = metadata.len();
    let mut data = Vec::new();
    // The size may be a lie (a file that grows, a file in /proc): what counts is what is read.
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut data).map_err(failed)?;
    let read = data.len() as u64;
    if read > MAX_FILE_BYTES {
        return Err(SharedError::TooLarge { path: path.into(), found: found.max(read) });
    }
    Ok(data)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn shared(host: &Path) -> SharedPath {
        SharedPath { host: host.into(), guest: "/g/x".into() }
    }

    /// The shape of a ConfigMap volume: links to links to a directory.
    #[test]
    fn a_directory_comes_with_its_links() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("volume");
        fs::create_dir_all(root.join("..v1")).unwrap();
        fs::write(root.join("..v1/key"), "value").unwrap();
        symlink("..v1", root.join("..data")).unwrap();
        symlink("..data/key", root.join("key")).unwrap();
        let mut budget = Budget::default();
        let mut requests = read(&shared(&root), &mut budget).unwrap();
        assert_eq!(requests[0].path, "/g/x");
        assert_eq!(requests[0].file_mode & S_IFMT, S_IFDIR);
        let order: Vec<String> = requests.iter().map(|r| r.path.clone()).collect();
        let at = |path: &str| order.iter().position(|p| p == path).unwrap();
        assert!(at("/g/x/..v1") < at("/g/x/..v1/key"), "{order:?}");
        requests.sort_by(|a, b| a.path.cmp(&b.path));
        let link = requests.iter().find(|r| r.path == "/g/x/key").unwrap();
        assert_eq!((link.file_mode & S_IFMT, link.data.as_slice()), (S_IFLNK, b"..data/key".as_slice()));
        let file = requests.iter().find(|r| r.path == "/g/x/..v1/key").unwrap();
        assert_eq!((file.data.as_slice(), file.file_size), (b"value".as_slice(), 5));
        assert_eq!(budget.entries, MAX_POD_ENTRIES - 5);
    }

    #[test]
    fn large_files_and_full_budgets_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("large");
        File::create(&path).unwrap().set_len(MAX_FILE_BYTES).unwrap();
        let mut budget = Budget::default();
        for _ in 0..MAX_POD_BYTES / MAX_FILE_BYTES {
            read(&shared(&path), &mut budget).unwrap();
        }
        assert!(matches!(read(&shared(&path), &mut budget), Err(SharedError::Budget { .. })));
        File::options().write(true).open(&path).unwrap().set_len(MAX_FILE_BYTES + 1).unwrap();
        let error = read(&shared(&path), &mut Budget::default()).unwrap_err().to_string();
        assert!(error.contains("large") && error.contains("1048577"), "{error}");
    }

    #[test]
    fn other_kinds_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let mut budget = Budget::default();
        assert!(matches!(read(&shared(&path), &mut budget), Err(SharedError::Kind { .. })));
        assert!(matches!(read(&shared(&dir.path().join("no")), &mut budget), Err(SharedError::Read { .. })));
    }
}
