//! What the tasks that wait for the guest bring back to the actor.

use super::process::Reply;
use super::state::Step;
use super::{Create, Deleted};
use crate::agent::{AgentError, ProcessId};
use crate::container::Guest;
use crate::io::{OpenStdio, Relays};
use crate::status::TaskError;

/// A container that was created, or why it was not.
pub enum Created {
    /// It exists in the guest.
    Ok {
        /// The machine, if this container brought it about.
        booted: Option<Guest>,
        /// Its streams.
        stdio: Box<OpenStdio>,
    },
    /// It does not, for this reason.
    Failed(TaskError),
}

/// News for the actor.
pub enum Notice {
    /// The creation of a container has come to its end.
    Created(Box<Create>, Created, Reply<u32>),
    /// The start of a process has come to its end.
    Started(ProcessId, Result<Option<Relays>, TaskError>, Reply<u32>),
    /// A process has ended, or the question how it ended could not be answered.
    Exited(ProcessId, Result<u32, AgentError>),
    /// The time is over in which a container's first process, killed, should have ended.
    KillOverdue(ProcessId),
    /// A container was frozen or thawed, or could not be: the step that its state takes.
    Frozen(String, Step, Result<(), AgentError>, Reply<()>),
    /// A process was removed.
    Deleted(ProcessId, Deleted, Reply<Deleted>),
    /// A container ran out of memory.
    OutOfMemory(String),
    /// The machine has ended, for this reason.
    MachineEnded(String),
}
