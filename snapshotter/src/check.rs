//! Verifying a store: every layer, block by block, against its root hash.

use std::fs::File;
use std::path::Path;

use crate::error::Error;
use crate::store::{Description, Store, layer};

/// Verifies every layer of the store, in order; tells of each what it is or what is wrong with it.
pub fn layers(store: &Store) -> impl Iterator<Item = (u64, Result<Description, Error>)> {
    store.layers().into_iter().map(|id| (id, layer(&store.layer_directory(id))))
}

/// Verifies the layer in `directory`: length, data, superblock and hash tree.
///
/// # Errors
/// When something differs or cannot be read.
pub fn layer(directory: &Path) -> Result<Description, Error> {
    let description = Description::read(directory)?;
    let path = directory.join(layer::FILE);
    let file = File::open(&path).map_err(Error::file("open", &path))?;
    erofs_verity::layer::verify(&file, description.data_blocks, description.root()?)
        .map_err(|error| Error::Inconsistent { path, what: error.to_string() })?;
    Ok(description)
}
