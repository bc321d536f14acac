//! What the entries of a layer's archive mean: the OCI image specification, "Image Layer Filesystem
//! Changeset", in the form in which overlayfs stacks layers.
//!
//! | entry | becomes |
//! |---|---|
//! | `NAME`, the first of its path | a node; directories above it that no entry has made: mode 0755, root, 1970 |
//! | a directory where there is one | the same directory with the entry's metadata; earlier attributes stay |
//! | anything else where there is something | in its place |
//! | the root itself | nothing: layers' roots have mode 0755, root, 1970, as with containerd |
//! | `.wh.NAME` | character device 0:0, overlayfs's whiteout |
//! | `.wh.NAME` beside a directory `NAME` | an opaque directory, in whichever order they come |
//! | `.wh.NAME` beside another `NAME` | nothing: what is there hides lower layers anyway |
//! | `.wh..wh..opq` | `trusted.overlay.opaque` on its directory |
//! | other `.wh..wh.*`, and all below | nothing: aufs kept its books there |
//!
//! A hard link names a file that an earlier entry of the same layer has made; a link to a symbolic link is a
//! second name of the link. Its metadata become the file's, as with containerd, where the last entry wins.
//!
//! Where containerd and the specification differ, the specification is followed: containerd refuses a
//! whiteout that comes behind the entry of its name, and lets lower layers show in a directory that comes
//! behind its whiteout. Where containerd takes the metadata of missing parents from lower layers, this cannot:
//! a layer's bytes depend on its own archive alone.

mod attributes;
mod content;
mod error;
mod path;
mod resolve;

use std::io::BufRead;

use erofs_verity::layer::LayerWriter;
use erofs_verity::tree::{DeviceNumber, Kind, Metadata, Node, NodeId, Tree, TreeError, Xattrs};

pub use error::ApplyError;

use crate::Limits;
use crate::tar::{self, Entry, Reader};
use content::Chunking;
use path::{PathFault, Target};
use resolve::{Place, ResolveFault};

/// What an archive has come to.
#[derive(Debug)]
pub struct Applied {
    /// The layer's files; their contents are with the writer.
    pub tree: Tree,
    /// Entries in the archive, those included that mean nothing.
    pub entries: u64,
}

/// Applies all entries of `archive`: contents go to `writer` as they come, the rest into a tree of at most
/// `tree_memory` bytes.
///
/// # Errors
/// When the archive is malformed, an entry is refused, or the contents cannot be written.
pub fn apply<R: BufRead>(
    archive: &mut Reader<R>,
    writer: &mut LayerWriter,
    limits: &Limits,
    tree_memory: usize,
) -> Result<Applied, ApplyError> {
    let tree = Tree::with_budget(attributes::implied_directory(), tree_memory)
        .map_err(|source| ApplyError::Tree { offset: 0, source })?;
    let mut application = Application { tree, writer, limits, sparse_bytes: 0 };
    let mut entries = 0;
    while let Some(entry) = archive.next_entry()? {
        entries += 1;
        if entries > limits.entries {
            let expected = format!("at most {} entries", limits.entries);
            return Err(refusal(&entry, expected, "more"));
        }
        application.entry(archive, &entry)?;
    }
    Ok(Applied { tree: application.tree, entries })
}

struct Application<'a> {
    tree: Tree,
    writer: &'a mut LayerWriter,
    limits: &'a Limits,
    /// Bytes that sparse files may take in the image, so far.
    sparse_bytes: u64,
}

impl Application<'_> {
    fn entry<R: BufRead>(&mut self, archive: &mut Reader<R>, entry: &Entry) -> Result<(), ApplyError> {
        self.check_length(entry, "path", &entry.path)?;
        match path::target(&entry.path).map_err(|fault| path_refusal(entry, &fault))? {
            Target::Root if entry.kind == tar::Kind::Directory => Ok(()),
            Target::Root => Err(refusal(entry, "a directory at the layer's root", kind_name(&entry.kind))),
            Target::Aufs => Ok(()),
            Target::Opaque { directory } => {
                let directory = self.directory(entry, &directory)?;
                self.set_opaque(directory).map_err(|source| at(entry, source))
            }
            Target::Whiteout { directory, name } => {
                let directory = self.directory(entry, &directory)?;
                self.whiteout(entry, directory, name).map_err(|source| at(entry, source))
            }
            Target::Name { directory, name } => {
                let directory = self.directory(entry, &directory)?;
                self.named(archive, entry, directory, name)
            }
        }
    }

    /// The directory with this path, which is made if it is missing.
    fn directory(&mut self, entry: &Entry, components: &[&[u8]]) -> Result<NodeId, ApplyError> {
        let place =
            resolve::resolve(&self.tree, components).map_err(|fault| resolve_refusal(entry, fault))?;
        let Place { mut directory, missing } = place;
        for name in missing {
            let node = Node { metadata: attributes::implied_directory(), kind: Kind::Directory };
            directory = self.replace(directory, &name, node).map_err(|source| at(entry, source))?;
        }
        Ok(directory)
    }

    /// Hides what lower layers have as `name`.
    fn whiteout(&mut self, entry: &Entry, directory: NodeId, name: &[u8]) -> Result<(), TreeError> {
        match self.tree.child(directory, name) {
            Some(child) if self.tree.is_directory(child) => self.set_opaque(child),
            Some(_) => Ok(()),
            None => {
                let metadata = Metadata { uid: entry.uid, gid: entry.gid, ..Metadata::default() };
                self.tree.add(directory, name, Node { metadata, kind: Kind::CharDevice(WHITEOUT) })?;
                Ok(())
            }
        }
    }

    fn set_opaque(&mut self, directory: NodeId) -> Result<(), TreeError> {
        let (name, value) = attributes::OPAQUE;
        self.tree.set_xattr(directory, name, value)
    }

    /// An entry that stands for what its path says.
    fn named<R: BufRead>(
        &mut self,
        archive: &mut Reader<R>,
        entry: &Entry,
        directory: NodeId,
        name: &[u8],
    ) -> Result<(), ApplyError> {
        let kind = match &entry.kind {
            tar::Kind::HardLink(target) => return self.hard_link(entry, directory, name, target),
            tar::Kind::Regular { size } => content::store(archive, self.writer, *size)?,
            tar::Kind::Sparse(map) => {
                let chunking = self.chunking(entry, map)?;
                content::store_sparse(archive, self.writer, map, &chunking)?
            }
            tar::Kind::Symlink(target) => {
                self.check_length(entry, "target", target)?;
                Kind::Symlink(target.clone())
            }
            tar::Kind::CharDevice(number) => Kind::CharDevice(*number),
            tar::Kind::BlockDevice(number) => Kind::BlockDevice(*number),
            tar::Kind::Directory => Kind::Directory,
            tar::Kind::Fifo => Kind::Fifo,
        };
        self.node(entry, directory, name, kind).map_err(|source| at(entry, source))
    }

    /// A file, directory, symbolic link, device or pipe.
    fn node(&mut self, entry: &Entry, directory: NodeId, name: &[u8], kind: Kind) -> Result<(), TreeError> {
        let existing = self.tree.child(directory, name).filter(|&child| self.tree.is_directory(child));
        if let (Kind::Directory, Some(existing)) = (&kind, existing) {
            return self.update(existing, entry, &kind);
        }
        let metadata = attributes::metadata(entry, &kind, Xattrs::new());
        self.replace(directory, name, Node { metadata, kind }).map(drop)
    }

    /// How to cut a sparse file, if there is room for it.
    fn chunking(&mut self, entry: &Entry, map: &tar::SparseMap) -> Result<Chunking, ApplyError> {
        let chunking = Chunking::best(map).ok_or_else(|| {
            refusal(entry, "at most 65536 GiB in a sparse file", format!("{} bytes", map.size()))
        })?;
        self.sparse_bytes = self.sparse_bytes.saturating_add(chunking.cost());
        let limit = self.limits.uncompressed_bytes;
        if self.sparse_bytes > limit {
            let expected = format!("sparse files that take at most {limit} bytes of the image");
            return Err(refusal(entry, expected, self.sparse_bytes));
        }
        Ok(chunking)
    }

    /// A further name for a file of this layer.
    fn hard_link(
        &mut self,
        entry: &Entry,
        directory: NodeId,
        name: &[u8],
        target: &[u8],
    ) -> Result<(), ApplyError> {
        self.check_length(entry, "target", target)?;
        if self.tree.child(directory, name).is_some() {
            self.tree.remove(directory, name).map_err(|source| at(entry, source))?;
        }
        let file = self.existing(entry, target)?.ok_or_else(|| {
            let found = format!("a link to {:?}, which is not in it", shown(target));
            refusal(entry, "a link to a file that is in the layer already", found)
        })?;
        self.tree.link(directory, name, file).map_err(|source| at(entry, source))?;
        match self.tree.kind(file) {
            Some(kind) => self.update(file, entry, &kind).map_err(|source| at(entry, source)),
            None => Ok(()),
        }
    }

    /// The node at `path`, whose last component is not followed.
    fn existing(&self, entry: &Entry, path: &[u8]) -> Result<Option<NodeId>, ApplyError> {
        let mut components = path::components(path).map_err(|fault| path_refusal(entry, &fault))?;
        let Some(name) = components.pop() else {
            return Ok(Some(Tree::ROOT));
        };
        let place =
            resolve::resolve(&self.tree, &components).map_err(|fault| resolve_refusal(entry, fault))?;
        Ok(if place.missing.is_empty() { self.tree.child(place.directory, name) } else { None })
    }

    /// Gives a node the metadata of a further entry; attributes that it has stay.
    fn update(&mut self, id: NodeId, entry: &Entry, kind: &Kind) -> Result<(), TreeError> {
        let before = self.tree.metadata(id);
        let after = attributes::metadata(entry, kind, before.xattrs.clone());
        if after == before { Ok(()) } else { self.tree.set_metadata(id, &after) }
    }

    /// Puts `node` at `name`, in place of whatever is there. A directory in place of a whiteout is opaque.
    fn replace(&mut self, directory: NodeId, name: &[u8], node: Node) -> Result<NodeId, TreeError> {
        let mut node = node;
        if let Some(child) = self.tree.child(directory, name) {
            let was_whiteout = self.tree.kind(child).is_some_and(|kind| is_whiteout(&kind));
            if was_whiteout && node.kind == Kind::Directory {
                let (name, value) = attributes::OPAQUE;
                node.metadata.xattrs.insert(name.to_vec(), value.to_vec());
            }
            self.tree.remove(directory, name)?;
        }
        self.tree.add(directory, name, node)
    }

    fn check_length(&self, entry: &Entry, what: &str, text: &[u8]) -> Result<(), ApplyError> {
        if text.len() <= self.limits.path_bytes {
            return Ok(());
        }
        let expected = format!("a {what} of at most {} bytes", self.limits.path_bytes);
        Err(refusal(entry, expected, format!("{} bytes", text.len())))
    }
}

/// The device number by which overlayfs knows a whiteout.
const WHITEOUT: DeviceNumber = DeviceNumber { major: 0, minor: 0 };

fn is_whiteout(kind: &Kind) -> bool {
    matches!(kind, Kind::CharDevice(WHITEOUT))
}

fn at(entry: &Entry, source: TreeError) -> ApplyError {
    ApplyError::Tree { offset: entry.offset, source }
}

fn refusal(entry: &Entry, expected: impl ToString, found: impl ToString) -> ApplyError {
    ApplyError::Entry {
        offset: entry.offset,
        path: shown(&entry.path),
        expected: expected.to_string(),
        found: found.to_string(),
    }
}

fn path_refusal(entry: &Entry, fault: &PathFault) -> ApplyError {
    refusal(entry, fault.expected(), "another")
}

fn resolve_refusal(entry: &Entry, fault: ResolveFault) -> ApplyError {
    match fault {
        ResolveFault::NotDirectory(path) => {
            refusal(entry, "directories above it", format!("another kind of file at {path:?}"))
        }
        ResolveFault::Links => refusal(entry, "at most 255 symbolic links in its path", "more, or a cycle"),
        ResolveFault::Steps => refusal(entry, "at most 4096 components in its path with its links", "more"),
    }
}

fn kind_name(kind: &tar::Kind) -> &'static str {
    match kind {
        tar::Kind::Regular { .. } | tar::Kind::Sparse(_) => "a regular file",
        tar::Kind::HardLink(_) => "a hard link",
        tar::Kind::Symlink(_) => "a symbolic link",
        tar::Kind::CharDevice(_) | tar::Kind::BlockDevice(_) => "a device",
        tar::Kind::Directory => "a directory",
        tar::Kind::Fifo => "a named pipe",
    }
}

/// Bytes as text for a message, not longer than a line.
fn shown(bytes: &[u8]) -> String {
    const SHOWN: usize = 120;
    let mut text = String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN)]).into_owned();
    if bytes.len() > SHOWN {
        text.push('…');
    }
    text
}
