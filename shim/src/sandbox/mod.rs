//! A pod and the actor that owns it.
//!
//! One task, the actor, owns all state: the machine, the containers, their processes. Requests of
//! containerd's arrive as [`Command`]s, each with the place for its answer. What takes time (booting, packing,
//! attaching, asking the guest) runs in tasks of its own, which come back with notices; so the actor never waits, and
//! questions are answered while a guest hangs. Events leave in the order in which the actor's state changes:
//! create before start before exit before delete.

mod actor;
mod boot;
mod effects;
mod ending;
mod handshake;
mod lifecycle;
mod notice;
mod process;
pub mod state;
pub mod vm;

use std::path::PathBuf;
use std::sync::Arc;

use agent_protocol::rpc::oci;
use containerd_shim::protos::api::Mount;
use containerd_shim::protos::cgroups_v2::metrics::Metrics;
use containerd_shim::protos::protobuf::well_known_types::any::Any;
use tokio::sync::{mpsc, oneshot};

use crate::agent::ProcessId;
use crate::events::Publisher;
use crate::io::Stdio;
use crate::state_dir::StateDir;
use crate::status::TaskError;
pub use process::Reply;
use state::{Exit, Phase};
use vm::VmDriver;

/// Most requests that wait for the actor; it answers each at once, so this is never reached in practice.
const QUEUE: usize = 64;

/// What a pod is made with.
pub struct Settings {
    /// Starts its machine.
    pub driver: Arc<dyn VmDriver>,
    /// Takes its events.
    pub publisher: Publisher,
    /// Its id.
    pub id: String,
    /// Its directory.
    pub state: StateDir,
}

/// A container to create.
#[derive(Debug)]
pub struct Create {
    /// Its id.
    pub id: String,
    /// Directory with its `config.json`.
    pub bundle: PathBuf,
    /// The mounts that would make its root file system on the host.
    pub rootfs: Vec<Mount>,
    /// Where its first process's streams go.
    pub stdio: Stdio,
    /// The runtime's options.
    pub options: Option<Any>,
}

/// What is known of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Directory with its container's `config.json`.
    pub bundle: PathBuf,
    /// Process id of the machine on the host; a guest's process ids mean nothing there.
    pub pid: u32,
    /// Where it is in its life.
    pub phase: Phase,
    /// Where its streams go.
    pub stdio: Stdio,
    /// How it ended, if it has.
    pub exit: Option<Exit>,
}

/// What is left of a deleted process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deleted {
    /// Process id of the machine on the host.
    pub pid: u32,
    /// How the process ended; one that never ran has status 0.
    pub exit: Exit,
}

/// A request of containerd's.
pub enum Command {
    /// Create a container; with the pod's first one, its machine.
    Create(Box<Create>, Reply<u32>),
    /// Note an additional process of a container, to be started later.
    Exec(ProcessId, Box<oci::Process>, Stdio, Reply<()>),
    /// Start a process.
    Start(ProcessId, Reply<u32>),
    /// Remove what is left of a process.
    Delete(ProcessId, Reply<Deleted>),
    /// Tell what is known of a process.
    State(ProcessId, Reply<Snapshot>),
    /// Tell when and how a process ended.
    Wait(ProcessId, Reply<Exit>),
    /// Send a signal to a process, or with `true` to all processes of its container.
    Kill(ProcessId, u32, bool, Reply<()>),
    /// Freeze a container.
    Pause(String, Reply<()>),
    /// Thaw a container.
    Resume(String, Reply<()>),
    /// Change the size of a process's terminal: rows, columns.
    Resize(ProcessId, u32, u32, Reply<()>),
    /// End a process's input.
    CloseStdin(ProcessId, Reply<()>),
    /// Change a container's limits.
    Update(String, Box<oci::LinuxResources>, Reply<()>),
    /// Tell what a container uses.
    Stats(String, Reply<Metrics>),
    /// Name a container's running processes: exec ids, empty for the first one; and the machine's process id.
    Pids(String, Reply<(u32, Vec<String>)>),
    /// End, if no container is left; tell whether it is so.
    Shutdown(Reply<bool>),
}

/// A handle to a pod's actor.
#[derive(Debug, Clone)]
pub struct Pod {
    commands: mpsc::Sender<Command>,
}

impl Pod {
    /// Starts the actor of a pod that has no machine yet.
    #[must_use]
    pub fn start(settings: Settings) -> Self {
        let (commands, requests) = mpsc::channel(QUEUE);
        tokio::spawn(actor::Actor::new(settings).run(requests));
        Self { commands }
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// Those of the request.
    pub async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, TaskError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| TaskError::ShuttingDown)?;
        answer.await.map_err(|_| TaskError::ShuttingDown)?
    }
}
