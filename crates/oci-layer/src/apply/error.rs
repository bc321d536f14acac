//! Why an entry is refused.

use erofs_verity::layer::WriteError;
use erofs_verity::tree::TreeError;

use crate::tar::TarError;

/// Why an archive cannot be applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The archive is malformed.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// An entry means nothing in a layer.
    #[error("layer: entry at byte {offset}, {path:?}: expected {expected}, found {found}")]
    Entry {
        /// Offset of the entry's header in the uncompressed archive.
        offset: u64,
        /// Path as the entry writes it, shown lossily and shortened.
        path: String,
        /// What would be allowed.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The tree refuses an entry.
    #[error("layer: entry at byte {offset}: {source}")]
    Tree {
        /// Offset of the entry's header in the uncompressed archive.
        offset: u64,
        /// What the tree says.
        source: TreeError,
    },
    /// The layer file cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}
