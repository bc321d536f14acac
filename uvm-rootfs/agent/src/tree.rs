//! Removing a directory tree whose shape a container chose.
//!
//! Depth costs nothing: what lies two levels down is moved one level up, so at most two directories are open at
//! a time and nothing recurses. No symbolic link is followed.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

/// Removes the directory `path` and all below it. Nothing being there is what was wanted.
///
/// # Errors
/// If something below refuses to go; the rest may have gone already.
pub fn remove(path: &Path) -> io::Result<()> {
    let top = match open(CWD, path) {
        Err(Errno::NOENT) => return Ok(()),
        result => result?,
    };
    let mut names = 0;
    while empty_once(&top, &mut names)? {}
    Ok(rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR)?)
}

/// Removes what is directly in `top` and lifts what is below; says whether there was anything.
fn empty_once(top: &OwnedFd, names: &mut u64) -> io::Result<bool> {
    let mut found = false;
    for entry in Dir::read_from(top)? {
        let entry = entry?;
        let name = entry.file_name();
        if is_dot(name) {
            continue;
        }
        found = true;
        if unlink(top.as_fd(), name)? {
            continue;
        }
        lift(top, &open(top, name)?, names)?;
        rustix::fs::unlinkat(top, name, AtFlags::REMOVEDIR)?;
    }
    Ok(found)
}

/// Empties `directory`: what does not go at once moves to `top` under a name that is free there.
fn lift(top: &OwnedFd, directory: &OwnedFd, names: &mut u64) -> io::Result<()> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if is_dot(name) || unlink(directory.as_fd(), name)? {
            continue;
        }
        loop {
            *names += 1;
            let free = names.to_string();
            match rustix::fs::renameat_with(directory, name, top, free.as_str(), RenameFlags::NOREPLACE) {
                Err(Errno::EXIST) => {}
                result => break result?,
            }
        }
    }
    Ok(())
}

/// Removes a file or an empty directory; says whether it did.
fn unlink(directory: BorrowedFd<'_>, name: &CStr) -> io::Result<bool> {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {}
        result => return Ok(result.map(|()| true)?),
    }
    match rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOTEMPTY) => Ok(false),
        result => Ok(result.map(|()| true)?),
    }
}

fn open(at: impl AsFd, path: impl rustix::path::Arg) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, path, flags, Mode::empty())
}

fn is_dot(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_tree_deeper_than_any_stack_goes() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("top");
        fs::create_dir(&path).unwrap();
        // Paths that long cannot be named, so the chain is made from inside.
        let mut at = open(CWD, &path).unwrap();
        for _ in 0..5000 {
            rustix::fs::mkdirat(&at, "deeper", Mode::from_raw_mode(0o700)).unwrap();
            at = open(&at, "deeper").unwrap();
        }
        drop(at);
        remove(&path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn names_that_look_like_ours_and_links_do_no_harm() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("top");
        for directory in ["1/1/1", "2/3/4", "x/1/y", "x/2"] {
            fs::create_dir_all(path.join(directory)).unwrap();
        }
        for file in ["1/1/f", "2/f", "x/1/y/g", "f"] {
            fs::write(path.join(file), "x").unwrap();
        }
        let outside = root.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "").unwrap();
        symlink(&outside, path.join("link")).unwrap();
        symlink(&outside, path.join("x/1/link")).unwrap();
        remove(&path).unwrap();
        assert!(!path.exists() && outside.join("kept").exists());
        remove(&path).unwrap();
        // A link is no tree.
        symlink(&outside, &path).unwrap();
        assert!(remove(&path).is_err());
        assert!(outside.join("kept").exists());
    }
}
