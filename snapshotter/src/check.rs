//! Verifying a store: each layer's hash tree is computed anew over its data.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use erofs_verity::verity::{HashTreeBuilder, Superblock};

use crate::error::Error;
use crate::store::{Description, Store, layer};

/// Bytes in a block.
const BLOCK_BYTES: u64 = 4096;
const BUFFER_BYTES: usize = 1 << 20;

/// Verifies every layer of the store, in order; tells of each what it is or what is wrong with it.
pub fn layers(store: &Store) -> impl Iterator<Item = (u64, Result<Description, Error>)> {
    store.layers().into_iter().map(|id| (id, layer(&store.layer_directory(id))))
}

/// Verifies the layer in `directory`: length, data against the root hash, superblock and hash tree byte by byte.
///
/// # Errors
/// When something differs or cannot be read.
pub fn layer(directory: &Path) -> Result<Description, Error> {
    let description = Description::read(directory)?;
    let path = directory.join(layer::FILE);
    let differs = |what: String| Error::Inconsistent { path: path.clone(), what };
    let mut file = File::open(&path).map_err(Error::file("open", &path))?;
    let hashes = hash(&mut file, description.data_blocks).map_err(Error::file("read", &path))?.finish();
    if hashes.root().to_string() != description.root_hash() {
        return Err(differs(format!(
            "expected root hash {}, found {}",
            description.root_hash(),
            hashes.root()
        )));
    }
    let mut behind = Superblock { data_blocks: description.data_blocks }.to_block();
    hashes.write_to(&mut behind).map_err(Error::file("compute the hash tree of", &path))?;
    let expected = description.data_blocks * BLOCK_BYTES + behind.len() as u64;
    if expected != description.length {
        return Err(differs(format!("expected {expected} bytes, found {}", description.length)));
    }
    let mut found = vec![0; behind.len()];
    file.seek(SeekFrom::Start(description.data_blocks * BLOCK_BYTES))
        .and_then(|_| file.read_exact(&mut found))
        .map_err(Error::file("read", &path))?;
    if let Some(at) = behind.iter().zip(&found).position(|(expected, found)| expected != found) {
        let at = description.data_blocks * BLOCK_BYTES + at as u64;
        return Err(differs(format!("superblock or hash tree differ at byte {at}")));
    }
    Ok(description)
}

fn hash(file: &mut File, data_blocks: u64) -> io::Result<HashTreeBuilder> {
    let mut hashes = HashTreeBuilder::default();
    let mut data = file.take(data_blocks.saturating_mul(BLOCK_BYTES));
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let length = data.read(&mut buffer)?;
        if length == 0 {
            return Ok(hashes);
        }
        hashes.update(&buffer[..length]);
    }
}
