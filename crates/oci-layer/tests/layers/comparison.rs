//! A directory, archived by GNU tar in each of its formats, converted, and mounted by the kernel: what is seen
//! there is the directory.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use oci_layer::{Limits, convert};
use rustix::fs::{CWD, Dev, FileType, Mode, makedev, mknodat};

/// Whether the format keeps nanoseconds and attributes.
#[derive(Clone, Copy, PartialEq)]
enum Keeps {
    Seconds,
    All,
}

#[test]
fn the_kernel_shows_what_gnu_tar_archived() {
    let place = tempfile::tempdir().unwrap();
    let source = place.path().join("source");
    make_source(&source);
    let formats: [(&[&str], Keeps); 6] = [
        (&["--format=gnu"], Keeps::Seconds),
        (&["--format=gnu", "--sparse"], Keeps::Seconds),
        (&["--format=pax", "--xattrs", "--xattrs-include=*"], Keeps::All),
        (&["--format=pax", "--xattrs", "--xattrs-include=*", "--sparse", "--sparse-version=0.0"], Keeps::All),
        (&["--format=pax", "--xattrs", "--xattrs-include=*", "--sparse", "--sparse-version=0.1"], Keeps::All),
        (&["--format=pax", "--xattrs", "--xattrs-include=*", "--sparse", "--sparse-version=1.0"], Keeps::All),
    ];
    for (arguments, keeps) in formats {
        let archive = place.path().join("archive.tar");
        run(Command::new("tar").args(arguments).arg("-cf").arg(&archive).arg("-C").arg(&source).arg("."));
        let image = place.path().join("layer");
        let _ = fs::remove_file(&image);
        let out = File::options().read(true).write(true).create_new(true).open(&image).unwrap();
        convert(File::open(&archive).unwrap(), &out, &Limits::default()).unwrap();
        run(Command::new("fsck.erofs").arg(&image));
        let mount = place.path().join("mount");
        fs::create_dir_all(&mount).unwrap();
        let Some(mounted) = Mounted::new(&image, mount) else {
            return;
        };
        let (seen, expected) = (walk(&mounted.0, keeps), walk(&source, keeps));
        for (path, file) in &expected {
            assert_eq!(seen.get(path), Some(file), "{} with {arguments:?}", path.display());
        }
        assert_eq!(seen.len(), expected.len(), "{arguments:?}");
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

struct Mounted(PathBuf);

impl Mounted {
    fn new(image: &Path, at: PathBuf) -> Option<Self> {
        let output = Command::new("mount")
            .args(["-t", "erofs", "-o", "ro,loop"])
            .arg(image)
            .arg(&at)
            .output()
            .unwrap();
        if output.status.success() {
            return Some(Self(at));
        }
        eprintln!("skipped: cannot mount here: {}", String::from_utf8_lossy(&output.stderr).trim());
        None
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// What a file is, as far as an image can hold it.
#[derive(Debug, PartialEq)]
struct Seen {
    mode: u32,
    owner: (u32, u32),
    links: u64,
    device: u64,
    mtime: (i64, i64),
    target: Option<PathBuf>,
    content: Vec<u8>,
    attributes: BTreeMap<Vec<u8>, Vec<u8>>,
}

fn walk(root: &Path, keeps: Keeps) -> BTreeMap<PathBuf, Seen> {
    let mut found = BTreeMap::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let seen = see(&path, keeps);
            if path.symlink_metadata().unwrap().is_dir() {
                directories.push(path.clone());
            }
            found.insert(path.strip_prefix(root).unwrap().to_owned(), seen);
        }
    }
    found
}

fn see(path: &Path, keeps: Keeps) -> Seen {
    let metadata = path.symlink_metadata().unwrap();
    let kind = metadata.file_type();
    let is_device = kind.is_char_device() || kind.is_block_device();
    Seen {
        mode: metadata.mode(),
        owner: (metadata.uid(), metadata.gid()),
        links: metadata.nlink(),
        device: if is_device { metadata.rdev() } else { 0 },
        mtime: (metadata.mtime(), if keeps == Keeps::All { metadata.mtime_nsec() } else { 0 }),
        target: kind.is_symlink().then(|| fs::read_link(path).unwrap()),
        content: if kind.is_file() { fs::read(path).unwrap() } else { Vec::new() },
        attributes: if keeps == Keeps::All { attributes(path) } else { BTreeMap::new() },
    }
}

fn attributes(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 65536];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let names = names[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 65536];
            let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..]).unwrap();
            value.truncate(length);
            (name.to_vec(), value)
        })
        .collect()
}

/// One of everything that an archive by GNU tar can hold.
fn make_source(root: &Path) {
    let text: Vec<u8> = (0..200_000u32).flat_map(|number| number.to_le_bytes()).collect();
    let deep = "a-rather-long-name-of-a-directory/".repeat(12);
    fs::create_dir_all(root.join(&deep)).unwrap();
    fs::write(root.join(deep).join("file"), "deep").unwrap();
    fs::write(root.join("n".repeat(255)), "long name").unwrap();
    fs::write(root.join(OsStr::from_bytes(b"not \xFF utf-8\n")), "odd name").unwrap();
    for (name, length) in [("empty", 0), ("one", 1), ("block", 4096), ("more", 4097), ("large", 800_000)] {
        fs::write(root.join(name), &text[..length]).unwrap();
    }
    fs::hard_link(root.join("large"), root.join("second-name")).unwrap();
    for (name, length) in
        [("short-link", 5), ("link-of-a-header", 100), ("long-link", 101), ("longest-link", 4095)]
    {
        std::os::unix::fs::symlink("t".repeat(length), root.join(name)).unwrap();
    }
    fs::set_permissions(root.join("one"), fs::Permissions::from_mode(0o6711)).unwrap();
    std::os::unix::fs::chown(root.join("block"), Some(3_000_000), Some(2_097_152)).unwrap();
    let make = |name: &str, kind, device: Dev| {
        mknodat(CWD, root.join(name), kind, Mode::from_raw_mode(0o640), device).unwrap();
    };
    make("char", FileType::CharacterDevice, makedev(4, 64));
    make("block-device", FileType::BlockDevice, makedev(259, 70_000));
    make("pipe", FileType::Fifo, 0);
    let sparse = File::create(root.join("sparse")).unwrap();
    for (at, length) in [(0, 5), (70_000, 9000), (3_000_000, 4096), (5_000_000, 1)] {
        sparse.write_all_at(&text[..length], at).unwrap();
    }
    sparse.set_len(7_000_001).unwrap();
    File::create(root.join("hole")).unwrap().set_len(1_000_000).unwrap();
    for (name, attribute, value) in [
        ("one", "user.mime_type", &b"text/plain"[..]),
        ("more", "user.binary", b"\0\x01=\n\xFF"),
        ("more", "user.empty", b""),
        // CAP_NET_RAW, permitted and effective.
        ("large", "security.capability", &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    ] {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::lsetxattr(root.join(name), attribute, value, flags).unwrap();
    }
    let names: Vec<_> = (0..3000).map(|number| OsStr::new(&format!("{number:05}")).to_owned()).collect();
    fs::create_dir(root.join("many")).unwrap();
    for name in names {
        fs::write(root.join("many").join(&name), name.into_vec()).unwrap();
    }
}
