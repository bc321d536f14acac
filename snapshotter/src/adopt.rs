//! Layers that containerd's own erofs snapshotter (2.1 and later) made, with their dm-verity metadata.
//!
//! containerd keeps prebuilt layers in directories of its `layer_content_caches` setting, as
//! `<algorithm>/<first two digits>/<digits>.erofs` of the diff id, with the hash tree appended and a file
//! `….erofs.dmverity` beside it: JSON with `roothash` and `hashoffset`, the byte position of a verity superblock.
//! Such a layer is copied, with a superblock of our own, and the copy is verified block by block: it is taken only
//! if it has the root hash that the metadata state.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use erofs_verity::layer::{self, Layer};
use erofs_verity::verity::{RootDigest, Superblock};
use serde::Deserialize;

use crate::digest::Digest;
use crate::error::Error;
use crate::store::{Description, LayerPin, Store};

/// Bytes in a block.
const BLOCK_BYTES: u64 = 4096;
/// Longest metadata file that is read, in bytes.
const MAX_METADATA_BYTES: u64 = 4096;
/// Where the erofs superblock is, and its magic number (`EROFS_SUPER_OFFSET`, `EROFS_SUPER_MAGIC_V1`).
const EROFS_SUPERBLOCK: u64 = 1024;
const EROFS_MAGIC: [u8; 4] = 0xE0F5_E1E2_u32.to_le_bytes();

/// What stands beside the layer. A field that is not known may change what the layer is, and is refused.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    roothash: String,
    hashoffset: u64,
}

/// Where a layer with this diff id would be in containerd's cache directory `cache`.
#[must_use]
pub fn path(cache: &Path, diff_id: Digest) -> PathBuf {
    let hex = diff_id.hex();
    cache.join("sha256").join(&hex[..2]).join(format!("{hex}.erofs"))
}

/// Takes the layer at `path` into the store, under `diff_id`.
///
/// # Errors
/// When it has no dm-verity metadata, these are not of the one form that is understood, the data do not have the
/// root hash, or the store fails.
pub fn adopt(store: &Arc<Store>, path: &Path, diff_id: Digest) -> Result<LayerPin, Error> {
    let inconsistent = |what: String| Error::Inconsistent { path: path.into(), what };
    let metadata = read_metadata(path)?;
    let root: RootDigest =
        metadata.roothash.parse().map_err(|error| inconsistent(format!("roothash: {error}")))?;
    let mut file = File::open(path).map_err(Error::file("open", path))?;
    let data_blocks = check(&mut file, metadata.hashoffset).map_err(|refusal| match refusal {
        Refusal::Io(error) => Error::file("read", path)(error),
        Refusal::Form(what) => inconsistent(what),
    })?;
    let staged = store.stage()?;
    copy(file, staged.file(), data_blocks).map_err(Error::file("copy", path))?;
    layer::verify(staged.file(), data_blocks, root).map_err(|error| inconsistent(error.to_string()))?;
    let length = layer::length(data_blocks).unwrap_or(u64::MAX);
    let layer = Layer { root, data_blocks, tree_offset: (data_blocks + 1) * BLOCK_BYTES, length };
    store.publish(staged, Description::new(&layer, Some(diff_id)), None)
}

enum Refusal {
    Io(io::Error),
    Form(String),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn read_metadata(layer: &Path) -> Result<Metadata, Error> {
    let mut path = layer.as_os_str().to_owned();
    path.push(".dmverity");
    let path = PathBuf::from(path);
    let size = fs::metadata(&path).map_err(Error::file("read", &path))?.len();
    if size > MAX_METADATA_BYTES {
        let what = format!("expected at most {MAX_METADATA_BYTES} bytes, found {size}");
        return Err(Error::Inconsistent { path, what });
    }
    let text = fs::read(&path).map_err(Error::file("read", &path))?;
    serde_json::from_slice(&text).map_err(|error| Error::Inconsistent { path, what: error.to_string() })
}

/// Checks that the file is an erofs image with a verity superblock of the one form behind it, and long enough for
/// the hash tree; tells how many blocks the image has.
fn check(file: &mut File, hash_offset: u64) -> Result<u64, Refusal> {
    let form = |what: String| Err(Refusal::Form(what));
    let length = file.metadata()?.len();
    let data_blocks = hash_offset / BLOCK_BYTES;
    let needed = layer::length(data_blocks).unwrap_or(u64::MAX);
    if !hash_offset.is_multiple_of(BLOCK_BYTES) || data_blocks == 0 || needed > length {
        let expected = format!("a multiple of {BLOCK_BYTES} with a hash tree behind it in {length} bytes");
        return form(format!("hashoffset: expected {expected}, found {hash_offset}"));
    }
    let mut magic = [0; 4];
    file.seek(SeekFrom::Start(EROFS_SUPERBLOCK))?;
    file.read_exact(&mut magic)?;
    if magic != EROFS_MAGIC {
        return form(format!("expected an erofs superblock, found {magic:02x?} for its magic number"));
    }
    let mut superblock = [0; 4096];
    file.seek(SeekFrom::Start(hash_offset))?;
    file.read_exact(&mut superblock)?;
    let superblock = Superblock::parse(&superblock).map_err(|error| Refusal::Form(error.to_string()))?;
    if superblock.data_blocks != data_blocks {
        let found = format!("{} blocks in front of byte {hash_offset}", superblock.data_blocks);
        return form(format!("expected the hash tree right behind the data, found {found}"));
    }
    Ok(data_blocks)
}

/// Copies data and hash tree; the superblock between them has an identity of its own, and is made anew.
fn copy(mut from: File, mut to: &File, data_blocks: u64) -> io::Result<()> {
    from.seek(SeekFrom::Start(0))?;
    io::copy(&mut (&from).take(data_blocks * BLOCK_BYTES), &mut to)?;
    to.write_all(&Superblock { data_blocks }.to_block())?;
    from.seek(SeekFrom::Current(BLOCK_BYTES.cast_signed()))?;
    let length = layer::length(data_blocks).unwrap_or(u64::MAX);
    io::copy(&mut from.take(length - (data_blocks + 1) * BLOCK_BYTES), &mut to)?;
    Ok(())
}
