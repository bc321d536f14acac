//! Layers that containerd's erofs snapshotter made: taken over if their root hash is right, else converted.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail with the test")]

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use snapshotter::convert::Converter as _;
use snapshotter::digest::Digest;
use snapshotter::{adopt, check};
use support::{Image, Setup, converter, layer};

mod support;

/// Writes a layer as containerd does: data, superblock with an identity, tree; the metadata beside it.
fn make(cache: &Path, tar: &[u8]) -> (PathBuf, String, u64) {
    let path = adopt::path(cache, Digest::of(tar));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    let converted = converter().convert(Box::new(std::io::Cursor::new(tar.to_vec())), &file).unwrap();
    let offset = converted.layer.data_blocks * 4096;
    // veritysetup gives each superblock an identity of its own.
    file.write_all_at(&[7; 16], offset + 16).unwrap();
    let root = converted.layer.root.to_string();
    state(&path, &root, offset);
    (path, root, offset)
}

fn state(layer: &Path, root: &str, offset: u64) {
    let text = format!(r#"{{"roothash":"{root}","hashoffset":{offset}}}"#);
    fs::write(format!("{}.dmverity", layer.display()), text).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_with_the_stated_root_hash_is_taken_over() {
    let cache = tempfile::tempdir().unwrap();
    let setup = Setup::adopting(vec![cache.path().into()]).await;
    let image = Image::new(&[layer(&[("a", 700_000)])]);
    let (_, root, _) = make(cache.path(), &image.layers[0]);
    // The blob is not even there.
    setup.content.put_documents(&image);
    setup.client.unpack(&image, "1").await.unwrap();
    assert_eq!(setup.conversions(), 0);
    assert_eq!(check::layer(&setup.store.layer_directory(1)).unwrap().root_hash(), root);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_differs_in_anything_is_converted_from_its_blob() {
    let image = Image::new(&[layer(&[("a", 700_000)])]);
    type Spoil = fn(&Path, &str, u64);
    let spoil: [(&str, Spoil); 7] = [
        ("root hash", |path, root, offset| state(path, &root.replace(['0', '1', '2', '3'], "4"), offset)),
        ("offset", |path, root, offset| state(path, root, offset - 4096)),
        ("no metadata", |path, _, _| fs::remove_file(format!("{}.dmverity", path.display())).unwrap()),
        ("data", |path, _, _| flip(path, 5000)),
        ("tree", |path, _, offset| flip(path, offset + 4096 + 40)),
        ("salt", |path, _, offset| flip(path, offset + 88)),
        ("length", |path, _, offset| truncate(path, offset + 4096)),
    ];
    for (what, spoil) in spoil {
        let cache = tempfile::tempdir().unwrap();
        let setup = Setup::adopting(vec![cache.path().into()]).await;
        let (path, root, offset) = make(cache.path(), &image.layers[0]);
        spoil(&path, &root, offset);
        assert!(adopt::adopt(&setup.store, &path, image.chain[0]).is_err(), "{what}");
        assert!(setup.entries("layers").is_empty() && setup.entries("staging").is_empty(), "{what}");
        setup.content.put_image(&image);
        setup.client.unpack(&image, "1").await.unwrap();
        assert_eq!(setup.conversions(), 1, "{what}");
    }
}

fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

fn truncate(path: &Path, length: u64) {
    File::options().write(true).open(path).unwrap().set_len(length).unwrap();
}
