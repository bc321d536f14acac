//! Images of erofs, the kernel's read-only file system: uncompressed, blocks of 4096 bytes.
//!
//! The image is a function of the tree alone: UUID, volume name and build time are zero, inodes are numbered
//! by their place, and places follow from sorted names. Layout and reasons are in `plan`; the format is
//! Linux's `Documentation/filesystems/erofs.rst`.

use std::io::{self, Read, Write};

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use crate::source::Content;
use crate::tree::{Kind, NodeId, Tree};
use crate::{BLOCK_BYTES, BLOCK_SIZE};
use format::{CompactInode, ExtendedInode, SUPERBLOCK_OFFSET, SuperBlock};
use plan::{Inode, Plan};

mod dirent;
mod format;
mod plan;
pub mod xattr;

/// Bytes of content that are read at a time.
const COPY_BUFFER: usize = 256 * 1024;

/// Why an image cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// More blocks than the format's 32 bits can number.
    #[error("erofs image: expected at most {max} blocks of 4096 bytes, found {blocks}", max = u32::MAX)]
    TooLarge {
        /// Blocks that the tree needs.
        blocks: u64,
    },
    /// A file's content could not be read.
    #[error("{path}: cannot read content: {source}")]
    Content {
        /// Path in the tree.
        path: String,
        /// What happened.
        source: io::Error,
    },
    /// A file's content is not as long as the tree says.
    #[error("{path}: expected {expected} bytes of content, found {found}")]
    ContentSize {
        /// Path in the tree.
        path: String,
        /// Declared size.
        expected: u64,
        /// Bytes read: all of them, or, if there are too many, those read until that was noticed.
        found: u64,
    },
    /// A node's extended attributes cannot be represented; a [`Tree`] has refused such a node before.
    #[error("{path}: {source}")]
    Xattr {
        /// Path in the tree.
        path: String,
        /// What is wrong with them.
        source: xattr::XattrError,
    },
    /// The image could not be written.
    #[error("cannot write erofs image: {0}")]
    Output(#[source] io::Error),
}

/// An image that has been laid out and can be written.
pub struct Image<'t, C> {
    tree: &'t Tree<C>,
    plan: Plan,
}

impl<'t, C: Content> Image<'t, C> {
    /// Lays out the image of `tree`. Reads no contents.
    ///
    /// # Errors
    /// When the image would be too large for the format.
    pub fn new(tree: &'t Tree<C>) -> Result<Self, WriteError> {
        Ok(Self { tree, plan: Plan::new(tree)? })
    }

    /// Size of the image in blocks of 4096 bytes.
    #[must_use]
    pub fn blocks(&self) -> u32 {
        self.plan.blocks
    }

    /// Writes the whole image, front to back.
    ///
    /// # Errors
    /// When a content cannot be read or is not as long as declared, or `out` fails.
    pub fn write_to(&self, out: impl Write) -> Result<(), WriteError> {
        let mut out = Output { inner: out, position: 0 };
        out.put(&self.superblock())?;
        for (number, inode) in self.plan.inodes.iter().enumerate() {
            out.pad_to(inode.position)?;
            self.write_inode(&mut out, number, inode)?;
        }
        let mut buffer = vec![0; COPY_BUFFER];
        for inode in self.plan.inodes.iter().filter(|inode| inode.first_block != 0) {
            if let Some(data) = self.metadata_data(inode) {
                out.pad_to(block_position(inode.first_block))?;
                out.put(&data[..data.len() - inode.inline])?;
            }
        }
        for inode in &self.plan.inodes {
            if let Kind::Regular { content, .. } = &self.tree.node(inode.id).kind {
                if inode.first_block != 0 {
                    out.pad_to(block_position(inode.first_block))?;
                }
                self.copy(content, inode, &mut out, &mut buffer)?;
            }
        }
        out.pad_to(block_position(self.plan.blocks))?;
        out.inner.flush().map_err(WriteError::Output)
    }

    fn superblock(&self) -> Vec<u8> {
        let root = self.plan.inodes.first().map_or(0, Inode::nid);
        let mut superblock = SuperBlock {
            magic: U32::new(format::MAGIC),
            checksum: U32::ZERO,
            feature_compat: U32::new(format::FEATURE_COMPAT),
            block_bits: format::BLOCK_BITS,
            extension_slots: 0,
            // The root inode is the first of block 1, whatever the tree.
            root_nid: U16::new(u16::try_from(root).unwrap_or(0)),
            inodes: U64::new(self.plan.inodes.len() as u64),
            build_time: U64::ZERO,
            build_time_nsec: U32::ZERO,
            blocks: U32::new(self.plan.blocks),
            meta_block: U32::ZERO,
            xattr_block: U32::ZERO,
            uuid: [0; 16],
            volume_name: [0; 16],
            feature_incompat: U32::ZERO,
            unused: [0; 44],
        };
        let mut block = vec![0; BLOCK_SIZE];
        let end = SUPERBLOCK_OFFSET + size_of::<SuperBlock>();
        block[SUPERBLOCK_OFFSET..end].copy_from_slice(superblock.as_bytes());
        // The kernel's CRC-32C covers the rest of the block and lacks the customary final inversion.
        superblock.checksum = U32::new(!crc32c::crc32c(&block[SUPERBLOCK_OFFSET..]));
        block[SUPERBLOCK_OFFSET..end].copy_from_slice(superblock.as_bytes());
        block
    }

    fn write_inode(
        &self,
        out: &mut Output<impl Write>,
        number: usize,
        inode: &Inode,
    ) -> Result<(), WriteError> {
        let metadata = &self.tree.node(inode.id).metadata;
        // Bit 0: extended inode. Bits 1 to 3: data layout, 0 for plain, 2 with an inline tail.
        let format = U16::new(u16::from(!inode.compact) | if inode.inline > 0 { 2 << 1 } else { 0 });
        let xattr_count = U16::new(xattr::inode_count(inode.xattr_size));
        let mode = U16::new(self.file_type_bits(inode.id) | metadata.permissions);
        let location = U32::new(self.location(inode));
        // Shown by the kernel on no 64-bit system; it has to be unique only.
        let ino = U32::new(u32::try_from(number + 1).unwrap_or(u32::MAX));
        // The plan makes an inode compact only if all of its fields fit.
        let narrow = |value: u32| U16::new(u16::try_from(value).unwrap_or(u16::MAX));
        if inode.compact {
            let size = U32::new(u32::try_from(inode.size).unwrap_or(u32::MAX));
            let (uid, gid, links) = (narrow(metadata.uid), narrow(metadata.gid), narrow(inode.links));
            let (reserved, reserved2) = (U32::ZERO, U32::ZERO);
            out.put(
                CompactInode {
                    format,
                    xattr_count,
                    mode,
                    links,
                    size,
                    reserved,
                    location,
                    ino,
                    uid,
                    gid,
                    reserved2,
                }
                .as_bytes(),
            )?;
        } else {
            let inode = ExtendedInode {
                format,
                xattr_count,
                mode,
                reserved: U16::ZERO,
                size: U64::new(inode.size),
                location,
                ino,
                uid: U32::new(metadata.uid),
                gid: U32::new(metadata.gid),
                mtime: U64::new(metadata.mtime.seconds.cast_unsigned()),
                mtime_nsec: U32::new(metadata.mtime.nanoseconds),
                links: U32::new(inode.links),
                reserved2: [0; 16],
            };
            out.put(inode.as_bytes())?;
        }
        let xattrs = xattr::encode(&metadata.xattrs)
            .map_err(|source| WriteError::Xattr { path: self.tree.path(inode.id), source })?;
        out.put(&xattrs)?;
        match self.metadata_data(inode) {
            Some(data) if inode.inline > 0 => out.put(&data[data.len() - inode.inline..]),
            _ => Ok(()),
        }
    }

    /// What the inode's location field holds: a device number, or where the data is.
    fn location(&self, inode: &Inode) -> u32 {
        match &self.tree.node(inode.id).kind {
            Kind::CharDevice(number) | Kind::BlockDevice(number) => number.encode(),
            _ => inode.first_block,
        }
    }

    /// The file type bits of `st_mode` (inode(7)).
    fn file_type_bits(&self, id: NodeId) -> u16 {
        match self.tree.node(id).kind {
            Kind::Fifo => 0o010_000,
            Kind::CharDevice(_) => 0o020_000,
            Kind::Directory => 0o040_000,
            Kind::BlockDevice(_) => 0o060_000,
            Kind::Regular { .. } => 0o100_000,
            Kind::Symlink(_) => 0o120_000,
            Kind::Socket => 0o140_000,
        }
    }

    /// Data that is the tree's own: a directory's entries, a link's target.
    fn metadata_data(&self, inode: &Inode) -> Option<Vec<u8>> {
        match &self.tree.node(inode.id).kind {
            Kind::Directory => {
                let entries = dirent::sorted(self.tree, inode.id);
                Some(dirent::encode(self.tree, &entries, |id| self.plan.nids[id.index()]))
            }
            Kind::Symlink(target) => Some(target.clone()),
            _ => None,
        }
    }

    fn copy(
        &self,
        content: &C,
        inode: &Inode,
        out: &mut Output<impl Write>,
        buffer: &mut [u8],
    ) -> Result<(), WriteError> {
        let path = || self.tree.path(inode.id);
        let wrong_size = |found| WriteError::ContentSize { path: path(), expected: inode.size, found };
        let unreadable = |source| WriteError::Content { path: path(), source };
        let mut reader = content.open().map_err(unreadable)?;
        let mut found = 0u64;
        loop {
            match reader.read(buffer) {
                Ok(0) if found == inode.size => return Ok(()),
                Ok(0) => return Err(wrong_size(found)),
                Ok(count) => {
                    found += count as u64;
                    if found > inode.size {
                        return Err(wrong_size(found));
                    }
                    out.put(&buffer[..count])?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(unreadable(error)),
            }
        }
    }
}

fn block_position(block: u32) -> u64 {
    u64::from(block) * BLOCK_BYTES
}

/// Sequential output that knows where it is.
struct Output<W> {
    inner: W,
    position: u64,
}

impl<W: Write> Output<W> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.position += bytes.len() as u64;
        self.inner.write_all(bytes).map_err(WriteError::Output)
    }

    /// Writes zeros up to `position`, which is less than a block away wherever the plan has a gap.
    fn pad_to(&mut self, position: u64) -> Result<(), WriteError> {
        const ZEROS: [u8; BLOCK_SIZE] = [0; BLOCK_SIZE];
        let gap = position.checked_sub(self.position).and_then(|gap| usize::try_from(gap).ok());
        match gap.and_then(|gap| ZEROS.get(..gap)) {
            Some(zeros) => self.put(zeros),
            None => Err(WriteError::Output(io::Error::other(format!(
                "layout: expected to be at most one block before byte {position}, found byte {}",
                self.position
            )))),
        }
    }
}
