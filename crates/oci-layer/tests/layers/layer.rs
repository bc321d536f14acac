//! Archives applied, and what came of them as lines of text.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use erofs_verity::BLOCK_SIZE;
use erofs_verity::layer::{LayerWriter, Settings};
use erofs_verity::tree::{Data, Kind, NodeId, Tree};
use oci_layer::Limits;
use oci_layer::apply::{ApplyError, apply};
use oci_layer::tar::Reader;

/// Lines for the files of the layer that `archive` becomes, sorted by path:
/// type, mode, owner, time, path, what belongs to the type, attributes.
pub fn listing(archive: &[u8]) -> Result<Vec<String>, ApplyError> {
    listing_within(archive, &Limits::default())
}

pub fn listing_within(archive: &[u8], limits: &Limits) -> Result<Vec<String>, ApplyError> {
    let image = tempfile::tempfile().unwrap();
    let mut writer = LayerWriter::new(&image, &Settings::default())?;
    let tree = apply(&mut Reader::new(archive), &mut writer, limits, limits.memory)?.tree;
    let mut lister = Lister { tree: &tree, seen: HashMap::new(), lines: Vec::new() };
    lister.directory(Tree::ROOT, "");
    let lines = lister.lines;
    // Contents are in the file once the writer is done.
    writer.finish(tree)?;
    Ok(lines.into_iter().map(|line| line.complete(&image)).collect())
}

struct Line {
    text: String,
    content: Option<(u64, Data)>,
    attributes: String,
}

struct Lister<'t> {
    tree: &'t Tree,
    seen: HashMap<NodeId, String>,
    lines: Vec<Line>,
}

impl Lister<'_> {
    fn directory(&mut self, id: NodeId, path: &str) {
        let mut entries: Vec<(Vec<u8>, NodeId)> =
            self.tree.entries(id).map(|(name, child)| (name.to_vec(), child)).collect();
        entries.sort();
        self.line(id, if path.is_empty() { "/" } else { path });
        for (name, child) in entries {
            let path = format!("{path}/{}", name.escape_ascii());
            if self.tree.is_directory(child) {
                self.directory(child, &path);
            } else if let Some(first) = self.seen.get(&child) {
                self.lines.push(Line {
                    text: format!("= {path} {first}"),
                    content: None,
                    attributes: String::new(),
                });
            } else {
                self.seen.insert(child, path.clone());
                self.line(child, &path);
            }
        }
    }

    fn line(&mut self, id: NodeId, path: &str) {
        let (kind, metadata) = (self.tree.kind(id).unwrap(), self.tree.metadata(id));
        let (letter, extra, content) = match kind {
            Kind::Directory => ('d', String::new(), None),
            Kind::Regular { size, data } => ('f', String::new(), Some((size, data))),
            Kind::Symlink(target) => ('l', format!(" -> {}", target.escape_ascii()), None),
            Kind::CharDevice(number) => ('c', format!(" {}:{}", number.major, number.minor), None),
            Kind::BlockDevice(number) => ('b', format!(" {}:{}", number.major, number.minor), None),
            Kind::Fifo => ('p', String::new(), None),
            Kind::Socket => ('s', String::new(), None),
        };
        let fraction = match metadata.mtime.nanoseconds {
            0 => String::new(),
            nanoseconds => format!(".{nanoseconds:09}"),
        };
        let (permissions, seconds) = (metadata.permissions, metadata.mtime.seconds);
        let text = format!(
            "{letter} {permissions:o} {}:{} {seconds}{fraction} {path}{extra}",
            metadata.uid, metadata.gid
        );
        let attributes = metadata.xattrs.iter();
        let attributes = attributes
            .map(|(name, value)| format!(" {}={}", name.escape_ascii(), value.escape_ascii()))
            .collect();
        self.lines.push(Line { text, content, attributes });
    }
}

impl Line {
    fn complete(self, image: &File) -> String {
        let Self { mut text, content, attributes } = self;
        if let Some((size, data)) = content {
            let bytes = read(image, size, &data);
            text += &match bytes.len() {
                0..=40 => format!(" {:?}", bytes.escape_ascii().to_string()),
                length => format!(" {length} bytes"),
            };
        }
        text + &attributes
    }
}

/// A file's content, from where the tree says that it lies.
pub fn read(image: &File, size: u64, data: &Data) -> Vec<u8> {
    let size = usize::try_from(size).unwrap();
    let mut bytes = vec![0; size];
    let read = |bytes: &mut [u8], block: u32| {
        image.read_exact_at(bytes, u64::from(block) * BLOCK_SIZE as u64).unwrap()
    };
    match data {
        Data::Flat(extent) if size > 0 => read(&mut bytes, extent.first_block),
        Data::Flat(_) => {}
        Data::Chunked { chunk_blocks, starts } => {
            let chunk = BLOCK_SIZE * *chunk_blocks as usize;
            assert_eq!(starts.len(), size.div_ceil(chunk));
            for (bytes, start) in bytes.chunks_mut(chunk).zip(starts) {
                if let Some(start) = start {
                    read(bytes, *start);
                }
            }
        }
    }
    bytes
}
