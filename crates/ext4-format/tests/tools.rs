//! What e2fsprogs say about our file systems.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use ext4_format::{BLOCK_SIZE, Identity, Layout, MIN_BYTES, format};

const IDENTITY: Identity = Identity { uuid: *b"uuid-uuid-uuid-u", hash_seed: *b"seed-seed-seed-s" };

fn formatted(path: &Path, bytes: u64) -> u64 {
    let mut file = File::create(path).unwrap();
    file.set_len(bytes).unwrap();
    format(&mut file, bytes, &IDENTITY).unwrap()
}

/// Runs a tool of e2fsprogs; gives what it printed.
fn tool(name: &str, arguments: &[&str], path: &Path) -> String {
    let output = Command::new(name).args(arguments).arg(path).env("PATH", "/usr/sbin:/sbin").output();
    let output = output.unwrap_or_else(|error| panic!("{name} (Debian package e2fsprogs): {error}"));
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} {}: {printed}{errors}", path.display());
    printed
}

/// Sizes around the ends of groups, where the last group is kept, cut or left out.
#[test]
fn e2fsck_finds_nothing_to_repair() {
    const GROUP: u64 = 128 << 20;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let sizes = [
        MIN_BYTES,
        MIN_BYTES + 4096,
        100_000_000,
        GROUP - BLOCK_SIZE,
        GROUP,
        GROUP + BLOCK_SIZE,
        GROUP + (514 + 63) * BLOCK_SIZE,
        GROUP + (514 + 64) * BLOCK_SIZE,
        2 * GROUP,
        10 << 30,
    ];
    for bytes in sizes {
        formatted(&path, bytes);
        tool("e2fsck", &["-f", "-n"], &path);
    }
}

#[test]
fn counts_are_those_of_the_layout() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let bytes = 5 << 30;
    formatted(&path, bytes);
    let layout = Layout::new(bytes).unwrap();
    let printed = tool("dumpe2fs", &["-h"], &path);
    for (name, expected) in [
        ("Filesystem state", "clean".to_owned()),
        ("Errors behavior", "Remount read-only".to_owned()),
        ("Block count", layout.blocks().to_string()),
        ("Free blocks", layout.free_blocks().to_string()),
        ("Inode count", layout.inodes().to_string()),
        ("Filesystem UUID", "75756964-2d75-7569-642d-757569642d75".to_owned()),
    ] {
        let line = printed.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}"));
        assert_eq!(line.split_once(':').unwrap().1.trim(), expected, "{name}");
    }
}

/// A large device costs a descriptor for each group and a dozen blocks, on the host's disk too.
#[test]
fn little_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    for (bytes, limit) in [(MIN_BYTES, 8), (1 << 30, 9), (1 << 40, 72), (15 << 40, 968)] {
        let written = formatted(&path, bytes);
        assert!(written <= limit * BLOCK_SIZE, "{bytes}: {written} bytes");
        let on_disk = File::open(&path).unwrap().metadata().unwrap().blocks() * 512;
        assert!(on_disk <= written + 16 * BLOCK_SIZE, "{bytes}: {on_disk} bytes on disk for {written}");
    }
}

#[test]
fn the_same_size_and_identity_give_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let image = |name: &str| {
        let path = folder.path().join(name);
        formatted(&path, MIN_BYTES);
        std::fs::read(path).unwrap()
    };
    assert!(image("a") == image("b"));
}

/// The kernel takes it, and everything written is there after a second mount.
#[test]
fn the_kernel_mounts_it() {
    let root = Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
    if !root || !Path::new("/dev/loop-control").exists() {
        eprintln!("skipped: needs root and loop devices");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let target = folder.path().join("mnt");
    std::fs::create_dir(&target).unwrap();
    formatted(&path, 300 << 20);
    let options = format!("loop,{}", ext4_format::MOUNT_OPTIONS);
    let mount = || {
        let status =
            Command::new("mount").args(["-t", "ext4", "-o", &options]).arg(&path).arg(&target).status();
        assert!(status.unwrap().success());
    };
    let unmount = || assert!(Command::new("umount").arg(&target).status().unwrap().success());
    mount();
    for index in 0..2000 {
        let directory = target.join(format!("directory-{}", index % 40));
        std::fs::create_dir_all(&directory).unwrap();
        let file = File::create(directory.join(format!("file-{index}"))).unwrap();
        file.write_all_at(&[b'x'; 5000], index).unwrap();
    }
    unmount();
    tool("e2fsck", &["-f", "-n"], &path);
    mount();
    for index in 0..2000_usize {
        let content = std::fs::read(target.join(format!("directory-{}/file-{index}", index % 40))).unwrap();
        assert!(content.len() == index + 5000 && content[index..].iter().all(|byte| *byte == b'x'));
    }
    unmount();
}
