//! The writer of layers: any tree that it accepts becomes a sound image under a hash tree of its own.
#![no_main]

use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt as _;

use erofs_verity::BLOCK_SIZE;
use erofs_verity::layer::{LayerWriter, Settings, verify};
use erofs_verity::tree::{Data, DeviceNumber, Extent, Kind, Metadata, Node, NodeId, Timestamp, Tree, Xattrs};
use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;

/// Largest content that is written.
const CONTENT: usize = 20_000;
/// Prefixes of attributes, and one that no attribute has.
const PREFIXES: [&[u8]; 6] =
    [b"user.", b"security.", b"trusted.", b"system.posix_acl_access", b"system.posix_acl_default", b"other."];

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = tempfile::tempfile() else { return };
    let settings = Settings { threads: NonZeroUsize::MIN, ..Settings::default() };
    let mut writer = LayerWriter::new(&file, &settings).expect("an empty file");
    let mut build = Build { bytes: Unstructured::new(bytes), writer: &mut writer, lies: false };
    let Ok(tree) = build.tree() else { return };
    let lies = build.lies;
    let nodes = tree.node_count() as u64;
    let layer = match writer.finish(tree) {
        Ok(layer) => layer,
        Err(_) if lies => return,
        Err(error) => panic!("{error}"),
    };
    verify(&file, layer.data_blocks, layer.root).expect("the layer's own hash tree");
    let mut image = vec![0; usize::try_from(layer.data_blocks).expect("a size in memory") * BLOCK_SIZE];
    file.read_exact_at(&mut image, 0).expect("a layer");
    assert!(uvm_fuzz::erofs::check(&image) <= nodes);
});

struct Build<'b, 'w> {
    bytes: Unstructured<'b>,
    writer: &'w mut LayerWriter,
    /// Whether any file claims blocks that were never written.
    lies: bool,
}

impl Build<'_, '_> {
    /// Does to a tree whatever the bytes say; what the tree refuses leaves it as it was.
    fn tree(&mut self) -> Result<Tree> {
        let mut tree = Tree::new(Metadata::default()).expect("an empty tree");
        let mut nodes = vec![Tree::ROOT];
        while !self.bytes.is_empty() {
            let action: u8 = self.bytes.int_in_range(0..=15)?;
            let at = *self.bytes.choose(&nodes)?;
            match action {
                0 => drop(tree.remove(at, &self.name()?)),
                1 => drop(tree.link(at, &self.name()?, *self.bytes.choose(&nodes)?)),
                2 => drop(tree.set_metadata(at, &self.metadata()?)),
                3 => drop(tree.set_xattr(at, &self.attribute()?, self.short()?)),
                _ => nodes.extend(self.added(&mut tree, at)?),
            }
        }
        Ok(tree)
    }

    fn added(&mut self, tree: &mut Tree, parent: NodeId) -> Result<Option<NodeId>> {
        let (name, node) = (self.name()?, Node { metadata: self.metadata()?, kind: self.kind()? });
        Ok(tree.add(parent, &name, node).ok())
    }

    fn short(&mut self) -> Result<&[u8]> {
        let length = usize::from(self.bytes.arbitrary::<u8>()?).min(self.bytes.len());
        self.bytes.bytes(length)
    }

    /// A name of some bytes, repeated so that long ones cost few.
    fn name(&mut self) -> Result<Vec<u8>> {
        let times = self.bytes.int_in_range(1..=40)?;
        let length = self.bytes.int_in_range(0..=8)?.min(self.bytes.len());
        Ok(self.bytes.bytes(length)?.repeat(times))
    }

    fn attribute(&mut self) -> Result<Vec<u8>> {
        let prefix = *self.bytes.choose(&PREFIXES)?;
        Ok([prefix, &self.name()?].concat())
    }

    fn metadata(&mut self) -> Result<Metadata> {
        if self.bytes.arbitrary()? {
            return Ok(Metadata { permissions: 0o644, ..Metadata::default() });
        }
        let mut xattrs = Xattrs::new();
        while xattrs.len() < 8 && !self.bytes.is_empty() && self.bytes.ratio(1, 3)? {
            let times = self.bytes.int_in_range(0..=300)?;
            xattrs.insert(self.attribute()?, self.short()?.repeat(times));
        }
        let mtime = Timestamp { seconds: self.bytes.arbitrary()?, nanoseconds: self.bytes.arbitrary()? };
        let permissions = self.bytes.arbitrary()?;
        Ok(Metadata {
            permissions,
            uid: self.bytes.arbitrary()?,
            gid: self.bytes.arbitrary()?,
            mtime,
            xattrs,
        })
    }

    fn kind(&mut self) -> Result<Kind> {
        let device = |bytes: &mut Unstructured<'_>| {
            Ok(DeviceNumber { major: bytes.int_in_range(0..=5000)?, minor: bytes.int_in_range(0..=1 << 20)? })
        };
        Ok(match self.bytes.int_in_range(0..=7)? {
            0 => Kind::Regular { size: 0, data: Data::Flat(Extent::EMPTY) },
            1 => self.written()?,
            2 => self.claimed()?,
            3 => Kind::Symlink(self.name()?.repeat(self.bytes.int_in_range(1..=200)?)),
            4 => Kind::CharDevice(device(&mut self.bytes)?),
            5 => Kind::BlockDevice(device(&mut self.bytes)?),
            6 if self.bytes.arbitrary()? => Kind::Socket,
            6 => Kind::Fifo,
            _ => Kind::Directory,
        })
    }

    /// A file whose content is in the image, whole or with holes between its blocks.
    fn written(&mut self) -> Result<Kind> {
        let length = self.bytes.int_in_range(1..=CONTENT)?;
        let extent = self.writer.content(&vec![7; length]).expect("a content");
        if self.bytes.arbitrary()? {
            return Ok(Kind::Regular { size: length as u64, data: Data::Flat(extent) });
        }
        let mut starts = Vec::new();
        for block in extent.first_block..extent.first_block + extent.blocks {
            starts.extend(std::iter::repeat_n(None, self.bytes.int_in_range(0..=1000)?));
            starts.push(Some(block));
        }
        let size = starts.len() as u64 * BLOCK_SIZE as u64;
        Ok(Kind::Regular { size, data: Data::Chunked { chunk_blocks: 1, starts } })
    }

    /// A file of which nobody knows whether its content is there.
    fn claimed(&mut self) -> Result<Kind> {
        self.lies = true;
        let size: u64 = self.bytes.arbitrary()?;
        let data = if self.bytes.arbitrary()? {
            Data::Flat(Extent { first_block: self.bytes.arbitrary()?, blocks: self.bytes.arbitrary()? })
        } else {
            let chunk_blocks = self.bytes.arbitrary()?;
            let count = self.bytes.int_in_range(0..=20)?;
            let starts = (0..count).map(|_| self.bytes.arbitrary()).collect::<Result<_>>()?;
            Data::Chunked { chunk_blocks, starts }
        };
        Ok(Kind::Regular { size, data })
    }
}
