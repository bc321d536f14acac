//! What it takes in a pod's machine to create a container and to take it away again.
//!
//! Creating: volumes are recognised, the host's files are copied into the guest, the layers are found or packed and
//! attached to the layers disk, and the agent is told. Each step that fails undoes the ones before it. Taking away
//! goes the other way round: only layers that the guest has let go of are detached.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use agent_protocol::rpc::agent::{CreateContainerRequest, Storage};
use agent_protocol::storage::StorageError;
use containerd_shim::protos::api::Mount;
use oci_spec::runtime::Spec;
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tracing::warn;

use crate::agent::Agent;
use crate::layers::disk::{LayersDisk, Placed};
use crate::layers::mounts::Stack;
use crate::layers::{self, LayerFile};
use crate::sandbox::vm::{Vm, VmError};
use crate::shared::{self, Budget};
use crate::spec::{self, SharedPath};
use crate::state_dir::StateDir;
use crate::status::TaskError;
use crate::volumes::{Volume, Volumes};

/// A running machine and everything that its containers need of the host.
#[derive(Clone)]
pub struct Guest {
    /// The machine.
    pub vm: Arc<dyn Vm>,
    /// Its agent.
    pub agent: Agent,
    /// The pod's directory.
    pub state: StateDir,
    /// What all pods share of layers.
    pub cache: PathBuf,
    /// The layers that the machine sees.
    pub disk: Arc<LayersDisk>,
    /// The host's files that are in the guest. An asynchronous lock, held while files are sent: two
    /// containers that name the same file must not both send it.
    pub shared: Arc<Mutex<SharedFiles>>,
    /// The pod's volumes.
    pub volumes: Arc<Mutex<Volumes>>,
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

impl Guest {
    /// Creates a container.
    ///
    /// # Errors
    /// Says why not. Nothing of it is left then, unless the agent did not answer: what it may still use stays.
    pub async fn create(&self, new: NewContainer) -> Result<(), TaskError> {
        let NewContainer { id, spec, rootfs } = new;
        let volumes = self.find_volumes(&spec).await?;
        let guest = spec::for_guest(&id, spec, &volumes)?;
        let oci = agent_protocol::oci::encode(&guest.spec)?;
        self.send_shared(guest.shared).await?;
        let layers = self.find_layers(&id, &rootfs).await?;
        let placed = self.disk.attach(&id, &layers).await?;
        let request = storages(&id, &volumes, &placed).map(|storages| CreateContainerRequest {
            exec_id: id.clone(),
            container_id: id.clone(),
            storages,
            OCI: Some(oci).into(),
            sandbox_pidns: guest.shared_pids,
            ..Default::default()
        });
        let created = match request {
            Ok(request) => self.agent.create_container(&request).await.map_err(TaskError::from),
            Err(error) => Err(error.into()),
        };
        match created {
            // The agent undoes what it did when it says no. When it says nothing, who knows.
            Err(TaskError::Agent(error)) if !error.is_refusal() => Err(error.into()),
            Err(error) => {
                self.disk.release(&id).await;
                Err(error)
            }
            Ok(()) => Ok(()),
        }
    }

    /// Takes away a container that does not run, and the layers that only it used.
    pub async fn remove(&self, id: &str) {
        match self.agent.remove_container(id).await {
            Ok(()) => self.disk.release(id).await,
            Err(error) => {
                warn!(container = id, %error, "the agent does not let go of the container: its layers stay attached");
            }
        }
    }

    async fn find_volumes(&self, spec: &Spec) -> Result<Vec<Volume>, TaskError> {
        let mut volumes = self.volumes.lock().await;
        let (mut known, spec) = (volumes.clone(), spec.clone());
        // A file system that does not answer must not hold up the rest of the pod.
        let looked = spawn_blocking(move || known.of(&spec).map(|found| (found, known))).await;
        let (found, known) = looked.map_err(|_| VmError::Broken)??;
        *volumes = known;
        Ok(found)
    }

    async fn find_layers(&self, id: &str, rootfs: &[Mount]) -> Result<Vec<LayerFile>, TaskError> {
        let stack = Stack::from_mounts(rootfs)?;
        let (cache, private) = (self.cache.clone(), self.state.private_layer(id));
        let found = spawn_blocking(move || stack.layers(&cache, &private)).await;
        Ok(found.map_err(|_| VmError::Broken)??)
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

/// What the agent is to make for a container before its process: volumes first, then the root file system.
fn storages(id: &str, volumes: &[Volume], layers: &[Placed]) -> Result<Vec<Storage>, StorageError> {
    let mut storages =
        volumes.iter().map(|volume| volume.storage.to_message()).collect::<Result<Vec<_>, _>>()?;
    storages.extend(layers::storages(id, layers)?);
    Ok(storages)
}
