//! Layers that containerd's own erofs snapshotter made (containerd 2.1 on).
//!
//! Its `layer.erofs` has the form of a layer file: an erofs image, at `hashoffset` a dm-verity superblock, then the
//! hash tree; the metadata beside it, `{"roothash":…,"hashoffset":…}`, is what its writer says of it. It is used as
//! it is, but only after the hash tree of its data was computed here and found to be the one in the file, with the
//! root hash that the metadata states: a layer that the guest would refuse is refused before anything runs. What
//! was found is remembered as long as the file does not change.

use std::fs::File;
use std::path::{Path, PathBuf};

use agent_protocol::storage::BLOCK_SIZE;
use erofs_verity::layer;
use erofs_verity::verity::RootDigestError;
use serde::Deserialize;

use super::cache::{Entry, recall, remember};
use super::record::read_json;
use super::{Description, LayerFile, LayersError, file_error, layer_error};

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
        let root = description.root_hash.parse().map_err(|error: RootDigestError| {
            layer_error(&image.metadata, "roothash", "64 hexadecimal digits", error)
        })?;
        layer::verify(&file, data_blocks, root)
            .map_err(|source| LayersError::Verify { path: image.path.clone(), source })?;
        remember(&description, &entry.record())?;
    }
    Ok(LayerFile { path: image.path.clone(), description })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::FileExt;

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
            (8192, "block 2 (data)"),
            (data_end - 1, "(data)"),
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
        assert!(refusal().contains("does not match the root hash"), "{}", refusal());
        state(&image, &root_hash, data_blocks * 4096 - 4096);
        assert!(refusal().contains("length"), "{}", refusal());
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
