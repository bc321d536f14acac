//! What it takes in a pod's machine to create a container and to take it away again.
//!
//! Creating: the host's files are copied into the guest, the root file system is packed and attached to a block
//! slot, and the agent is told. Each step that fails undoes the ones before it. Taking away goes the other way
//! round, and only a slot that the guest has let go of is used again.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use agent_protocol::rpc::agent::CreateContainerRequest;
use containerd_shim::protos::api::Mount;
use oci_spec::runtime::Spec;
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tracing::warn;

use crate::agent::Agent;
use crate::layers::{self, Directories, PackedLayer};
use crate::sandbox::vm::{Vm, VmError};
use crate::shared::{self, Budget};
use crate::spec::{self, SharedPath};
use crate::state_dir::StateDir;
use crate::status::TaskError;

/// A running machine and everything that its containers need of the host.
#[derive(Clone)]
pub struct Guest {
    /// The machine.
    pub vm: Arc<dyn Vm>,
    /// Its agent.
    pub agent: Agent,
    /// The pod's directory.
    pub state: StateDir,
    /// Where packed layers are kept.
    pub cache: PathBuf,
    /// The host's files that are in the guest. An asynchronous lock, held while files are sent: two
    /// containers that name the same file must not both send it.
    pub shared: Arc<Mutex<SharedFiles>>,
}

/// The copies of the host's files in a guest.
#[derive(Debug, Default)]
pub struct SharedFiles {
    sent: HashSet<SharedPath>,
    budget: Budget,
}

/// What containerd says about a container to create.
#[derive(Debug)]
pub struct NewContainer {
    /// Its id.
    pub id: String,
    /// Its spec, as containerd wrote it.
    pub spec: Spec,
    /// The mounts that would make its root file system on the host.
    pub rootfs: Vec<Mount>,
}

/// What became of a block slot that a container had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// It is empty.
    Free(u32),
    /// The guest or the machine may still use it: it is never used again.
    Lost(u32),
}

impl Guest {
    /// Creates a container with its root file system in `slot`.
    ///
    /// # Errors
    /// Says why, and what became of the slot.
    pub async fn create(&self, new: NewContainer, slot: u32) -> Result<(), (TaskError, Slot)> {
        let free = |error: TaskError| (error, Slot::Free(slot));
        let NewContainer { id, spec, rootfs } = new;
        let guest = spec::for_guest(&id, spec).map_err(|error| free(error.into()))?;
        let oci = agent_protocol::oci::encode(&guest.spec).map_err(|error| free(error.into()))?;
        self.send_shared(guest.shared).await.map_err(free)?;
        let layers = self.pack(&id, &rootfs).await.map_err(free)?;
        let storages = layers::storages(&id, slot, &layers).map_err(|error| free(error.into()))?;
        let segments = layers::segments(&layers).map_err(|error| free(error.into()))?;
        self.vm.attach(slot, segments).await.map_err(|error| free(error.into()))?;
        let request = CreateContainerRequest {
            exec_id: id.clone(),
            container_id: id,
            storages,
            OCI: Some(oci).into(),
            sandbox_pidns: guest.shared_pids,
            ..Default::default()
        };
        match self.agent.create_container(&request).await {
            Ok(()) => Ok(()),
            // The agent undoes what it did when it says no. When it says nothing, who knows.
            Err(error) if error.is_refusal() => {
                let slot = self.detach(slot).await;
                Err((error.into(), slot))
            }
            Err(error) => Err((error.into(), Slot::Lost(slot))),
        }
    }

    /// Takes away a container that does not run, and its root file system.
    ///
    /// # Errors
    /// When the agent does not let go of it.
    pub async fn remove(&self, id: &str, slot: u32) -> Slot {
        if let Err(error) = self.agent.remove_container(id).await {
            warn!(container = id, slot, %error, "the agent does not let go of the container: its slot is lost");
            return Slot::Lost(slot);
        }
        self.detach(slot).await
    }

    async fn detach(&self, slot: u32) -> Slot {
        match self.vm.detach(slot).await {
            Ok(()) => Slot::Free(slot),
            Err(error) => {
                warn!(slot, %error, "the machine does not empty the slot: it is lost");
                Slot::Lost(slot)
            }
        }
    }

    async fn pack(&self, id: &str, rootfs: &[Mount]) -> Result<Vec<PackedLayer>, TaskError> {
        let directories = Directories::from_mounts(rootfs)?;
        let (cache, private) = (self.cache.clone(), self.state.private_layer(id));
        let packed = spawn_blocking(move || directories.pack(&cache, &private)).await;
        Ok(packed.map_err(|_| VmError::Broken)??)
    }

    async fn send_shared(&self, paths: Vec<SharedPath>) -> Result<(), TaskError> {
        let mut files = self.shared.lock().await;
        for path in paths {
            if files.sent.contains(&path) {
                continue;
            }
            let (mut budget, source) = (files.budget, path.clone());
            // A file system that does not answer must not hold up the rest of the pod.
            let read =
                spawn_blocking(move || shared::read(&source, &mut budget).map(|requests| (requests, budget)));
            let (requests, budget) = read.await.map_err(|_| VmError::Broken)??;
            for request in requests {
                self.agent.copy_file(&request).await?;
            }
            files.budget = budget;
            files.sent.insert(path);
        }
        Ok(())
    }
}
