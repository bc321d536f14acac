//! What takes time: each function here runs in a task of its own and owns no state of the pod.

use std::sync::Arc;
use std::time::Duration;

use agent_protocol::rpc::oci;
use oci_spec::runtime::Spec;
use tokio::sync::mpsc::UnboundedSender;
use tracing::{debug, warn};

use super::Create;
use super::boot::boot;
use super::notice::{Created, Notice};
use super::process::Streams;
use super::vm::{END_GRACE, VmDriver};
use crate::agent::{Agent, AgentError, ProcessId};
use crate::container::{Guest, NewContainer};
use crate::identity::Role;
use crate::io::{OpenStdio, Relays, Stdio};
use crate::state_dir::StateDir;
use crate::status::TaskError;

/// How long the output of a process that has ended may take to be passed on.
pub const DRAIN: Duration = Duration::from_secs(5);
/// The same when the machine has ended: what it sent is here already.
pub const DRAIN_AFTER_END: Duration = Duration::from_millis(500);
/// Least time between two reports of memory that ran out: a guest must not crowd out other events.
const OOM_PAUSE: Duration = Duration::from_millis(50);
/// How long the end of a killed process waits for the report that memory ran out, which travels beside it.
pub const OOM_GRACE: Duration = Duration::from_millis(100);
/// How long a guest may take to end a process that was killed.
pub const KILL_LIMIT: Duration = Duration::from_secs(20);

/// Signal that no process can ignore.
pub const SIGKILL: u32 = 9;

/// A container's creation, and its pod's if it is the first.
pub struct Creation {
    /// Starts the machine.
    pub driver: Arc<dyn VmDriver>,
    /// The pod's directory.
    pub state: StateDir,
    /// What the container is to its pod.
    pub role: Role,
    /// Its spec.
    pub spec: Spec,
    /// The machine, unless this container is to bring it about.
    pub guest: Option<Guest>,
}

impl Creation {
    /// Creates the container. When it fails, nothing is left of what it brought about.
    pub async fn run(self, create: &Create) -> Created {
        match self.try_run(create).await {
            Ok((booted, stdio)) => Created::Ok { booted, stdio },
            Err(error) => Created::Failed(error),
        }
    }

    async fn try_run(self, create: &Create) -> Result<(Option<Guest>, Box<OpenStdio>), TaskError> {
        let stdio = Box::new(create.stdio.open().await?);
        let boots = self.guest.is_none();
        let guest = match self.guest {
            Some(guest) => guest,
            None => {
                let options = create.options.as_ref();
                boot(&*self.driver, &self.state, &create.id, self.role, &self.spec, options).await?
            }
        };
        if self.role != Role::Sandbox {
            let new = NewContainer { id: create.id.clone(), spec: self.spec, rootfs: create.rootfs.clone() };
            if let Err(error) = guest.create(new).await {
                let error = explain(&guest, error).await;
                if boots {
                    end_pod(&guest).await;
                }
                return Err(error);
            }
        }
        Ok((boots.then_some(guest), stdio))
    }
}

/// Talk with the guest that breaks off is most often a machine that ends: why it ends says more.
pub async fn explain(guest: &Guest, error: TaskError) -> TaskError {
    match &error {
        TaskError::Agent(AgentError::Call(ttrpc::Error::RpcStatus(_))) => error,
        TaskError::Agent(_) | TaskError::Vm(_) => {
            let ended = tokio::time::timeout(END_GRACE, guest.vm.wait()).await;
            ended.map_or(error, TaskError::Ended)
        }
        _ => error,
    }
}

/// Ends the machine and removes what the pod has on the host.
pub async fn end_pod(guest: &Guest) {
    guest.vm.stop().await;
    if let Err(error) = guest.state.remove() {
        tracing::warn!(path = %guest.state.path().display(), %error, "the pod's directory is not removed");
    }
}

/// Starts a container's first process.
///
/// # Errors
/// When the agent cannot.
pub async fn start_first(
    agent: &Agent,
    process: &ProcessId,
    stdio: Option<Box<OpenStdio>>,
) -> Result<Option<Relays>, TaskError> {
    agent.start_container(&process.container).await?;
    Ok(stdio.map(|stdio| stdio.relay(agent, process)))
}

/// Starts an additional process.
///
/// # Errors
/// When its streams cannot be opened, or the agent cannot start it.
pub async fn start_exec(
    agent: &Agent,
    process: &ProcessId,
    spec: oci::Process,
    stdio: Stdio,
) -> Result<Option<Relays>, TaskError> {
    let stdio = stdio.open().await?;
    agent.exec(process, spec).await?;
    Ok(Some(stdio.relay(agent, process)))
}

/// Delivers a signal. Killing a container's first process is a promise that does not depend on the guest: if
/// its agent does not take the signal, the machine is ended.
///
/// # Errors
/// When the agent refuses, or does not answer for another signal or container.
pub async fn signal(guest: &Guest, process: &ProcessId, signal: u32, all: bool) -> Result<(), TaskError> {
    let delivered = if all {
        guest.agent.signal_all(&process.container, signal).await
    } else {
        guest.agent.signal(process, signal).await
    };
    match delivered {
        Err(error) if signal == SIGKILL && process.exec.is_empty() && !error.is_not_found() => {
            warn!(%process, %error, "the guest does not kill: its machine is stopped");
            guest.vm.stop().await;
            Ok(())
        }
        delivered => Ok(delivered?),
    }
}

/// Lets what streams still carry pass, each within `limit`.
pub async fn drain(streams: Vec<Streams>, limit: Duration) {
    for streams in streams {
        if let Streams::Relayed(relays) = streams {
            relays.finish(limit).await;
        }
    }
}

/// Reports the machine's end.
pub async fn watch_machine(guest: Guest, notices: UnboundedSender<Notice>) {
    let why = guest.vm.wait().await;
    // Nobody listens when the shim is shutting down.
    let _ = notices.send(Notice::MachineEnded(why));
}

/// Reports containers that run out of memory, as long as the agent does.
pub async fn watch_memory(agent: Agent, notices: UnboundedSender<Notice>) {
    loop {
        match agent.oom_event().await {
            Ok(container) => {
                if notices.send(Notice::OutOfMemory(container)).is_err() {
                    return;
                }
            }
            Err(error) => {
                debug!(%error, "no more reports of memory that ran out");
                return;
            }
        }
        tokio::time::sleep(OOM_PAUSE).await;
    }
}
