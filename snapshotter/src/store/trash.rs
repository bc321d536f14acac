//! Deleting: by rename at once, by the file system's own time later.

use std::fs;
use std::path::Path;
use std::sync::PoisonError;

use super::Store;
use super::state::{LayerEntry, State};
use crate::error::Error;

/// Prefix of what waits in `staging/` to be deleted; layers that are being made have none.
const PREFIX: &str = "removed-";

impl Store {
    /// Deletes what was removed; returns when there is nothing left that was removed before the call.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn empty_trash(&self) -> Result<(), Error> {
        let _emptying = self.emptying.lock().unwrap_or_else(PoisonError::into_inner);
        let staging = self.root.join("staging");
        for entry in fs::read_dir(&staging).map_err(Error::file("list", &staging))? {
            let path = entry.map_err(Error::file("list", &staging))?.path();
            let removed = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
            if removed {
                fs::remove_dir_all(&path).map_err(Error::file("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Moves a directory out of the way. What cannot be moved is no longer named by any record, and goes at the
    /// next start.
    pub(super) fn discard(&self, directory: &Path, state: &mut State) {
        state.next_staged += 1;
        let trash = self.root.join("staging").join(format!("{PREFIX}{}", state.next_staged));
        if let Err(error) = fs::rename(directory, &trash)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!("cannot move {} away: {error}", directory.display());
        }
    }

    /// Removes a layer that no record names and nobody holds.
    pub(super) fn discard_unused(&self, id: u64, state: &mut State) {
        let unused = |entry: &LayerEntry| entry.references == 0 && entry.pins == 0;
        let Some(entry) = state.layers.get(&id).filter(|entry| unused(entry)) else { return };
        if let Some(diff_id) = entry.description.diff_id
            && state.by_diff_id.get(&diff_id) == Some(&id)
        {
            state.by_diff_id.remove(&diff_id);
        }
        state.layers.remove(&id);
        self.unmount_layer(id);
        self.discard(&self.layer_directory(id), state);
    }
}
