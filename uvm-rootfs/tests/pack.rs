//! Packing as the command line does it: equal bytes, a correct kernel argument, refusals.
#![allow(clippy::unwrap_used, reason = "what fails in a helper has failed the test")]

use std::fs;
use std::path::{Path, PathBuf};

use erofs_verity::layer::{LayerWriter, Settings};
use uvm_rootfs::{Manifest, pack};

const MINIMAL: &str = "[agent]\npath = \"/init\"\n";

/// A 64-bit ELF header with one program header of type `segment`.
fn elf(machine: u8, segment: u8) -> Vec<u8> {
    let mut bytes = vec![0; 120];
    bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    for (offset, value) in
        [(16, 2), (18, machine), (20, 1), (32, 64), (52, 64), (54, 56), (56, 1), (64, segment)]
    {
        bytes[offset] = value;
    }
    bytes
}

fn agent(directory: &Path, bytes: &[u8]) -> PathBuf {
    let path = directory.join("agent");
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn packed_twice_the_bytes_are_equal() {
    let directory = tempfile::tempdir().unwrap();
    let agent = agent(directory.path(), &elf(62, 1));
    let (one, other) = (directory.path().join("one.img"), directory.path().join("other.img"));
    let manifest = Manifest::own().unwrap();
    let info = pack(&manifest, &agent, &one).unwrap();
    assert_eq!(pack(&manifest, &agent, &other).unwrap(), info);
    let bytes = fs::read(&one).unwrap();
    assert!(bytes == fs::read(&other).unwrap());
    assert_eq!(bytes.len() as u64, info.length);
    assert_eq!(info.tree_offset, (info.data_blocks + 1) * 4096);
    let hash_start = info.data_blocks + 1;
    let expected = format!(
        "dm-mod.create=\"root,,,ro,0 {} verity 1 /dev/vda /dev/vda 4096 4096 {} {hash_start} sha256 {} {} 1 panic_on_corruption\" root=/dev/dm-0 rootfstype=erofs ro",
        info.data_blocks * 8,
        info.data_blocks,
        info.root_hash,
        "00".repeat(32),
    );
    assert_eq!(info.kernel_arguments, expected);
}

#[test]
fn one_byte_of_the_agent_changes_the_root_hash() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("rootfs.img");
    let manifest = Manifest::own().unwrap();
    let one = pack(&manifest, &agent(directory.path(), &elf(62, 1)), &out).unwrap();
    let mut changed = elf(62, 1);
    changed[119] = 1;
    let other = pack(&manifest, &agent(directory.path(), &changed), &out).unwrap();
    assert_ne!(one.root_hash, other.root_hash);
    assert_ne!(one.agent_sha256, other.agent_sha256);
}

#[test]
fn what_cannot_be_the_first_process_is_refused_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("rootfs.img");
    for (bytes, message) in [
        (b"#!/bin/sh\n".to_vec(), "expected a little-endian 64-bit ELF executable"),
        (elf(183, 1), "expected an executable for x86-64 (ELF machine 62), found machine 183"),
        (elf(62, 3), "expected a static executable"),
        (elf(62, 1)[..100].to_vec(), "expected a little-endian 64-bit ELF executable"),
    ] {
        let path = agent(directory.path(), &bytes);
        let error = pack(&Manifest::own().unwrap(), &path, &out).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
        fs::remove_file(&path).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "{message}");
    }
}

#[test]
fn a_manifest_says_everything_it_means() {
    for (addition, message) in [
        ("[[directory]]\npath = \"/x\"\nmod = 1\n", "unknown field `mod`"),
        ("[[device]]\npath = \"/x\"\n", "unknown field `device`"),
        ("[[directory]]\nmode = 1\n", "missing field `path`"),
    ] {
        let error = Manifest::parse(&format!("{MINIMAL}{addition}")).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    for (addition, message) in [
        ("[[directory]]\npath = \"x\"\n", "expected an absolute path"),
        ("[[directory]]\npath = \"/x/../y\"\n", "expected an absolute path"),
        ("[[directory]]\npath = \"/x/y\"\n", "x: no such node"),
        ("[[directory]]\npath = \"/init\"\n", "/init: is in the tree already"),
        ("[[directory]]\npath = \"/x\"\nmode = 0o70000\n", "permissions"),
    ] {
        let manifest = Manifest::parse(&format!("{MINIMAL}{addition}")).unwrap();
        let out = tempfile::tempfile().unwrap();
        let writer = LayerWriter::new(&out, &Settings::default()).unwrap();
        let error = manifest.write(&[1], writer).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}
