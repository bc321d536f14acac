//! What is in a directory, file by file, as far as a layer can hold it, and how two directories differ.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::oci_archive::digest;

/// Longest list of an inode's attributes, and longest value of one (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const XATTR_BYTES: usize = 65536;

/// A file, by the names of its properties; what is not of its kind is not there.
pub type File = BTreeMap<String, String>;

/// The files below `root` by path, and `root` itself as an empty path.
///
/// # Errors
/// When one of them cannot be read.
pub fn read(root: &Path) -> Result<BTreeMap<PathBuf, File>> {
    let mut reader = Reader { root, found: BTreeMap::new(), first_names: BTreeMap::new() };
    reader.walk(root)?;
    Ok(reader.found)
}

struct Reader<'r> {
    root: &'r Path,
    found: BTreeMap<PathBuf, File>,
    /// The first name of every inode with several.
    first_names: BTreeMap<u64, PathBuf>,
}

impl Reader<'_> {
    /// Reads in the order of the names, so that the first name of an inode is the same in every file system.
    fn walk(&mut self, path: &Path) -> Result<()> {
        let name = path.strip_prefix(self.root)?.to_owned();
        let file = self.file(path, &name).with_context(|| path.display().to_string())?;
        self.found.insert(name, file);
        if path.symlink_metadata()?.is_dir() {
            let entries = fs::read_dir(path)?.map(|entry| Ok(entry?.path()));
            let mut entries = entries.collect::<Result<Vec<_>>>()?;
            entries.sort();
            for entry in entries {
                self.walk(&entry)?;
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, name: &Path) -> Result<File> {
        let metadata = path.symlink_metadata()?;
        let kind = metadata.file_type();
        let mut file: File = attributes(path)?;
        let mut note = |what: &str, value: String| file.insert(what.to_owned(), value);
        note("mode", format!("{:o}", metadata.mode()));
        note("owner", format!("{}:{}", metadata.uid(), metadata.gid()));
        note("mtime", format!("{}.{:09}", metadata.mtime(), metadata.mtime_nsec()));
        note("links", metadata.nlink().to_string());
        if !kind.is_dir() {
            // A directory's size is its file system's own affair.
            note("size", metadata.len().to_string());
            let first = self.first_names.entry(metadata.ino()).or_insert_with(|| name.to_owned());
            note("same file as", first.display().to_string());
        }
        if kind.is_char_device() || kind.is_block_device() {
            let number = metadata.rdev();
            note("device", format!("{}:{}", rustix::fs::major(number), rustix::fs::minor(number)));
        }
        if kind.is_symlink() {
            let target = fs::read_link(path)?.into_os_string().into_vec();
            note("target", target.escape_ascii().to_string());
        }
        if kind.is_file() {
            note("content", digest(&fs::read(path)?));
        }
        Ok(file)
    }
}

fn attributes(path: &Path) -> Result<File> {
    let mut names = vec![0; XATTR_BYTES];
    let length = rustix::fs::llistxattr(path, &mut names[..])?;
    let names = names[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; XATTR_BYTES];
            let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..])?;
            Ok((format!("xattr {}", name.escape_ascii()), value[..length].escape_ascii().to_string()))
        })
        .collect()
}

/// A property in which a file of one directory differs from that of another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Path below the directory.
    pub path: PathBuf,
    /// Which property; `file` where only one has the file.
    pub what: String,
    /// What it is in the first.
    pub ours: Option<String>,
    /// What it is in the second.
    pub theirs: Option<String>,
}

/// All differences.
#[must_use]
pub fn differences(ours: &BTreeMap<PathBuf, File>, theirs: &BTreeMap<PathBuf, File>) -> Vec<Difference> {
    let mut found = Vec::new();
    for path in union(ours, theirs) {
        let differs = |what: &str, ours: Option<String>, theirs: Option<String>| {
            let difference = Difference { path: path.clone(), what: what.to_owned(), ours, theirs };
            (difference.ours != difference.theirs).then_some(difference)
        };
        match (ours.get(&path), theirs.get(&path)) {
            (Some(ours), Some(theirs)) => {
                let what = union(ours, theirs).into_iter();
                found.extend(
                    what.filter_map(|what| {
                        differs(&what, ours.get(&what).cloned(), theirs.get(&what).cloned())
                    }),
                );
            }
            (ours, theirs) => {
                let shown = |file: Option<&File>| file.map(|file| format!("{file:?}"));
                found.extend(differs("file", shown(ours), shown(theirs)));
            }
        }
    }
    found
}

fn union<K: Ord + Clone, V>(one: &BTreeMap<K, V>, other: &BTreeMap<K, V>) -> Vec<K> {
    let keys: std::collections::BTreeSet<&K> = one.keys().chain(other.keys()).collect();
    keys.into_iter().cloned().collect()
}
