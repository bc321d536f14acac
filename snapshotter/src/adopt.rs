//! Layers that containerd's own erofs snapshotter (2.1 and later) made, with their dm-verity metadata.
//!
//! containerd keeps prebuilt layers in directories of its `layer_content_caches` setting, as
//! `<algorithm>/<first two digits>/<digits>.erofs` of the diff id, with the hash tree appended and a file
//! `….erofs.dmverity` beside it: JSON with `roothash` and `hashoffset`, the byte position of a verity superblock.
//! Such a layer is copied, while its hash tree is computed anew: it is taken only if that gives the root hash
//! that the metadata states, and stored with superblock and tree of our own writing.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use erofs_verity::layer::Layer;
use erofs_verity::verity::{HashTreeBuilder, RootDigest, Superblock};
use serde::Deserialize;

use crate::digest::Digest;
use crate::error::Error;
use crate::store::{Description, LayerPin, Store};

/// Bytes in a block of data and of hash tree.
const BLOCK_BYTES: u64 = 4096;
/// Longest metadata file that is read, in bytes.
const MAX_METADATA_BYTES: u64 = 4096;
/// Where the erofs superblock is, and its magic number (`EROFS_SUPER_OFFSET`, `EROFS_SUPER_MAGIC_V1`).
const EROFS_SUPERBLOCK: u64 = 1024;
const EROFS_MAGIC: [u8; 4] = 0xE0F5_E1E2_u32.to_le_bytes();

/// What stands beside the layer. Fields that are not known are not ignored: they change what the layer is.
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
    let stated: RootDigest = metadata
        .roothash
        .parse()
        .map_err(|error| inconsistent(format!("dm-verity metadata: roothash: {error}")))?;
    let mut file = File::open(path).map_err(Error::file("open", path))?;
    let data_blocks = check(&mut file, metadata.hashoffset).map_err(|error| match error {
        Refusal::Io(error) => Error::file("read", path)(error),
        Refusal::Form(what) => inconsistent(what),
    })?;
    let staged = store.stage()?;
    let layer = copy(file, staged.file(), data_blocks).map_err(Error::file("copy", path))?;
    if layer.root != stated {
        return Err(inconsistent(format!("expected the stated root hash {stated}, found {}", layer.root)));
    }
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

/// Checks that the file is an erofs image with a verity superblock of the one form behind it; tells how many
/// blocks the image has.
fn check(file: &mut File, hash_offset: u64) -> Result<u64, Refusal> {
    let length = file.metadata()?.len();
    let superblock_end = hash_offset.checked_add(BLOCK_BYTES);
    if !hash_offset.is_multiple_of(BLOCK_BYTES) || superblock_end.is_none_or(|end| end > length) {
        let expected = format!("a multiple of {BLOCK_BYTES} with a superblock in {length} bytes");
        return Err(Refusal::Form(format!("hashoffset: expected {expected}, found {hash_offset}")));
    }
    let mut magic = [0; 4];
    file.seek(SeekFrom::Start(EROFS_SUPERBLOCK))?;
    file.read_exact(&mut magic)?;
    if magic != EROFS_MAGIC {
        return Err(Refusal::Form(format!(
            "expected an erofs superblock, found {magic:02x?} for its magic number"
        )));
    }
    let mut superblock = [0; 4096];
    file.seek(SeekFrom::Start(hash_offset))?;
    file.read_exact(&mut superblock)?;
    let superblock = Superblock::parse(&superblock).map_err(|error| Refusal::Form(error.to_string()))?;
    if superblock.data_blocks.checked_mul(BLOCK_BYTES) != Some(hash_offset) {
        let found = format!("{} blocks in front of byte {hash_offset}", superblock.data_blocks);
        return Err(Refusal::Form(format!("expected the hash tree right behind the data, found {found}")));
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(superblock.data_blocks)
}

/// Copies the data and writes superblock and hash tree behind them.
fn copy(from: File, mut to: &File, data_blocks: u64) -> io::Result<Layer> {
    let mut data = BufReader::with_capacity(1 << 20, from).take(data_blocks * BLOCK_BYTES);
    let mut hashes = HashTreeBuilder::default();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let length = data.read(&mut buffer)?;
        if length == 0 {
            break;
        }
        hashes.update(&buffer[..length]);
        to.write_all(&buffer[..length])?;
    }
    let tree = hashes.finish();
    if tree.data_blocks() != data_blocks {
        let found = format!("expected {data_blocks} blocks, found {}", tree.data_blocks());
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, found));
    }
    to.write_all(&Superblock { data_blocks }.to_block())?;
    tree.write_to(to)?;
    let tree_offset = (data_blocks + 1) * BLOCK_BYTES;
    Ok(Layer { root: tree.root(), data_blocks, tree_offset, length: tree_offset + tree.size() })
}
