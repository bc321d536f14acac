//! Files that the host places in the guest (CopyFile): `/etc/hosts`, resolver settings, ConfigMaps.
//!
//! The host chooses names and contents, so a path is resolved beneath the shared directory without following
//! any symbolic link (`openat2`), and a link that the host itself makes is never written through. A file arrives
//! in pieces under a temporary name and takes its place when it is complete, so a reader never sees half of it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use agent_protocol::rpc::agent::CopyFileRequest;
use agent_protocol::{MAX_COPY_CHUNK, paths};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;

use crate::error::{AgentError, Context, Result};

/// Largest file in bytes: Kubernetes limits ConfigMaps and Secrets to 1 MiB.
const MAX_FILE: u64 = 16 * 1024 * 1024;
/// Longest target of a symbolic link.
const MAX_LINK: usize = 1024;
/// Deepest path below the shared directory.
const MAX_DEPTH: usize = 32;
/// Suffix of a file that is not complete; no destination may have it.
const PARTIAL: &str = ".uvm-partial";

const FILE_TYPE: u32 = libc::S_IFMT;

/// One request, checked; paths are relative to the shared directory.
#[derive(Debug, PartialEq, Eq)]
struct Piece<'a> {
    path: PathBuf,
    kind: Kind<'a>,
    mode: Mode,
    directory_mode: Mode,
    owner: (Uid, Gid),
}

#[derive(Debug, PartialEq, Eq)]
enum Kind<'a> {
    File { size: u64, offset: u64, data: &'a [u8] },
    Directory,
    Link(&'a str),
}

/// Carries out one request.
///
/// # Errors
/// If the request is outside the rules above, or the file system refuses.
pub fn copy(request: &CopyFileRequest) -> Result<()> {
    let piece = parse(request)?;
    std::fs::create_dir_all(paths::SHARED_CONTAINERS)
        .doing(|| format!("make {}", paths::SHARED_CONTAINERS))?;
    place(Path::new(paths::SHARED_CONTAINERS), &piece)
}

/// Checks that `path`, given below the shared directory, leads there without a symbolic link.
///
/// # Errors
/// If it does not exist or passes a link.
pub fn check_source(path: &Path) -> Result<()> {
    let root = Path::new(paths::SHARED_CONTAINERS);
    let Ok(relative) = path.strip_prefix(root) else { return Ok(()) };
    let root = open_root(root)?;
    open_beneath(&root, relative, OFlags::PATH, Mode::empty())
        .map(|_| ())
        .doing(|| format!("find {} without following links", path.display()))
}

fn parse(request: &CopyFileRequest) -> Result<Piece<'_>> {
    let path = relative(&request.path)?;
    let natural = |name: &str, value: i64| {
        u64::try_from(value)
            .map_err(|_| AgentError::Invalid(format!("CopyFile: {name} is {value}, expected 0 or more")))
    };
    let id = |name: &str, value: i32| {
        u32::try_from(value)
            .map_err(|_| AgentError::Invalid(format!("CopyFile: {name} is {value}, expected 0 or more")))
    };
    let (size, offset) = (natural("file_size", request.file_size)?, natural("offset", request.offset)?);
    let kind = match request.file_mode & FILE_TYPE {
        // Callers that copy only plain files send permissions alone.
        0 | libc::S_IFREG => {
            let end = offset.saturating_add(u64::try_from(request.data.len()).unwrap_or(u64::MAX));
            if size > MAX_FILE || end > size || request.data.len() > MAX_COPY_CHUNK {
                let message = format!(
                    "CopyFile: {} bytes at {offset} of a file of {size}: expected at most {MAX_FILE}, \
                    in pieces of at most {MAX_COPY_CHUNK}",
                    request.data.len()
                );
                return Err(AgentError::Invalid(message));
            }
            Kind::File { size, offset, data: &request.data }
        }
        libc::S_IFDIR => Kind::Directory,
        libc::S_IFLNK => Kind::Link(link_target(&request.data)?),
        other => return Err(AgentError::Unsupported(format!("CopyFile: file type {other:#o}"))),
    };
    Ok(Piece {
        path,
        kind,
        // Neither set-user-id nor device semantics come from the host.
        mode: Mode::from_raw_mode(request.file_mode & 0o777),
        directory_mode: Mode::from_raw_mode(request.dir_mode & 0o777),
        owner: (Uid::from_raw(id("uid", request.uid)?), Gid::from_raw(id("gid", request.gid)?)),
    })
}

/// The path below the shared directory: plain names only.
fn relative(path: &str) -> Result<PathBuf> {
    let wrong = || {
        AgentError::Invalid(format!(
            "CopyFile: path {path:?}: expected plain names below {}",
            paths::SHARED_CONTAINERS
        ))
    };
    let below = path
        .strip_prefix(paths::SHARED_CONTAINERS)
        .and_then(|rest| rest.strip_prefix('/'))
        .ok_or_else(wrong)?;
    let relative = Path::new(below);
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
    // `components` forgives "a//b" and "a/.": the request must be written plainly.
    let depth = below.split('/').count();
    let empty = below.split('/').any(|name| name.is_empty() || name == ".");
    if below.is_empty()
        || !plain
        || empty
        || depth > MAX_DEPTH
        || below.ends_with(PARTIAL)
        || below.contains('\0')
    {
        return Err(wrong());
    }
    Ok(relative.to_owned())
}

fn link_target(data: &[u8]) -> Result<&str> {
    let text = std::str::from_utf8(data)
        .ok()
        .filter(|text| !text.is_empty() && text.len() <= MAX_LINK && !text.contains('\0'));
    text.ok_or_else(|| {
        AgentError::Invalid(format!(
            "CopyFile: link target of {} bytes: expected 1 to {MAX_LINK} of UTF-8",
            data.len()
        ))
    })
}

fn place(root: &Path, piece: &Piece<'_>) -> Result<()> {
    let shown = || format!("copy {}", piece.path.display());
    let root = open_root(root)?;
    let parent = make_parents(&root, piece).doing(shown)?;
    let name = piece.path.file_name().map(Path::new).ok_or_else(|| AgentError::Invalid(shown()))?;
    match &piece.kind {
        Kind::Directory => {
            match rustix::fs::mkdirat(&parent, name, piece.mode) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error).doing(shown),
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let directory = open_beneath(&parent, name, flags, Mode::empty()).doing(shown)?;
            own(&directory, piece).doing(shown)
        }
        Kind::Link(target) => {
            let partial = partial(name);
            let _ = rustix::fs::unlinkat(&parent, &partial, AtFlags::empty());
            rustix::fs::symlinkat(*target, &parent, &partial).doing(shown)?;
            rustix::fs::renameat(&parent, &partial, &parent, name).doing(shown)
        }
        Kind::File { size, offset, data } => {
            let partial = partial(name);
            let begin = if *offset == 0 { OFlags::CREATE | OFlags::TRUNC } else { OFlags::empty() };
            let file = open_beneath(&parent, &partial, OFlags::WRONLY | begin, Mode::from_raw_mode(0o600))
                .doing(shown)?;
            write_all(&file, data, *offset).doing(shown)?;
            if offset.saturating_add(u64::try_from(data.len()).unwrap_or(u64::MAX)) < *size {
                return Ok(());
            }
            own(&file, piece).doing(shown)?;
            rustix::fs::renameat(&parent, &partial, &parent, name).doing(shown)
        }
    }
}

fn partial(name: &Path) -> PathBuf {
    let mut name = name.as_os_str().to_owned();
    name.push(PARTIAL);
    PathBuf::from(name)
}

fn own(file: &OwnedFd, piece: &Piece<'_>) -> io::Result<()> {
    rustix::fs::fchown(file, Some(piece.owner.0), Some(piece.owner.1))?;
    Ok(rustix::fs::fchmod(file, piece.mode)?)
}

fn write_all(file: &OwnedFd, mut data: &[u8], mut offset: u64) -> io::Result<()> {
    while !data.is_empty() {
        let written = rustix::io::pwrite(file, data, offset)?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        data = &data[written..];
        offset += u64::try_from(written).map_err(io::Error::other)?;
    }
    Ok(())
}

/// Opens the directory that will hold the piece, making what is missing on the way.
fn make_parents(root: &OwnedFd, piece: &Piece<'_>) -> io::Result<OwnedFd> {
    let mut directory = root.try_clone()?;
    let parent = piece.path.parent().unwrap_or(Path::new(""));
    for name in parent.components() {
        let name: &Path = name.as_ref();
        match rustix::fs::mkdirat(&directory, name, piece.directory_mode) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        directory = open_beneath(&directory, name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
    }
    Ok(directory)
}

fn open_root(root: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(root, flags, Mode::empty()).doing(|| format!("open {}", root.display()))
}

fn open_beneath(root: impl AsFd, path: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
    // openat2 refuses a mode where nothing is created.
    let mode = if flags.contains(OFlags::CREATE) { mode } else { Mode::empty() };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    Ok(rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, mode, resolve)?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn request(path: &str, mode: u32, data: &[u8]) -> CopyFileRequest {
        CopyFileRequest {
            path: format!("{}/{path}", paths::SHARED_CONTAINERS),
            file_size: data.len().try_into().unwrap(),
            file_mode: mode,
            dir_mode: 0o755,
            uid: rustix::process::getuid().as_raw().try_into().unwrap(),
            gid: rustix::process::getgid().as_raw().try_into().unwrap(),
            data: data.to_vec(),
            ..Default::default()
        }
    }

    fn copy_to(root: &Path, request: &CopyFileRequest) -> Result<()> {
        place(root, &parse(request)?)
    }

    #[test]
    fn files_directories_and_links_appear() {
        let root = tempfile::tempdir().unwrap();
        copy_to(root.path(), &request("c1/etc/hosts", 0o4640, b"127.0.0.1 localhost\n")).unwrap();
        let file = root.path().join("c1/etc/hosts");
        assert_eq!(fs::read(&file).unwrap(), b"127.0.0.1 localhost\n");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o640);
        copy_to(root.path(), &request("c1/dir", libc::S_IFDIR | 0o700, b"")).unwrap();
        assert!(root.path().join("c1/dir").is_dir());
        copy_to(root.path(), &request("c1/link", libc::S_IFLNK, b"..data/x")).unwrap();
        assert_eq!(fs::read_link(root.path().join("c1/link")).unwrap(), Path::new("..data/x"));
        copy_to(root.path(), &request("c1/link", libc::S_IFLNK, b"other")).unwrap();
        assert_eq!(fs::read_link(root.path().join("c1/link")).unwrap(), Path::new("other"));
    }

    #[test]
    fn a_file_appears_when_it_is_complete() {
        let root = tempfile::tempdir().unwrap();
        let mut piece = request("f", 0o600, b"hello");
        piece.file_size = 10;
        copy_to(root.path(), &piece).unwrap();
        assert!(!root.path().join("f").exists());
        piece.offset = 5;
        copy_to(root.path(), &piece).unwrap();
        assert_eq!(fs::read(root.path().join("f")).unwrap(), b"hellohello");
        // A later piece without a first one has nothing to add to.
        assert!(copy_to(root.path(), &piece).is_err());
    }

    #[test]
    fn links_are_never_followed() {
        let root = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        let target = outside.path().to_str().unwrap();
        copy_to(root.path(), &request("d", libc::S_IFLNK, target.as_bytes())).unwrap();
        assert!(copy_to(root.path(), &request("d/evil", 0o600, b"x")).is_err());
        assert!(copy_to(root.path(), &request("d", libc::S_IFDIR | 0o700, b"")).is_err());
        let file = outside.path().join("victim");
        fs::write(&file, "safe").unwrap();
        copy_to(root.path(), &request("v", libc::S_IFLNK, file.to_str().unwrap().as_bytes())).unwrap();
        // Writing replaces the link; what it points to stays.
        copy_to(root.path(), &request("v", 0o600, b"new")).unwrap();
        assert_eq!(
            (fs::read(&file).unwrap(), fs::read(root.path().join("v")).unwrap()),
            (b"safe".to_vec(), b"new".to_vec())
        );
        // The temporary name is no way out either.
        let partial = format!("w{PARTIAL}");
        std::os::unix::fs::symlink(&file, root.path().join(&partial)).unwrap();
        assert!(copy_to(root.path(), &request("w", 0o600, b"evil")).is_err());
        assert_eq!(fs::read(&file).unwrap(), b"safe");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    }

    #[test]
    fn requests_outside_the_rules_are_refused() {
        for path in
            ["", ".", "..", "a/../b", "a//b", "a/./b", "a/", "/etc", &format!("x{PARTIAL}"), &"a/".repeat(40)]
        {
            assert!(parse(&request(path, 0o600, b"x")).is_err(), "{path:?}");
        }
        let mut outside = request("x", 0o600, b"x");
        outside.path = "/run/kata-containers/shared/containers-other/x".to_owned();
        assert!(parse(&outside).is_err());
        assert!(parse(&request("x", libc::S_IFCHR | 0o600, b"")).is_err());
        assert!(parse(&request("x", libc::S_IFLNK, b"")).is_err());
        type Change = fn(&mut CopyFileRequest);
        let changes: [Change; 5] = [
            |request| request.offset = -1,
            |request| request.file_size = -1,
            |request| request.file_size = 1 << 40,
            |request| request.offset = 1,
            |request| request.uid = -1,
        ];
        for change in changes {
            let mut changed = request("x", 0o600, b"x");
            change(&mut changed);
            assert!(parse(&changed).is_err(), "{changed:?}");
        }
    }
}
