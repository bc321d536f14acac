//! Layers that containerd's own erofs snapshotter made (containerd 2.1 on).
//!
//! Its `layer.erofs` has the form of a layer file: an erofs image, at `hashoffset` a dm-verity superblock, then the
//! hash tree; the metadata beside it, `{"roothash":…,"hashoffset":…}`, is what its writer says of it. It is used as
//! it is, but only after the hash tree of its data was computed here and found to be the one in the file, with the
//! root hash that the metadata states: a layer that the guest would refuse is refused before anything runs. What
//! was found is remembered as long as the file does not change.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use agent_protocol::storage::BLOCK_SIZE;
use erofs_verity::verity::{HashTree, HashTreeBuilder, SUPERBLOCK_SIZE, Superblock};
use serde::Deserialize;

use super::cache::{Entry, recall, remember};
use super::record::read_json;
use super::{Description, LayerFile, LayersError, file_error, layer_error};

/// Bytes that are read and hashed at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// An erofs image and the file with its dm-verity metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The image, its superblock and hash tree.
    pub path: PathBuf,
    /// The metadata.
    pub metadata: PathBuf,
}

/// The metadata. A key that is not known, such as another file for the hashes, is refused.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    roothash: String,
    /// First byte of the superblock in the image's file.
    hashoffset: u64,
}

/// The layer in `image`, whose hash tree is what its metadata says.
///
/// # Errors
/// When image or metadata cannot be read, have another form, or do not agree.
pub fn verified(image: &Image, cache: &Path) -> Result<LayerFile, LayersError> {
    let open = |path: &Path| File::open(path).map_err(file_error("open", path));
    let stated: Metadata = read_json(open(&image.metadata)?, &image.metadata)?;
    let entry = Entry::lock(cache, &image.path)?;
    let file = open(&image.path)?;
    let length = file.metadata().map_err(file_error("read", &image.path))?.len();
    if !stated.hashoffset.is_multiple_of(BLOCK_SIZE) {
        let expected = format!("a multiple of {BLOCK_SIZE}");
        return Err(layer_error(&image.metadata, "hashoffset", expected, stated.hashoffset));
    }
    let data_blocks = stated.hashoffset / BLOCK_SIZE;
    let description =
        Description { root_hash: stated.roothash, data_blocks, length }.check(&image.metadata)?;
    if recall(&entry.record()).as_ref() != Some(&description) {
        verify(&file, &image.path, &description)?;
        remember(&description, &entry.record())?;
    }
    Ok(LayerFile { path: image.path.clone(), description })
}

/// Computes the hash tree of the data in `file` and compares it with what is there and with `stated`.
fn verify(file: &File, path: &Path, stated: &Description) -> Result<(), LayersError> {
    let mut block = [0; SUPERBLOCK_SIZE];
    let superblock_at = stated.data_blocks * BLOCK_SIZE;
    file.read_exact_at(&mut block, superblock_at).map_err(file_error("read", path))?;
    let superblock = Superblock::parse(&block).map_err(|error| {
        layer_error(path, "superblock", "SHA-256, blocks of 4096 bytes, 32 zeros of salt", error)
    })?;
    if superblock.data_blocks != stated.data_blocks {
        return Err(layer_error(path, "data blocks", stated.data_blocks, superblock.data_blocks));
    }
    let tree = hash(file, superblock_at).map_err(file_error("read", path))?;
    if tree.root().to_string() != stated.root_hash {
        return Err(layer_error(path, "root hash of its data", &stated.root_hash, tree.root()));
    }
    let expected = superblock_at + BLOCK_SIZE + tree.size();
    if stated.length != expected {
        return Err(layer_error(path, "length", expected, stated.length));
    }
    let mut comparison = Comparison { file, at: superblock_at + BLOCK_SIZE };
    match tree.write_to(&mut comparison) {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Err(layer_error(path, "hash tree", "that of its data", error))
        }
        other => other.map_err(file_error("read", path)),
    }
}

fn hash(file: &File, bytes: u64) -> io::Result<HashTree> {
    let mut hashes = HashTreeBuilder::default();
    let mut data = file.take(bytes);
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut read = 0;
    loop {
        match data.read(&mut chunk)? {
            0 if read == bytes => return Ok(hashes.finish()),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            length => {
                hashes.update(&chunk[..length]);
                read += length as u64;
            }
        }
    }
}

/// Takes bytes as long as they are those of the file from `at` on.
struct Comparison<'a> {
    file: &'a File,
    at: u64,
}

impl Write for Comparison<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut found = vec![0; bytes.len().min(CHUNK_BYTES)];
        self.file.read_exact_at(&mut found, self.at)?;
        if found != bytes[..found.len()] {
            let what = format!("another one after byte {}", self.at);
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        self.at += found.len() as u64;
        Ok(found.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::super::pack;
    use super::*;

    /// A layer of our own has the very form that is asked for.
    fn image(root: &Path) -> (Image, LayerFile) {
        let directory = root.join("fs");
        fs::create_dir(&directory).unwrap();
        // Enough data for a tree of two levels.
        let data: Vec<u8> = (0..200 * 4096_u32).map(|n| n.to_le_bytes()[1]).collect();
        fs::write(directory.join("file"), data).unwrap();
        let path = root.join("layer.erofs");
        let layer = pack::to(&directory, &path).unwrap();
        let image = Image { metadata: root.join("layer.erofs.dmverity"), path };
        state(&image, &layer.description.root_hash, layer.description.data_blocks * 4096);
        (image, layer)
    }

    fn state(image: &Image, root_hash: &str, offset: u64) {
        let json = json!({ "roothash": root_hash, "hashoffset": offset });
        fs::write(&image.metadata, json.to_string()).unwrap();
    }

    fn flip(path: &Path, at: u64) {
        let file = File::options().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    }

    #[test]
    fn an_image_that_is_what_its_metadata_says_is_used_as_it_is() {
        let root = tempfile::tempdir().unwrap();
        let cache = root.path().join("cache");
        let (image, layer) = image(root.path());
        assert_eq!(verified(&image, &cache).unwrap(), layer);
        let records = || fs::read_dir(&cache).unwrap().count();
        let before = records();
        assert_eq!(verified(&image, &cache).unwrap(), layer);
        assert_eq!(records(), before);
    }

    #[test]
    fn data_tree_and_superblock_must_agree() {
        let root = tempfile::tempdir().unwrap();
        let cache = root.path().join("cache");
        let (image, layer) = image(root.path());
        let data_end = layer.description.data_blocks * 4096;
        let cases = [
            (8192, "root hash of its data"),
            (data_end - 1, "root hash of its data"),
            (data_end, "superblock"),
            (data_end + 88, "superblock"),
            (data_end + 4096, "hash tree"),
            (layer.description.length - 1, "hash tree"),
        ];
        for (at, field) in cases {
            flip(&image.path, at);
            let error = verified(&image, &cache).unwrap_err().to_string();
            assert!(error.contains("layer.erofs: ") && error.contains(field), "byte {at}: {error}");
            flip(&image.path, at);
        }
        assert_eq!(verified(&image, &cache).unwrap(), layer);
    }

    #[test]
    fn what_the_metadata_says_is_checked_again_when_it_changes() {
        let root = tempfile::tempdir().unwrap();
        let cache = root.path().join("cache");
        let (image, layer) = image(root.path());
        let Description { root_hash, data_blocks, length } = layer.description;
        verified(&image, &cache).unwrap();
        let refusal = || verified(&image, &cache).unwrap_err().to_string();
        state(&image, &"ab".repeat(32), data_blocks * 4096);
        assert!(refusal().contains("root hash of its data: expected abab"), "{}", refusal());
        state(&image, &root_hash, data_blocks * 4096 - 4096);
        assert!(refusal().contains("superblock"), "{}", refusal());
        for offset in [0, 1, length, u64::MAX - 4095] {
            state(&image, &root_hash, offset);
            assert!(refusal().contains("layer.erofs.dmverity"), "{}", refusal());
        }
        fs::write(&image.metadata, r#"{"roothash":"ab","hashoffset":0,"hashdevice":"/x"}"#).unwrap();
        assert!(refusal().contains("hashdevice"), "{}", refusal());
        state(&image, &root_hash, data_blocks * 4096);
        File::options().write(true).open(&image.path).unwrap().set_len(length + 4096).unwrap();
        assert!(refusal().contains("length"), "{}", refusal());
        fs::remove_file(&image.metadata).unwrap();
        assert!(refusal().contains("cannot open"), "{}", refusal());
    }
}
