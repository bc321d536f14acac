//! Why a tree refuses something.

use super::MAX_NAME;
use super::node::Fault;
use crate::erofs::xattr::XattrError;

/// Why a node is refused. `path` is the node's path in the tree, shown lossily.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// Name empty, too long, `.`, `..`, or with a slash or zero byte.
    #[error(
        "{path}: expected a name of 1 to {MAX_NAME} bytes without '/' and zero, other than '.' and '..', found {found} bytes"
    )]
    Name {
        /// Path of the refused entry.
        path: String,
        /// Length of the name.
        found: usize,
    },
    /// The parent is not a directory.
    #[error("{path}: expected a directory above it, found another kind of file")]
    NotDirectory {
        /// Path of the refused entry.
        path: String,
    },
    /// No node has this path.
    #[error("{path}: no such node in the tree")]
    Missing {
        /// Path that was looked up.
        path: String,
    },
    /// The name is taken.
    #[error("{path}: is in the tree already")]
    Exists {
        /// Path of the refused entry.
        path: String,
    },
    /// A second name for a directory.
    #[error("{path}: expected a hard link to a file, found one to a directory")]
    DirectoryLink {
        /// Path of the refused entry.
        path: String,
    },
    /// Something that Linux or erofs cannot represent.
    #[error("{path}: {what}: expected {expected}, found {found}")]
    Field {
        /// Path of the refused node.
        path: String,
        /// Field of the node.
        what: &'static str,
        /// Range or form that is possible.
        expected: String,
        /// What was given.
        found: String,
    },
    /// An extended attribute that erofs cannot represent.
    #[error("{path}: {source}")]
    Xattr {
        /// Path of the refused node.
        path: String,
        /// What is wrong with it.
        source: XattrError,
    },
    /// More than the tree may take in memory.
    #[error("{path}: expected a tree of at most {budget} bytes in memory, found {needed} with this entry")]
    Budget {
        /// Path of the refused entry.
        path: String,
        /// What is allowed, in bytes.
        budget: usize,
        /// What the tree would take, in bytes.
        needed: usize,
    },
    /// More nodes, links to a node, or bytes of names, targets or attributes than fit 32 bits.
    #[error("{path}: expected nodes, links and names that 32 bits can number, found more")]
    TooMany {
        /// Path of the refused entry.
        path: String,
    },
}

impl Fault {
    pub(super) fn at(self, path: String) -> TreeError {
        match self {
            Self::Field { what, expected, found } => TreeError::Field { path, what, expected, found },
            Self::Xattr(source) => TreeError::Xattr { path, source },
        }
    }
}
