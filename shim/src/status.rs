//! Everything that can go wrong with a task, and the one map from it to ttrpc status codes.
//!
//! containerd acts on the code (a signal to a process that is "not found" has done its job) and shows people
//! the message.

use ttrpc::Code;

use crate::agent::{AgentError, ProcessId};
use crate::config::ConfigError;
use crate::identity::IdentityError;
use crate::io::StdioError;
use crate::layers::LayersError;
use crate::policy::PolicyError;
use crate::sandbox::state::Refused;
use crate::sandbox::vm::VmError;
use crate::scratch::ScratchError;
use crate::shared::SharedError;
use crate::sizing::SizingError;
use crate::spec::SpecError;
use crate::volumes::VolumeError;

/// Why a request of containerd's was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// No such container.
    #[error("container {0} does not exist")]
    NoContainer(String),
    /// No such process.
    #[error("process {0} does not exist")]
    NoProcess(ProcessId),
    /// A process that has ended already.
    #[error("process {0} has finished already")]
    Finished(ProcessId),
    /// A process that another request is changing.
    #[error("process {0} is being created or started")]
    Busy(ProcessId),
    /// The id is taken.
    #[error("process {0} exists already")]
    Exists(ProcessId),
    /// The process is in a phase that does not allow it.
    #[error("{process}: {source}")]
    State {
        /// Which process.
        process: ProcessId,
        /// What it cannot do.
        source: Refused,
    },
    /// Something that this runtime does not do.
    #[error("not supported: {0}")]
    Unsupported(&'static str),
    /// A part of a request that is not what it should be.
    #[error("{what}: expected {expected}, found {found}")]
    Invalid {
        /// Which part.
        what: &'static str,
        /// What would be accepted.
        expected: &'static str,
        /// What came.
        found: String,
    },
    /// The pod's machine has ended.
    #[error("the pod's utility VM has ended: {0}")]
    Ended(String),
    /// The actor that owns the pod has gone.
    #[error("the shim is shutting down")]
    ShuttingDown,
    /// The bundle does not say which pod it belongs to.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The machine's size.
    #[error(transparent)]
    Sizing(#[from] SizingError),
    /// The pod's policy.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The container's spec.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The spec's protobuf form.
    #[error(transparent)]
    Oci(#[from] agent_protocol::oci::OciError),
    /// The copies of the host's files.
    #[error(transparent)]
    Shared(#[from] SharedError),
    /// The root file system.
    #[error(transparent)]
    Layers(#[from] LayersError),
    /// The pod's volumes.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The pod's scratch device.
    #[error(transparent)]
    Scratch(#[from] ScratchError),
    /// A storage that the agent would refuse.
    #[error(transparent)]
    Storage(#[from] agent_protocol::storage::StorageError),
    /// The machine.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// The agent.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The standard streams.
    #[error(transparent)]
    Stdio(#[from] StdioError),
}

impl TaskError {
    /// The code that containerd acts on.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::NoContainer(_) | Self::NoProcess(_) | Self::Finished(_) => Code::NOT_FOUND,
            Self::Exists(_) => Code::ALREADY_EXISTS,
            Self::State { .. } | Self::Busy(_) | Self::Ended(_) => Code::FAILED_PRECONDITION,
            Self::Unsupported(_) => Code::UNIMPLEMENTED,
            Self::Invalid { .. }
            | Self::Identity(_)
            | Self::Config(_)
            | Self::Sizing(_)
            | Self::Policy(_)
            | Self::Spec(_)
            | Self::Oci(_)
            | Self::Shared(_)
            | Self::Volume(_)
            | Self::Stdio(_) => Code::INVALID_ARGUMENT,
            Self::Layers(LayersError::Full { .. }) => Code::RESOURCE_EXHAUSTED,
            Self::ShuttingDown => Code::UNAVAILABLE,
            Self::Agent(AgentError::Call(ttrpc::Error::RpcStatus(status))) => {
                // The agent's own verdict, as far as it is one: a guest cannot make a failure a success.
                status.code.enum_value().ok().filter(|code| *code != Code::OK).unwrap_or(Code::UNKNOWN)
            }
            Self::Layers(_) | Self::Scratch(_) | Self::Storage(_) | Self::Vm(_) | Self::Agent(_) => {
                Code::INTERNAL
            }
        }
    }
}

impl From<TaskError> for ttrpc::Error {
    fn from(error: TaskError) -> Self {
        ttrpc::Error::RpcStatus(ttrpc::get_status(error.code(), error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_agent(code: Code) -> TaskError {
        AgentError::Call(ttrpc::Error::RpcStatus(ttrpc::get_status(code, "why"))).into()
    }

    #[test]
    fn the_agents_code_is_passed_on_but_never_as_success() {
        assert_eq!(from_agent(Code::NOT_FOUND).code(), Code::NOT_FOUND);
        assert_eq!(from_agent(Code::OK).code(), Code::UNKNOWN);
    }

    #[test]
    fn a_message_is_the_whole_story() {
        let ttrpc::Error::RpcStatus(status) = ttrpc::Error::from(from_agent(Code::INTERNAL)) else {
            panic!("expected a status");
        };
        assert_eq!(status.message, "why");
    }
}
