//! Images against readers that are not ours: fsck.erofs extracts them, the kernel mounts them.
#![allow(clippy::unwrap_used, reason = "what fails in a helper has failed the test")]

use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use erofs_verity::layer::{Layer, LayerWriter, Settings, WriteError};
use erofs_verity::source::dir::{self, DirError, Fidelity};
use erofs_verity::tree::{Data, DeviceNumber, Extent, Kind, Metadata, Node, Timestamp, Tree, Xattrs};
use proptest::prelude::*;

mod kept;
mod listing;
use kept::Kept;
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

fn plain(kind: Kind) -> Node {
    Node { metadata: metadata(0o644, 0, 0), kind }
}

/// A layer in the making, with what was put into it.
struct Sample {
    tree: Tree,
    contents: Kept,
    writer: LayerWriter,
    out: tempfile::NamedTempFile,
}

impl Sample {
    fn new(threads: usize) -> Self {
        let out = tempfile::NamedTempFile::new().unwrap();
        let settings = Settings { threads: NonZeroUsize::new(threads).unwrap(), ..Settings::default() };
        let writer = LayerWriter::new(out.as_file(), &settings).unwrap();
        Self { tree: Tree::new(metadata(0o755, 0, 0)).unwrap(), contents: Kept::default(), writer, out }
    }

    fn file(&mut self, content: Vec<u8>) -> Node {
        let (size, extent) = (content.len() as u64, self.writer.content(&content).unwrap());
        self.contents.0.insert(extent.first_block, content);
        plain(Kind::Regular { size, data: Data::Flat(extent) })
    }

    fn insert(&mut self, path: &[u8], node: Node) {
        self.tree.insert(path, node).unwrap();
    }

    fn finish(self) -> (Layer, Vec<u8>, tempfile::NamedTempFile) {
        let layer = self.writer.finish(self.tree).unwrap();
        let bytes = std::fs::read(self.out.path()).unwrap();
        assert_eq!(bytes.len() as u64, layer.length);
        (layer, bytes, self.out)
    }
}

/// A file without content.
fn empty() -> Node {
    plain(Kind::Regular { size: 0, data: Data::Flat(Extent::EMPTY) })
}

fn symlink(len: usize) -> Node {
    Node { metadata: metadata(0o777, 0, 0), kind: Kind::Symlink(vec![b't'; len]) }
}

/// One of everything, and the sizes at which layouts change.
fn everything() -> Sample {
    everything_with(2)
}

fn everything_with(threads: usize) -> Sample {
    let mut sample = Sample::new(threads);
    sample.insert(b"dir", Node { metadata: metadata(0o1777, 70_000, 1_700_000_000), kind: Kind::Directory });
    for len in [0, 1, 4095, 4096, 4097, 300_000] {
        let content = (0..len).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let node = sample.file(content);
        sample.insert(format!("dir/file-{len}").as_bytes(), node);
    }
    let node = Node { metadata: metadata(0o4755, 3, -5), ..sample.file(b"linked".to_vec()) };
    let target = sample.tree.insert(b"zz-first", node).unwrap();
    let dir = sample.tree.lookup(b"dir").unwrap();
    sample.tree.link(dir, b"second", target).unwrap();
    for len in [1, 100, 4000, 4040, 4064, 4065, 4095] {
        sample.insert(format!("link-{len}").as_bytes(), symlink(len));
    }
    let number = |major, minor| DeviceNumber { major, minor };
    sample.insert(b"null", plain(Kind::CharDevice(number(1, 3))));
    sample.insert(b"disk", plain(Kind::BlockDevice(number(259, 0x12345))));
    sample.insert(b"whiteout", plain(Kind::CharDevice(number(0, 0))));
    sample.insert(b"pipe", plain(Kind::Fifo));
    sample.insert(b"socket", plain(Kind::Socket));
    // Sort before "." and "..", and are no text.
    for name in [&b"!bang"[..], b"-dash", b"...", b"\xff\xfe", &[b'n'; 255]] {
        let node = sample.file(name.to_vec());
        sample.insert(name, node);
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
    let node = Node { metadata: many.clone(), ..sample.file(b"with attributes".to_vec()) };
    sample.insert(b"attributes", node);
    sample.insert(b"attributes-dir", Node { metadata: many, kind: Kind::Directory });
    sample.insert(b"large", plain(Kind::Directory));
    for n in 0..10_000 {
        sample.insert(format!("large/entry-with-a-name-{n}").as_bytes(), empty());
    }
    let mut deep = b"deep".to_vec();
    for _ in 0..300 {
        sample.insert(&deep, plain(Kind::Directory));
        deep.extend_from_slice(b"/d");
    }
    sample
}

fn installed(tool: &str, package: &str) -> bool {
    let found = Command::new(tool).arg("-V").output().is_ok();
    if !found {
        eprintln!("skipped: {tool} (Debian package {package}) is not installed");
    }
    found
}

#[test]
fn fsck_extracts_what_went_in() {
    if !installed("fsck.erofs", "erofs-utils") {
        return;
    }
    let sample = everything();
    let mut wanted = list(&sample.tree, &sample.contents);
    let (_, _, file) = sample.finish();
    let out = tempfile::tempdir().unwrap();
    let target = out.path().join("x");
    let output = Command::new("fsck.erofs")
        .arg(format!("--extract={}", target.display()))
        .arg(file.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut found = read(&target);
    // fsck.erofs restores neither extended attributes nor hard links, and owners only for root.
    for entry in wanted.values_mut().chain(found.values_mut()) {
        entry.reduce_to_contents();
    }
    listing::assert_same(&wanted, &found);
}

#[test]
fn the_kernel_mounts_what_went_in() {
    let sample = everything();
    let wanted = list(&sample.tree, &sample.contents);
    let (_, _, file) = sample.finish();
    let Some(mount) = Mount::new(file.path()) else { return };
    listing::assert_same(&wanted, &read(mount.0.path()));
    for name in ["large/entry-with-a-name-0", "large/entry-with-a-name-9999", "...", "-dash", "dir/second"] {
        assert!(mount.0.path().join(name).exists(), "lookup of {name}");
    }
    assert!(!mount.0.path().join("large/entry-with-a-name-").exists());
}

fn read(directory: &Path) -> std::collections::BTreeMap<Vec<u8>, listing::Entry> {
    let mut contents = Kept::default();
    let tree = dir::read(directory, Fidelity::Exact, &mut contents).unwrap();
    list(&tree, &contents)
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
        let mut sample = Sample::new(1);
        for name in order {
            sample
                .insert(name.as_bytes(), if name.ends_with('f') { empty() } else { plain(Kind::Directory) });
        }
        sample.finish().1
    };
    let one = build(["b", "a", "b/f", "c", "a/f", "f"]);
    assert!(one == build(["f", "c", "a", "b", "a/f", "b/f"]));
    assert!(one != build(["f", "c", "a", "b", "a/f", "c/f"]));
}

#[test]
fn threads_leave_no_trace() {
    let one = everything_with(1).finish().1;
    assert!(one == everything_with(5).finish().1);
}

#[test]
fn sparse_files_read_as_zeros_where_they_have_holes() {
    let mut sample = Sample::new(2);
    let chunk = sample.writer.content(&[7; 8192]).unwrap();
    let starts = vec![None, Some(chunk.first_block), None];
    let size = 2 * 8192 + 5000;
    let kind = Kind::Regular { size, data: Data::Chunked { chunk_blocks: 2, starts } };
    sample.insert(b"sparse", plain(kind));
    let (_, _, file) = sample.finish();
    let Some(mount) = Mount::new(file.path()) else { return };
    let found = std::fs::read(mount.0.path().join("sparse")).unwrap();
    assert!(found == [vec![0; 8192], vec![7; 8192], vec![0; 5000]].concat());
}

#[test]
fn a_budget_is_kept_and_what_exceeds_it_is_refused() {
    let budget = 1 << 20;
    let mut tree = Tree::with_budget(Metadata::default(), budget).unwrap();
    let refused = (0..100_000).find_map(|n| tree.insert(format!("{n}").as_bytes(), empty()).err()).unwrap();
    assert!(refused.to_string().contains("expected a tree of at most 1048576 bytes"), "{refused}");
    assert!(tree.bytes() <= budget);
    assert!(tree.bytes() / tree.node_count() <= 120);
}

#[test]
fn what_is_removed_is_gone_with_its_links() {
    let mut tree = Tree::new(Metadata::default()).unwrap();
    let directory = tree.insert(b"d", plain(Kind::Directory)).unwrap();
    let file = tree.insert(b"d/f", empty()).unwrap();
    tree.link(Tree::ROOT, b"other", file).unwrap();
    tree.remove(Tree::ROOT, b"d").unwrap();
    assert_eq!(tree.kind(directory), None);
    assert!(tree.kind(file).is_some() && tree.lookup(b"d/f").is_err());
    tree.remove(Tree::ROOT, b"other").unwrap();
    assert_eq!((tree.kind(file), tree.node_count()), (None, 1));
    assert!(tree.add(directory, b"x", empty()).is_err());
    assert!(tree.remove(Tree::ROOT, b"d").is_err());
    tree.insert(b"d", empty()).unwrap();
}

#[test]
fn content_outside_what_was_written_is_refused() {
    for first_block in [0, 2, u32::MAX] {
        let mut sample = Sample::new(1);
        sample.file(vec![1; 4096]);
        let data = Data::Flat(Extent { first_block, blocks: 1 });
        sample.insert(b"f", plain(Kind::Regular { size: 1, data }));
        let error = sample.writer.finish(sample.tree).unwrap_err();
        assert!(matches!(error, WriteError::Extent { .. }), "{error}");
    }
}

#[test]
fn what_no_image_can_hold_is_refused() {
    let mut tree = Tree::new(Metadata::default()).unwrap();
    let mut refused = |name: &[u8], node: Node, message: &str| {
        let error = tree.insert(name, node).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    };
    refused(&[b'n'; 256], empty(), "expected a name of 1 to 255 bytes");
    refused(b"..", empty(), "expected a name");
    refused(b"a\0b", empty(), "expected a name");
    refused(b"missing/f", empty(), "missing: no such node");
    refused(b"l", plain(Kind::Symlink(vec![b'x'; 4096])), "expected a target of 1 to 4095 bytes, found 4096");
    refused(b"l", plain(Kind::Symlink(vec![])), "found 0");
    let number = DeviceNumber { major: 4096, minor: 0 };
    refused(
        b"d",
        plain(Kind::CharDevice(number)),
        "/d: device number: expected at most 4095:1048575, found 4096:0",
    );
    refused(b"m", Node { metadata: metadata(0o10000, 0, 0), ..empty() }, "permissions");
    let huge = Kind::Regular { size: 1 << 60, data: Data::Flat(Extent::EMPTY) };
    refused(b"huge", plain(huge), "blocks for a size of");
    tree.insert(b"huge", empty()).unwrap();
    assert!(tree.insert(b"huge", empty()).unwrap_err().to_string().contains("in the tree already"));
    assert!(tree.insert(b"huge/x", empty()).unwrap_err().to_string().contains("expected a directory"));
    let root = Tree::ROOT;
    assert!(tree.link(root, b"again", root).unwrap_err().to_string().contains("hard link"));
}

#[test]
fn a_layer_is_image_superblock_and_tree() {
    let (layer, bytes, _) = everything().finish();
    let data = usize::try_from(layer.data_blocks).unwrap() * 4096;
    let superblock = erofs_verity::verity::Superblock::parse(&bytes[data..]).unwrap();
    assert_eq!(superblock.data_blocks, layer.data_blocks);
    assert_eq!(layer.tree_offset, data as u64 + 4096);
}

#[test]
fn a_file_that_changes_after_it_was_looked_at_is_noticed() {
    let out = tempfile::tempfile().unwrap();
    let mut writer = LayerWriter::new(&out, &Settings::default()).unwrap();
    for size in [3, 5] {
        let taken = dir::Contents::take(&mut writer, &mut &b"four"[..], size);
        assert!(matches!(taken, Err(dir::ContentError::Size { expected, .. }) if expected == size));
    }
    out.write_all_at(b"x", 0).unwrap();
    let host = tempfile::tempdir().unwrap();
    let packed = dir::pack(host.path(), Fidelity::Exact, &out, &Settings::default());
    assert!(matches!(packed, Err(DirError::Write(WriteError::NotEmpty(_)))));
}

#[test]
fn the_root_digest_of_the_format_is_fixed() {
    let mut sample = Sample::new(1);
    sample.insert(b"bin", plain(Kind::Directory));
    let node = Node { metadata: metadata(0o755, 1000, 1_600_000_000), ..sample.file(vec![7; 5000]) };
    sample.insert(b"bin/sh", node);
    sample.insert(b"sh", plain(Kind::Symlink(b"bin/sh".to_vec())));
    // Changes only when the layout does, and then every owner's digests change with it.
    assert_eq!(
        sample.finish().0.root.to_string(),
        "e1cc5ff6ba5865c455697828cc90ea6c215261045045a93afbdbe91ab7dacf6b"
    );
}

fn nodes() -> impl Strategy<Value = Vec<(u8, Vec<u8>, Node, Vec<u8>)>> {
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
        3 => Just(Kind::Regular { size: 0, data: Data::Flat(Extent::EMPTY) }),
        1 => (1..4096usize).prop_map(|len| Kind::Symlink(vec![b'l'; len])),
        1 => (0..4096u32, 0..0x10_0000u32).prop_map(|(major, minor)| Kind::BlockDevice(DeviceNumber { major, minor })),
        1 => Just(Kind::Fifo),
    ];
    let content = (0..9000usize, any::<u8>()).prop_map(|(len, byte)| vec![byte; len]);
    let node = (metadata, kind).prop_map(|(metadata, kind)| Node { metadata, kind });
    proptest::collection::vec(
        (any::<u8>(), proptest::collection::vec(b'!'..b'/', 1..255), node, content),
        1..120,
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_tree_comes_back_from_the_kernel(nodes in nodes()) {
        let mut sample = Sample::new(2);
        let mut directories = vec![Tree::ROOT];
        for (parent, name, mut node, content) in nodes {
            let is_directory = matches!(node.kind, Kind::Directory);
            if matches!(node.kind, Kind::Regular { .. }) {
                node.kind = sample.file(content).kind;
            }
            let parent = directories[usize::from(parent) % directories.len()];
            // Names that exist already or are dots are refused, which leaves the tree as it was.
            if let Ok(id) = sample.tree.add(parent, &name, node) && is_directory {
                directories.push(id);
            }
        }
        let wanted = list(&sample.tree, &sample.contents);
        let (_, _, file) = sample.finish();
        if let Some(mount) = Mount::new(file.path()) {
            listing::assert_same(&wanted, &read(mount.0.path()));
        }
        if Command::new("fsck.erofs").arg("-V").output().is_ok() {
            prop_assert!(Command::new("fsck.erofs").arg(file.path()).output().unwrap().status.success());
        }
    }
}
