//! Images against readers that are not ours: fsck.erofs extracts them, the kernel mounts them.
#![allow(clippy::unwrap_used, reason = "what fails in a helper has failed the test")]

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::Command;

use erofs_verity::erofs::{Image, WriteError};
use erofs_verity::layer::Layer;
use erofs_verity::source::Content;
use erofs_verity::source::dir::{self, Fidelity, HostFile};
use erofs_verity::tree::{DeviceNumber, Kind, Metadata, Node, Timestamp, Tree, Xattrs};
use proptest::prelude::*;

mod listing;
use listing::list;

fn metadata(permissions: u16, uid: u32, seconds: i64) -> Metadata {
    Metadata {
        permissions,
        uid,
        gid: uid / 2,
        mtime: Timestamp { seconds, nanoseconds: u32::from(seconds != 0) * 7 },
        xattrs: Xattrs::new(),
    }
}

fn plain(kind: Kind<Vec<u8>>) -> Node<Vec<u8>> {
    Node { metadata: metadata(0o644, 0, 0), kind }
}

fn file(content: Vec<u8>) -> Node<Vec<u8>> {
    plain(Kind::Regular { size: content.len() as u64, content })
}

fn symlink(len: usize) -> Node<Vec<u8>> {
    Node { metadata: metadata(0o777, 0, 0), kind: Kind::Symlink(vec![b't'; len]) }
}

fn image<C: Content>(tree: &Tree<C>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let image = Image::new(tree).unwrap();
    image.write_to(&mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, u64::from(image.blocks()) * 4096);
    bytes
}

/// One of everything, and the sizes at which layouts change.
fn everything() -> Tree<Vec<u8>> {
    let mut tree = Tree::new(metadata(0o755, 0, 0)).unwrap();
    tree.insert(b"dir", Node { metadata: metadata(0o1777, 70_000, 1_700_000_000), kind: Kind::Directory })
        .unwrap();
    for len in [0, 1, 4095, 4096, 4097, 300_000] {
        let content = (0..len).map(|n| u8::try_from(n % 251).unwrap()).collect();
        tree.insert(format!("dir/file-{len}").as_bytes(), file(content)).unwrap();
    }
    let target = tree
        .insert(b"zz-first", Node { metadata: metadata(0o4755, 3, -5), ..file(b"linked".to_vec()) })
        .unwrap();
    let dir = tree.lookup(b"dir").unwrap();
    tree.link(dir, b"second", target).unwrap();
    for len in [1, 100, 4000, 4040, 4064, 4065, 4095] {
        tree.insert(format!("link-{len}").as_bytes(), symlink(len)).unwrap();
    }
    let number = |major, minor| DeviceNumber { major, minor };
    tree.insert(b"null", plain(Kind::CharDevice(number(1, 3)))).unwrap();
    tree.insert(b"disk", plain(Kind::BlockDevice(number(259, 0x12345)))).unwrap();
    tree.insert(b"whiteout", plain(Kind::CharDevice(number(0, 0)))).unwrap();
    tree.insert(b"pipe", plain(Kind::Fifo)).unwrap();
    tree.insert(b"socket", plain(Kind::Socket)).unwrap();
    // Sort before "." and "..", and are no text.
    for name in [&b"!bang"[..], b"-dash", b"...", b"\xff\xfe", &[b'n'; 255]] {
        tree.insert(name, file(name.to_vec())).unwrap();
    }
    let mut many = metadata(0o700, 1, 1);
    for (name, len) in
        [("user.small", 3), ("user.empty", 0), ("trusted.overlay.opaque", 1), ("user.large", 60_000)]
    {
        many.xattrs.insert(name.into(), vec![b'y'; len]);
    }
    // The kernel reads file capabilities before it shows them: version 2, CAP_NET_BIND_SERVICE, effective.
    let capability = [&[1, 0, 0, 2, 0, 4][..], &[0; 14]].concat();
    many.xattrs.insert(b"security.capability".to_vec(), capability);
    tree.insert(b"attributes", Node { metadata: many.clone(), ..file(b"with attributes".to_vec()) }).unwrap();
    tree.insert(b"attributes-dir", Node { metadata: many, kind: Kind::Directory }).unwrap();
    tree.insert(b"large", plain(Kind::Directory)).unwrap();
    for n in 0..10_000 {
        tree.insert(format!("large/entry-with-a-name-{n}").as_bytes(), file(Vec::new())).unwrap();
    }
    let mut deep = b"deep".to_vec();
    for _ in 0..300 {
        tree.insert(&deep, plain(Kind::Directory)).unwrap();
        deep.extend_from_slice(b"/d");
    }
    tree
}

fn installed(tool: &str, package: &str) -> bool {
    let found = Command::new(tool).arg("-V").output().is_ok();
    if !found {
        eprintln!("skipped: {tool} (Debian package {package}) is not installed");
    }
    found
}

fn write_temporary(bytes: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    file
}

#[test]
fn fsck_extracts_what_went_in() {
    if !installed("fsck.erofs", "erofs-utils") {
        return;
    }
    let tree = everything();
    let file = write_temporary(&image(&tree));
    let out = tempfile::tempdir().unwrap();
    let target = out.path().join("x");
    let output = Command::new("fsck.erofs")
        .arg(format!("--extract={}", target.display()))
        .arg(file.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut wanted = list(&tree);
    let mut found = list(&dir::read(&target, Fidelity::Exact).unwrap());
    // fsck.erofs restores neither extended attributes nor hard links, and owners only for root.
    for entry in wanted.values_mut().chain(found.values_mut()) {
        entry.reduce_to_contents();
    }
    listing::assert_same(&wanted, &found);
}

#[test]
fn the_kernel_mounts_what_went_in() {
    let tree = everything();
    let file = write_temporary(&image(&tree));
    let Some(mount) = Mount::new(file.path()) else { return };
    let found = list(&dir::read(mount.0.path(), Fidelity::Exact).unwrap());
    listing::assert_same(&list(&tree), &found);
    for name in ["large/entry-with-a-name-0", "large/entry-with-a-name-9999", "...", "-dash", "dir/second"] {
        assert!(mount.0.path().join(name).exists(), "lookup of {name}");
    }
    assert!(!mount.0.path().join("large/entry-with-a-name-").exists());
}

/// A loop mount for as long as the value lives.
struct Mount(tempfile::TempDir);

impl Mount {
    fn new(image: &Path) -> Option<Self> {
        let place = tempfile::tempdir().unwrap();
        let output = Command::new("mount")
            .args(["-t", "erofs", "-o", "ro,loop"])
            .arg(image)
            .arg(place.path())
            .output()
            .unwrap();
        if output.status.success() {
            return Some(Self(place));
        }
        let known = std::fs::read_to_string("/proc/filesystems").unwrap().contains("\terofs\n");
        let root =
            std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        let refused = message.contains("wrong fs type") || message.contains("bad superblock");
        assert!(!(known && root && refused), "the kernel refuses the image: {message}");
        eprintln!("skipped: cannot mount erofs here: {}", message.trim());
        None
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn order_of_adding_leaves_no_trace() {
    let build = |order: [&str; 6]| {
        let mut tree = Tree::new(Metadata::default()).unwrap();
        for name in order {
            let node = if name.ends_with('f') { file(name.into()) } else { plain(Kind::Directory) };
            tree.insert(name.as_bytes(), node).unwrap();
        }
        image(&tree)
    };
    let one = build(["b", "a", "b/f", "c", "a/f", "f"]);
    assert!(one == build(["f", "c", "a", "b", "a/f", "b/f"]));
    assert!(one != build(["f", "c", "a", "b", "a/f", "c/f"]));
}

#[test]
fn contents_that_lie_about_their_size_are_refused() {
    for (size, len) in [(5, 4), (4, 5), (0, 1), (1, 0)] {
        let mut tree = Tree::new(Metadata::default()).unwrap();
        tree.insert(b"f", plain(Kind::Regular { size, content: vec![0; len] })).unwrap();
        match Image::new(&tree).unwrap().write_to(Vec::new()) {
            Err(WriteError::ContentSize { path, expected, .. }) => {
                assert_eq!((path.as_str(), expected), ("/f", size))
            }
            other => panic!("{size} declared, {len} there: {other:?}"),
        }
    }
}

#[test]
fn what_no_image_can_hold_is_refused() {
    let mut tree = Tree::new(Metadata::default()).unwrap();
    let mut refused = |name: &[u8], node: Node<Vec<u8>>, message: &str| {
        let error = tree.insert(name, node).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    };
    refused(&[b'n'; 256], file(vec![]), "expected a name of 1 to 255 bytes");
    refused(b"..", file(vec![]), "expected a name");
    refused(b"a\0b", file(vec![]), "expected a name");
    refused(b"missing/f", file(vec![]), "missing: no such node");
    refused(b"l", plain(Kind::Symlink(vec![b'x'; 4096])), "expected a target of 1 to 4095 bytes, found 4096");
    refused(b"l", plain(Kind::Symlink(vec![])), "found 0");
    let number = DeviceNumber { major: 4096, minor: 0 };
    refused(
        b"d",
        plain(Kind::CharDevice(number)),
        "/d: device number: expected at most 4095:1048575, found 4096:0",
    );
    refused(b"m", Node { metadata: metadata(0o10000, 0, 0), ..file(vec![]) }, "permissions");
    let huge = Kind::Regular { size: 1 << 60, content: vec![] };
    tree.insert(b"huge", plain(huge)).unwrap();
    assert!(matches!(Image::new(&tree), Err(WriteError::TooLarge { .. })));
    assert!(tree.insert(b"huge", file(vec![])).unwrap_err().to_string().contains("in the tree already"));
    assert!(tree.insert(b"huge/x", file(vec![])).unwrap_err().to_string().contains("expected a directory"));
    let root = Tree::<Vec<u8>>::ROOT;
    assert!(tree.link(root, b"again", root).unwrap_err().to_string().contains("hard link"));
}

#[test]
fn a_layer_is_image_superblock_and_tree() {
    let tree = everything();
    let mut bytes = Vec::new();
    let layer = Layer::write(&tree, &mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, layer.length);
    let data = usize::try_from(layer.data_blocks).unwrap() * 4096;
    assert!(bytes[..data] == image(&tree));
    let superblock = erofs_verity::verity::Superblock::parse(&bytes[data..]).unwrap();
    assert_eq!(superblock.data_blocks, layer.data_blocks);
    assert_eq!(layer.tree_offset, data as u64 + 4096);
    let mut again = Vec::new();
    assert_eq!(Layer::write(&tree, &mut again).unwrap(), layer);
    assert!(bytes == again);
}

#[test]
fn a_file_that_changes_after_it_was_listed_is_noticed() {
    let host = tempfile::tempdir().unwrap();
    std::fs::write(host.path().join("f"), "four").unwrap();
    let tree: Tree<HostFile> = dir::read(host.path(), Fidelity::Exact).unwrap();
    let write = || Image::new(&tree).unwrap().write_to(Vec::new());
    write().unwrap();
    std::fs::write(host.path().join("f"), "longer").unwrap();
    assert!(matches!(write(), Err(WriteError::ContentSize { expected: 4, .. })));
    std::fs::remove_file(host.path().join("f")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", host.path().join("f")).unwrap();
    assert!(matches!(write(), Err(WriteError::Content { .. })));
}

#[test]
fn the_root_digest_of_the_format_is_fixed() {
    let mut tree = Tree::new(metadata(0o755, 0, 0)).unwrap();
    tree.insert(b"bin", plain(Kind::Directory)).unwrap();
    tree.insert(b"bin/sh", Node { metadata: metadata(0o755, 1000, 1_600_000_000), ..file(vec![7; 5000]) })
        .unwrap();
    tree.insert(b"sh", plain(Kind::Symlink(b"bin/sh".to_vec()))).unwrap();
    let layer = Layer::write(&tree, Vec::new()).unwrap();
    // Changes only when the layout does, and then every owner's digests change with it.
    assert_eq!(layer.root.to_string(), "aa237b457384a44c620b626f2fd7c940dfce8ba928f22c2c88195b98582a0906");
}

fn nodes() -> impl Strategy<Value = Vec<(u8, Vec<u8>, Node<Vec<u8>>)>> {
    let metadata = (0..0o7777u16, any::<u32>(), any::<i32>(), proptest::collection::vec(any::<u8>(), 0..300))
        .prop_map(|(permissions, uid, seconds, value)| {
            let mut made = metadata(permissions, uid, i64::from(seconds) * i64::from(uid % 2));
            if uid % 3 == 0 {
                made.xattrs.insert(b"trusted.overlay.test".to_vec(), value);
            }
            made
        });
    let kind = prop_oneof![
        3 => Just(Kind::Directory),
        3 => (0..9000usize, any::<u8>()).prop_map(|(len, byte)| Kind::Regular { size: len as u64, content: vec![byte; len] }),
        1 => (1..4096usize).prop_map(|len| Kind::Symlink(vec![b'l'; len])),
        1 => (0..4096u32, 0..0x10_0000u32).prop_map(|(major, minor)| Kind::BlockDevice(DeviceNumber { major, minor })),
        1 => Just(Kind::Fifo),
    ];
    let node = (metadata, kind).prop_map(|(metadata, kind)| Node { metadata, kind });
    proptest::collection::vec((any::<u8>(), proptest::collection::vec(b'!'..b'/', 1..255), node), 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_tree_comes_back_from_the_kernel(nodes in nodes()) {
        let mut tree = Tree::new(metadata(0o755, 0, 0)).unwrap();
        let mut directories = vec![Tree::<Vec<u8>>::ROOT];
        for (parent, name, node) in nodes {
            let is_directory = matches!(node.kind, Kind::Directory);
            let parent = directories[usize::from(parent) % directories.len()];
            // Names that exist already or are dots are refused, which leaves the tree as it was.
            if let Ok(id) = tree.add(parent, &name, node) && is_directory {
                directories.push(id);
            }
        }
        let file = write_temporary(&image(&tree));
        if let Some(mount) = Mount::new(file.path()) {
            let found = list(&dir::read(mount.0.path(), Fidelity::Exact).unwrap());
            listing::assert_same(&list(&tree), &found);
        }
        if Command::new("fsck.erofs").arg("-V").output().is_ok() {
            prop_assert!(Command::new("fsck.erofs").arg(file.path()).output().unwrap().status.success());
        }
        let mut bytes = Vec::new();
        File::open(file.path()).unwrap().read_to_end(&mut bytes).unwrap();
        prop_assert!(bytes == image(&tree));
    }
}
