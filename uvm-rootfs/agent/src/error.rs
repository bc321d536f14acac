//! Why a request fails, and the ttrpc status that says so.

use std::io;

use agent_protocol::id::IdError;
use agent_protocol::oci::OciError;
use agent_protocol::storage::StorageError;
use thiserror::Error;
use ttrpc::Code;

/// Result of what a request asks for.
pub type Result<T> = std::result::Result<T, AgentError>;

/// Why a request fails.
#[derive(Debug, Error)]
pub enum AgentError {
    /// No container or process has that name.
    #[error("{0}")]
    NotFound(String),
    /// The name is taken.
    #[error("{0}")]
    Exists(String),
    /// The request itself is wrong, whatever the state.
    #[error("{0}")]
    Invalid(String),
    /// The request is not possible in the present state.
    #[error("{0}")]
    State(String),
    /// The request asks for something that this agent does not do.
    #[error("{0}")]
    Unsupported(String),
    /// An id is outside the rule.
    #[error(transparent)]
    Id(#[from] IdError),
    /// The OCI configuration cannot be read.
    #[error(transparent)]
    Oci(#[from] OciError),
    /// A storage is not of a known form.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A layer is not what its root hash says.
    #[error("{0}")]
    Corrupt(String),
    /// The container runtime refused.
    #[error("{0}")]
    Runtime(String),
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// What was attempted.
        what: String,
        /// How it failed.
        source: io::Error,
    },
}

impl AgentError {
    /// The ttrpc status of this error.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::NotFound(_) => Code::NOT_FOUND,
            Self::Exists(_) => Code::ALREADY_EXISTS,
            Self::Invalid(_) | Self::Id(_) | Self::Oci(_) | Self::Storage(_) => Code::INVALID_ARGUMENT,
            Self::State(_) => Code::FAILED_PRECONDITION,
            Self::Unsupported(_) => Code::UNIMPLEMENTED,
            Self::Corrupt(_) => Code::DATA_LOSS,
            Self::Runtime(_) | Self::Io { .. } => Code::INTERNAL,
        }
    }
}

impl AgentError {
    /// The same failure, which befell the layer with this root hash: whoever reads it has many layers.
    #[must_use]
    pub fn of_layer(self, root_hash: &str) -> Self {
        let named = |words: String| format!("layer {root_hash}: {words}");
        match self {
            Self::State(words) => Self::State(named(words)),
            Self::Runtime(words) => Self::Runtime(named(words)),
            Self::Io { what, source } => Self::Io { what: named(what), source },
            // These name what they are about.
            other => other,
        }
    }
}

impl From<AgentError> for ttrpc::Error {
    fn from(error: AgentError) -> Self {
        Self::RpcStatus(ttrpc::get_status(error.code(), error.to_string()))
    }
}

/// Says what was attempted when a system call fails.
pub trait Context<T> {
    /// Adds `what`, for example "mount proc at /proc".
    ///
    /// # Errors
    /// The same failure, as [`AgentError::Io`].
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| AgentError::Io { what: what(), source: source.into() })
    }
}
