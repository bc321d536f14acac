//! Scratch space on a real kernel: what the host sees of it, and what happens when the host changes it.
//!
//! Needs root, device-mapper with dm-integrity and dm-crypt, ext4, loop devices and a memory disk, and uses
//! `/dev/ram0`, so it runs in a virtual machine of its own and is ignored elsewhere. A loop device over a sparse
//! file stands for the host's disk.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{Advice, fadvise};
use uvm_agent::layers::dm::DeviceMapper;
use uvm_agent::layers::mount::unmount;
use uvm_agent::scratch::{self, Device, Disks};

/// Three block groups of the file system: the first, one that is uninitialised, the last.
const SIZE: u64 = 320 << 20;
const BLOCK: usize = 4096;
const CANARY: &[u8] = b"this text must never reach the host's disk in the clear";
const MEMORY_DISK: &str = "/dev/ram0";

/// The host's side: a sparse file, and the loop device that shows it.
struct Host {
    file: File,
    device: String,
    _folder: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("scratch");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        file.set_len(SIZE).unwrap();
        let device = run("losetup", &["-f", "--show", path.to_str().unwrap()]).trim().to_owned();
        // As at boot: nothing is in it.
        let memory = File::options().write(true).open(MEMORY_DISK).unwrap();
        memory.write_all_at(&[0; 1 << 18], 0).unwrap();
        memory.sync_all().unwrap();
        Self { file, device, _folder: folder }
    }

    fn assemble(&self) -> Device {
        let disks = Disks { host: number(&self.device), memory: number(MEMORY_DISK), bytes: SIZE };
        scratch::assemble(&disks).unwrap()
    }

    /// Everything on the host's disk.
    fn content(&self) -> Vec<u8> {
        let mut content = vec![0; usize::try_from(SIZE).unwrap()];
        self.file.read_exact_at(&mut content, 0).unwrap();
        content
    }

    /// What was written to it, holes left out.
    fn written(&self) -> Vec<u8> {
        let content = self.content();
        content.chunks(BLOCK).filter(|block| **block != [0; BLOCK]).collect::<Vec<_>>().concat()
    }

    fn bytes_on_disk(&self) -> u64 {
        self.file.metadata().unwrap().blocks() * 512
    }

    fn release(self, device: &Device) {
        let mapper = DeviceMapper::open().unwrap();
        device.parts.iter().for_each(|name| mapper.remove(name).unwrap());
        run("losetup", &["-d", &self.device]);
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn number(node: &str) -> String {
    let number = fs::metadata(node).unwrap().rdev();
    format!("{}:{}", rustix::fs::major(number), rustix::fs::minor(number))
}

/// Complaints of the kernel about sectors that it could not authenticate, so far.
fn complaints() -> usize {
    run("dmesg", &[]).matches("INTEGRITY AEAD ERROR").count()
}

fn drop_caches() {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
}

/// Reads a block of `device`, past the page cache.
fn read_block(device: &Device, block: u64) -> io::Result<Vec<u8>> {
    let node = File::open(&device.node)?;
    fadvise(&node, 0, None, Advice::DontNeed)?;
    let mut content = vec![0; BLOCK];
    node.read_exact_at(&mut content, block * 4096).map(|()| content)
}

fn write_block(device: &Device, block: u64, byte: u8) {
    let node = File::options().write(true).open(&device.node).unwrap();
    node.write_all_at(&[byte; BLOCK], block * 4096).unwrap();
    node.sync_all().unwrap();
}

/// The one test, because there is one memory disk.
#[test]
#[ignore = "needs root, device-mapper, loop devices and /dev/ram0"]
fn scratch_space() {
    run("modprobe", &["-a", "loop", "dm-crypt", "dm-integrity", "authenc", "xts"]);
    run("modprobe", &["brd", "rd_nr=1", "rd_size=256"]);
    changed_sectors_are_read_errors();
    what_the_host_left_is_not_believed();
    files_are_kept_and_hidden();
}

fn changed_sectors_are_read_errors() {
    let host = Host::new();
    let device = host.assemble();
    assert_eq!(host.bytes_on_disk(), 0, "making the device writes nothing");
    let before = complaints();
    assert!(read_block(&device, 7).is_err(), "what was never written cannot be read");
    assert!(complaints() > before, "the kernel says so");

    write_block(&device, 7, b'a');
    write_block(&device, 8, b'b');
    assert_eq!(read_block(&device, 7).unwrap(), [b'a'; BLOCK]);
    let content = host.content();
    let block = |index: usize| &content[index * BLOCK..][..BLOCK];
    let written: Vec<usize> =
        (0..content.len() / BLOCK).filter(|index| *block(*index) != [0; BLOCK]).collect();
    // One block of tags, then the two blocks of data.
    let [_, a, b] = written[..] else { panic!("blocks {written:?} are written, expected three") };

    let put = |index: usize, content: &[u8]| {
        let at = u64::try_from(index * BLOCK).unwrap();
        host.file.write_all_at(content, at).unwrap();
    };
    let mut flipped = block(a).to_vec();
    flipped[1000] ^= 1;
    put(a, &flipped);
    assert!(read_block(&device, 7).is_err(), "a flipped bit");
    put(a, block(b));
    assert!(read_block(&device, 7).is_err(), "another sector's contents");
    put(a, &[0; BLOCK]);
    assert!(read_block(&device, 7).is_err(), "zeros");
    put(a, block(a));
    assert_eq!(read_block(&device, 7).unwrap(), [b'a'; BLOCK]);
    assert_eq!(read_block(&device, 8).unwrap(), [b'b'; BLOCK]);
    host.release(&device);
}

/// A disk full of somebody else's data, with what was a superblock in front.
fn what_the_host_left_is_not_believed() {
    let host = Host::new();
    let mut old = vec![0xa5; usize::try_from(SIZE).unwrap()];
    old[..8].copy_from_slice(b"integrt\0");
    host.file.write_all_at(&old, 0).unwrap();
    let target = tempfile::tempdir().unwrap();
    let device = host.assemble();
    scratch::mount_new(&device, target.path()).unwrap();
    fs::write(target.path().join("file"), CANARY).unwrap();
    drop_caches();
    assert_eq!(fs::read(target.path().join("file")).unwrap(), CANARY);
    unmount(target.path()).unwrap();
    host.release(&device);
}

fn files_are_kept_and_hidden() {
    let host = Host::new();
    let before = complaints();
    let target = tempfile::tempdir().unwrap();
    let device = host.assemble();
    scratch::mount_new(&device, target.path()).unwrap();
    assert!(host.bytes_on_disk() < 1 << 20, "{} bytes for an empty file system", host.bytes_on_disk());

    let root = target.path();
    let paths: Vec<PathBuf> = (0..1500).map(|index| write_file(root, index)).collect();
    drop_caches();
    for (index, path) in paths.iter().enumerate() {
        assert_eq!(fs::read(path).unwrap(), content_of(index), "{}", path.display());
    }
    // Every second file makes room for a new one, in inodes and blocks that were used before.
    for path in paths.iter().step_by(2) {
        fs::remove_file(path).unwrap();
    }
    drop_caches();
    for index in (0..1500).step_by(2) {
        assert_eq!(write_file(root, index), paths[index]);
    }
    drop_caches();
    for (index, path) in paths.iter().enumerate() {
        assert_eq!(fs::read(path).unwrap(), content_of(index), "{}", path.display());
    }
    let used = 4096 * 1500 * 2;
    assert!(host.bytes_on_disk() < used + (8 << 20), "{} bytes on the host's disk", host.bytes_on_disk());

    odd_files(root);
    assert_eq!(complaints(), before, "the kernel read what was never written:\n{}", run("dmesg", &[]));

    let content = host.written();
    for secret in [CANARY, b"directory-"] {
        assert_eq!(memchr::memmem::find(&content, secret), None, "the host can read {secret:?}");
    }
    unmount(target.path()).unwrap();
    host.release(&device);
}

/// What else takes blocks: holes, preallocation, long links, attributes, a directory with an index, direct writes.
fn odd_files(root: &Path) {
    let directory = root.join("odd");
    fs::create_dir(&directory).unwrap();
    let sparse =
        File::options().read(true).write(true).create_new(true).open(directory.join("sparse")).unwrap();
    // Enough pieces for a tree of extents that is two levels deep.
    for piece in 0..2000_u64 {
        sparse.write_all_at(b"piece", piece * 40_000).unwrap();
    }
    let reserved = File::create_new(directory.join("reserved")).unwrap();
    rustix::fs::fallocate(&reserved, rustix::fs::FallocateFlags::empty(), 0, 4 << 20).unwrap();
    reserved.write_all_at(b"within", 1_000_001).unwrap();
    let link = "/".repeat(3000);
    std::os::unix::fs::symlink(&link, directory.join("link")).unwrap();
    let attribute = [7; 3500];
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(directory.join("sparse"), "user.large", &attribute, flags).unwrap();
    let names = directory.join("names");
    fs::create_dir(&names).unwrap();
    for index in 0..3000 {
        fs::hard_link(directory.join("reserved"), names.join(format!("{index:0200}"))).unwrap();
    }
    run(
        "dd",
        &[
            "if=/dev/zero",
            "bs=4096",
            "seek=3",
            "count=5",
            "oflag=direct",
            &format!("of={}", directory.join("direct").display()),
        ],
    );

    drop_caches();
    let mut found = [0; 5];
    for piece in 0..2000_u64 {
        sparse.read_exact_at(&mut found, piece * 40_000).unwrap();
        assert_eq!(&found, b"piece");
    }
    let mut whole = fs::read(directory.join("reserved")).unwrap();
    assert_eq!(whole.len(), 4 << 20);
    whole
        .drain(1_000_001..1_000_007)
        .zip(b"within")
        .for_each(|(found, expected)| assert_eq!(found, *expected));
    assert!(whole.iter().all(|byte| *byte == 0), "preallocated space is zeros");
    assert_eq!(fs::read_link(directory.join("link")).unwrap().to_str().unwrap(), link);
    let mut value = [0; 4096];
    let length = rustix::fs::getxattr(directory.join("sparse"), "user.large", &mut value[..]).unwrap();
    assert_eq!(value[..length], attribute);
    assert_eq!(fs::read_dir(&names).unwrap().count(), 3000);
    assert_eq!(fs::read(directory.join("direct")).unwrap(), [0; 8 * BLOCK]);
    fs::remove_dir_all(&directory).unwrap();
}

/// Up to two blocks of text, ending within a block.
fn content_of(index: usize) -> Vec<u8> {
    CANARY.repeat(1 + index % 149)
}

fn write_file(root: &Path, index: usize) -> PathBuf {
    let directory = root.join(format!("directory-{}", index % 30));
    fs::create_dir_all(&directory).unwrap();
    let path = directory.join(format!("file-{index}"));
    fs::write(&path, content_of(index)).unwrap();
    path
}
