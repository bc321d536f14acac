//! The layers on the host: read-only mounts at `layers/<n>/fs`, made when they are first asked for.
//!
//! The utility VMs have no use for them: they get the layer files. containerd itself mounts a container's
//! snapshot to look up users in it, and other runtimes run containers on it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{MutexGuard, PoisonError};

use super::{Store, layer};
use crate::error::Error;
use crate::host_mount;

impl Store {
    /// Mounts a layer on the host unless it is; returns where. The caller holds a snapshot that needs it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn mount_layer(&self, id: u64) -> Result<PathBuf, Error> {
        let directory = self.layer_directory(id);
        let mount_point = directory.join(layer::MOUNT_POINT);
        let mut mounted = self.mounted();
        if !mounted.contains(&id) {
            host_mount::mount_layer(&directory.join(layer::FILE), &mount_point)
                .map_err(Error::file("mount the layer at", &mount_point))?;
            mounted.insert(id);
        }
        Ok(mount_point)
    }

    /// Unmounts a layer if it is mounted.
    pub(super) fn unmount_layer(&self, id: u64) {
        if self.mounted().remove(&id) {
            let mount_point = self.layer_directory(id).join(layer::MOUNT_POINT);
            if let Err(error) = host_mount::unmount(&mount_point) {
                tracing::warn!("cannot unmount {}: {error}", mount_point.display());
            }
        }
    }

    fn mounted(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.mounted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
