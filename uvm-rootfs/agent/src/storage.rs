//! The pod's storage: its layers, volumes and writable space, and what each container has of them.
//!
//! One lock serialises all changes. What a container has is recorded in its [`Held`], so that
//! [`PodStorage::unmount`] undoes exactly that, in reverse, and may be called again after a failure.

use std::path::Path;
use std::sync::Arc;

use agent_protocol::storage::LayerStorage;
use tokio::sync::Mutex;

use crate::error::{AgentError, Result};
use crate::expectation::OnCorruption;
use crate::layers::corruption::{Corruption, CorruptionWatch};
use crate::layers::mount;
use crate::layers::plan::Plan;
use crate::layers::shared::SharedLayers;
use crate::layers::steps::Steps;
use crate::layers::verified::Verified;
use crate::volumes::{Volumes, WritableSpace};

/// The pod's storage.
#[derive(Debug, Clone)]
pub struct PodStorage(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    corruption: CorruptionWatch,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    space: WritableSpace,
    /// Whether anything has been written there, so that it cannot move any more.
    space_used: bool,
    layers: SharedLayers<Verified>,
    volumes: Volumes,
}

/// What one container has.
#[derive(Debug, Default)]
pub struct Held {
    /// Root hashes of the layers that it uses, bottom first.
    layers: Vec<String>,
    /// What is its own, above the layers.
    steps: Steps,
}

impl PodStorage {
    /// A pod without containers, whose files are in guest memory.
    ///
    /// # Errors
    /// If the kernel tells nothing about its devices.
    pub fn start(on_corruption: OnCorruption) -> Result<Self> {
        let corruption = CorruptionWatch::start()?;
        let layers = SharedLayers::new(Verified { on_corruption, corruption: corruption.clone() });
        let state =
            State { space: WritableSpace::default(), space_used: false, layers, volumes: Volumes::default() };
        Ok(Self(Arc::new(Shared { corruption, state: Mutex::new(state) })))
    }

    /// Keeps writable files in `space` from now on.
    ///
    /// # Errors
    /// If there are such files already.
    pub async fn use_space(&self, space: WritableSpace) -> Result<()> {
        let mut state = self.0.state.lock().await;
        if state.space_used {
            return Err(AgentError::State("the pod has writable files already".to_owned()));
        }
        state.space = space;
        Ok(())
    }

    /// Mounts what `plan` says for `container`. Device files on its root are dead unless `devices` is set.
    ///
    /// # Errors
    /// Says which step failed; `held` has what was done before it.
    pub async fn mount(&self, container: &str, plan: &Plan, devices: bool, held: &mut Held) -> Result<()> {
        let state = &mut *self.0.state.lock().await;
        for layer in &plan.layers {
            held.layers.push(layer.verity.hash.clone());
            state.layers.acquire(container, layer).await?;
        }
        state.space_used = true;
        for volume in &plan.volumes {
            state.volumes.provide(volume, &state.space).await?;
        }
        let (files, work) = state.space.upper(container, &mut held.steps)?;
        let rootfs = Path::new(&plan.rootfs);
        held.steps.directory(rootfs)?;
        let lower: Vec<String> = plan.layers.iter().rev().map(LayerStorage::mount_point).collect();
        mount::overlay(&lower, &files, &work, rootfs, devices)?;
        held.steps.mounted(rootfs);
        Ok(())
    }

    /// Undoes what `held` has for `container`. Volumes stay: they are the pod's.
    ///
    /// # Errors
    /// If something is in use; it stays recorded, and so does what is below it.
    pub async fn unmount(&self, container: &str, held: &mut Held) -> Result<()> {
        let state = &mut *self.0.state.lock().await;
        held.steps.undo().await?;
        while let Some(hash) = held.layers.last() {
            state.layers.release(container, hash).await?;
            held.layers.pop();
        }
        Ok(())
    }

    /// Waits for the next block of a layer that does not match; also names the containers that have the layer.
    pub async fn next_corruption(&self) -> (Corruption, Vec<String>) {
        let found = self.0.corruption.next().await;
        let users = self.0.state.lock().await.layers.users(&found.root_hash);
        (found, users)
    }
}
