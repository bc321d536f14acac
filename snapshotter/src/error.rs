//! What can go wrong, and what containerd is told about it.
//!
//! containerd acts on the status code alone (`AlreadyExists`, `NotFound`, `FailedPrecondition`,
//! `Unimplemented`), people read the message; the code is therefore a function of the variant.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tonic::{Code, Status};

use crate::digest::Digest;

/// An error of the store or of the service over it. Cheap to clone: several clients may wait for the same
/// conversion and are all told why it failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// No snapshot of that name.
    #[error("snapshot {0:?} does not exist")]
    NotFound(String),
    /// There is a snapshot of that name.
    #[error("snapshot {0:?} already exists")]
    AlreadyExists(String),
    /// Something can be done with a snapshot of another kind only.
    #[error("snapshot {name:?}: expected one that is {expected}, found that it is {found}")]
    Kind {
        /// Name of the snapshot.
        name: String,
        /// The kind it has to be.
        expected: &'static str,
        /// The kind it is.
        found: &'static str,
    },
    /// Other snapshots are based on it.
    #[error("snapshot {0:?} cannot be removed: other snapshots have it as their parent")]
    HasChildren(String),
    /// A request that makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// A filter that cannot be read.
    #[error(transparent)]
    Filter(#[from] crate::filter::FilterError),
    /// Mounts that are not those of an extraction of ours: another differ's turn.
    #[error("the mounts are not an extraction snapshot of this snapshotter")]
    ForeignMounts,
    /// Not offered at all.
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    /// The operating system refused something.
    #[error("cannot {what} {path}: {source}", path = .path.display())]
    File {
        /// What was attempted.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// Files of the store that do not fit together.
    #[error("{path}: {what}", path = .path.display())]
    Inconsistent {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// containerd's content store did not answer as expected.
    #[error("containerd's content store: {what}: {message}")]
    Content {
        /// What was asked for.
        what: String,
        /// What it answered.
        message: String,
    },
    /// A layer that cannot be converted.
    #[error("layer {blob}: {message}")]
    Conversion {
        /// Digest of the blob.
        blob: Digest,
        /// Why.
        message: String,
        /// Whether the store's file system is full.
        full: bool,
    },
    /// A layer whose contents are not what its image's configuration says.
    #[error("layer {blob}: expected {what} {expected}, found {found}")]
    Digest {
        /// Digest by which the blob was asked for.
        blob: Digest,
        /// Which digest differs.
        what: &'static str,
        /// What it has to be.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
    /// A directory that cannot be packed into a layer.
    #[error("snapshot {name:?} cannot be packed: {message}")]
    Pack {
        /// Name of the snapshot.
        name: String,
        /// Why.
        message: String,
        /// Whether the store's file system is full.
        full: bool,
    },
    /// A task ended without an answer.
    #[error("{0} was interrupted")]
    Interrupted(&'static str),
}

impl Error {
    /// Wraps an I/O error: `map_err(Error::file("open", path))`.
    pub fn file<'a, E: Into<io::Error>>(what: &'static str, path: &'a Path) -> impl FnOnce(E) -> Self + 'a {
        move |source| Self::File { what, path: path.into(), source: Arc::new(source.into()) }
    }

    /// The status code that containerd understands.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::NotFound(_) => Code::NotFound,
            Self::AlreadyExists(_) => Code::AlreadyExists,
            Self::Kind { .. } | Self::HasChildren(_) | Self::Digest { .. } => Code::FailedPrecondition,
            Self::Invalid(_) | Self::Filter(_) => Code::InvalidArgument,
            Self::ForeignMounts | Self::Unsupported(_) => Code::Unimplemented,
            Self::File { source, .. } if is_full(source) => Code::ResourceExhausted,
            Self::Conversion { full: true, .. } | Self::Pack { full: true, .. } => Code::ResourceExhausted,
            Self::Conversion { .. } | Self::Pack { .. } => Code::FailedPrecondition,
            Self::Content { .. } => Code::Unavailable,
            Self::File { .. } | Self::Inconsistent { .. } | Self::Interrupted(_) => Code::Internal,
        }
    }
}

/// Whether an error says that a file system or a quota is full.
#[must_use]
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Self::new(error.code(), error.to_string())
    }
}
