//! The archive's form, and, where there are Debian packages, the real images.

use std::collections::BTreeMap;
use std::io::Read;

use flate2::read::GzDecoder;
use oci_spec::image::{ImageConfiguration, ImageIndex, ImageManifest};
use sha2::{Digest, Sha256};

use super::files::{Entry, Files, check_libraries};
use super::*;

fn members(archive: &Path) -> BTreeMap<String, Vec<u8>> {
    let bytes = fs::read(archive).unwrap();
    let mut members = BTreeMap::new();
    for entry in tar::Archive::new(&bytes[..]).entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        members.insert(entry.path().unwrap().display().to_string(), content);
    }
    members
}

fn layer(paths: &[(&str, &[u8])]) -> Files {
    let regular = |content: &[u8]| Entry::Regular { mode: 0o755, content: content.to_vec() };
    Files(paths.iter().map(|&(path, content)| (path.to_owned(), regular(content))).collect())
}

/// Follows the archive from its index to its layers, every digest and size on the way checked; returns the
/// layers' tar archives.
fn follow(members: &BTreeMap<String, Vec<u8>>, reference: &str) -> Vec<Vec<u8>> {
    let blob = |descriptor: &oci_spec::image::Descriptor| {
        let bytes = &members[&format!("blobs/sha256/{}", descriptor.digest().digest())];
        assert_eq!(descriptor.digest().digest(), hex::encode(Sha256::digest(bytes)));
        assert_eq!(descriptor.size(), bytes.len() as u64);
        bytes
    };
    let index = ImageIndex::from_reader(&members["index.json"][..]).unwrap();
    let [manifest] = &index.manifests()[..] else { panic!("{index:?}") };
    assert_eq!(manifest.annotations().as_ref().unwrap()["io.containerd.image.name"], reference);
    let manifest = ImageManifest::from_reader(&blob(manifest)[..]).unwrap();
    let config = ImageConfiguration::from_reader(&blob(manifest.config())[..]).unwrap();
    let diff_ids = config.rootfs().diff_ids();
    assert_eq!(diff_ids.len(), manifest.layers().len());
    let unpacked = manifest.layers().iter().zip(diff_ids).map(|(layer, diff_id)| {
        let mut tar = Vec::new();
        GzDecoder::new(&blob(layer)[..]).read_to_end(&mut tar).unwrap();
        assert_eq!(*diff_id, format!("sha256:{}", hex::encode(Sha256::digest(&tar))));
        tar
    });
    unpacked.collect()
}

#[test]
fn archives_are_valid_and_equal_inputs_give_equal_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let layers = [layer(&[("a", b"1"), ("b", b"2")]), layer(&[("b", b"3")])];
    let config = archive::Config { reference: "docker.io/library/x:uvm", command: &["a", ""] };
    let (one, other) = (directory.path().join("one.tar"), directory.path().join("other.tar"));
    archive::write(&layers, &config, &one).unwrap();
    archive::write(&layers, &config, &other).unwrap();
    assert!(fs::read(&one).unwrap() == fs::read(&other).unwrap());
    assert_eq!(follow(&members(&one), config.reference).len(), 2);
}

#[test]
fn lines_of_apt_get_are_read_or_refused() {
    let digest = "ab".repeat(32);
    let package =
        packages::parse_uri_line(&format!("'u' libc6_2.36-9_amd64.deb 12 SHA256:{digest}")).unwrap();
    assert_eq!(package.name, "libc6");
    for line in [
        String::new(),
        format!("'u' libc6_2_amd64.deb SHA256:{digest}"),
        format!("'u' libc6_2_amd64.deb 12 MD5Sum:{digest}"),
        "'u' libc6_2_amd64.deb 12 SHA256:ab".to_owned(),
        format!("'u' ../x_2.deb 12 SHA256:{digest}"),
        format!("'u' libc6.deb 12 SHA256:{digest}"),
    ] {
        assert!(packages::parse_uri_line(&line).is_err(), "{line:?}");
    }
}

#[test]
fn a_missing_library_is_named() {
    let test = std::env::current_exe().unwrap();
    let program = fs::read(test).unwrap();
    let alone = [layer(&[("bin/test", &program)])];
    let error = check_libraries(&alone).unwrap_err().to_string();
    assert!(error.contains("bin/test: expected libc.so.6") || error.contains("libgcc_s.so.1"), "{error}");
    let libraries =
        ["libc.so.6", "libgcc_s.so.1", "libm.so.6", "ld-linux-x86-64.so.2"].map(|name| (name, &b"x"[..]));
    let complete = [layer(&[("bin/test", &program)]), layer(&libraries)];
    check_libraries(&complete).unwrap();
}

/// Builds the real images: needs apt-get's package lists and, the first time, a package mirror.
#[test]
fn real_images_are_complete_and_cached() {
    if packages::resolve(&["busybox-static"]).is_err() {
        eprintln!("skipped: no Debian package lists here");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let progress = ProgressBar::hidden();
    let image = redis(directory.path(), &progress).unwrap();
    let tars = follow(&members(&image.path), image.reference);
    let mut paths = Vec::new();
    for tar in &tars {
        for entry in tar::Archive::new(&tar[..]).entries().unwrap() {
            paths.push(entry.unwrap().path().unwrap().display().to_string());
        }
    }
    assert_eq!(tars.len(), 3);
    for path in ["bin/sh", "usr/bin/redis-server", "usr/bin/redis-cli", "etc/passwd"] {
        assert!(paths.iter().any(|found| found == path), "{path} is missing");
    }
    let first = fs::read(&image.path).unwrap();
    let written = fs::metadata(&image.path).unwrap().modified().unwrap();
    assert_eq!(redis(directory.path(), &progress).unwrap(), image);
    assert_eq!(fs::metadata(&image.path).unwrap().modified().unwrap(), written, "built again without need");
    fs::remove_file(&image.path).unwrap();
    redis(directory.path(), &progress).unwrap();
    assert!(fs::read(&image.path).unwrap() == first, "built again, the bytes differ");
    assert_eq!(
        follow(&members(&busybox(directory.path(), &progress).unwrap().path), BUSYBOX.reference).len(),
        1
    );
}
