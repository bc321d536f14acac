//! What takes time: each function here runs in a task of its own and owns no state of the pod.

use std::sync::Arc;
use std::time::Duration;

use agent_protocol::id;
use agent_protocol::rpc::events::Corruption;
use agent_protocol::rpc::oci;
use oci_spec::runtime::Spec;
use tokio::sync::mpsc::UnboundedSender;
use tracing::{debug, error, warn};

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
/// Least time between two reports of corrupt blocks: a guest must not fill the host's log.
const CORRUPTION_PAUSE: Duration = Duration::from_millis(500);
/// Most containers that such a report names: a pod may have hundreds.
const NAMED_CONTAINERS: usize = 16;
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

/// Logs blocks that do not match the hash tree of their layer, as long as the agent reports them: the file of that
/// layer is damaged or replaced on this host.
pub async fn watch_layers(agent: Agent, pod: String) {
    loop {
        match agent.corruption().await {
            Ok(found) => match report(&found) {
                Some(report) => error!(pod, "{report}"),
                None => warn!(pod, "the agent reports a corrupt block of a layer that cannot be named"),
            },
            Err(error) => {
                debug!(pod, %error, "no more reports of corrupt layers");
                return;
            }
        }
        tokio::time::sleep(CORRUPTION_PAUSE).await;
    }
}

/// What the log says of a corrupt block; nothing if the guest's words are not what they should be.
fn report(found: &Corruption) -> Option<String> {
    let is_hash = found.root_hash.len() == 64 && found.root_hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    let containers = found.containers.iter().take(NAMED_CONTAINERS);
    if !is_hash || containers.clone().any(|container| id::check(container).is_err()) {
        return None;
    }
    let names = containers.map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = found.containers.len().saturating_sub(NAMED_CONTAINERS);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let part = if found.in_tree { "hash tree" } else { "data" };
    Some(format!(
        "layer {}: block {} ({part}) does not match the root hash: the layer's file is damaged; containers: {names}{more}",
        found.root_hash, found.block
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn corruption(containers: &[String]) -> Corruption {
        let root_hash = "ab".repeat(32);
        Corruption { root_hash, block: 7, containers: containers.to_vec(), ..Corruption::default() }
    }

    #[test]
    fn a_corrupt_block_is_reported_with_its_layer_and_containers() {
        let said = report(&corruption(&["c1".to_owned(), "c2".to_owned()])).unwrap();
        assert!(said.contains(&"ab".repeat(32)) && said.contains("block 7 (data)"), "{said}");
        assert!(said.ends_with("containers: c1, c2"), "{said}");
        let many: Vec<String> = (0..100).map(|number| format!("c{number}")).collect();
        assert!(report(&corruption(&many)).unwrap().ends_with("c15 and 84 more"));
    }

    #[test]
    fn the_guest_does_not_choose_words_of_the_log() {
        let hash = Corruption { root_hash: "x\ny".to_owned(), ..corruption(&[]) };
        assert_eq!(report(&hash), None);
        assert_eq!(report(&corruption(&["c1\nroot login".to_owned()])), None);
    }
}
