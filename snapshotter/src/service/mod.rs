//! What containerd asks for, done with the store, the content store and the conversions.
//!
//! The requests that fill snapshots with image layers are the interesting ones. containerd prepares an extraction
//! snapshot for each layer, has a differ unpack the blob into its mounts, and commits it. Here the blob is
//! converted instead, in one of three ways:
//!
//! - containerd named the target (label `containerd.io/snapshot.ref`, as pulls do) and the blob is there: it is
//!   converted at once, committed, and containerd told that the snapshot already exists; it then looks for it and
//!   unpacks nothing.
//! - Else it gets mounts, to whose contents nobody ever looks; the blob is converted as soon as it is there, while
//!   containerd unpacks, and committing waits for that. With the diff service containerd leaves even the
//!   unpacking to us, so that nothing is unpacked at all.
//! - No image has the layer (a container's changes that are committed, a build): the directory is packed.

use std::path::PathBuf;
use std::sync::Arc;

use crate::content::ContentStore;
use crate::convert::{Conversions, Converter};
use crate::error::Error;
use crate::images::ImageIndex;
use crate::store::Store;

mod diff;
mod extraction;
mod fill;
mod mounts;
mod snapshots;

/// Label by which containerd names the chain id that an extraction is for, and finds what came of it.
pub const TARGET_LABEL: &str = "containerd.io/snapshot.ref";

/// The service behind both sockets' APIs. Cheap to clone.
#[derive(Clone)]
pub struct Service {
    store: Arc<Store>,
    content: Arc<dyn ContentStore>,
    images: Arc<ImageIndex>,
    conversions: Arc<Conversions>,
}

impl Service {
    /// A service over a store. At most `parallel` conversions run at a time; prebuilt layers are taken from the
    /// directories in `adopt`.
    #[must_use]
    pub fn new(
        store: Arc<Store>,
        content: Arc<dyn ContentStore>,
        converter: Arc<dyn Converter>,
        adopt: Vec<PathBuf>,
        parallel: usize,
    ) -> Self {
        let conversions =
            Conversions::new(Arc::clone(&store), Arc::clone(&content), converter, adopt, parallel);
        Self { store, content, images: Arc::default(), conversions: Arc::new(conversions) }
    }

    /// Runs something on the store, which may block on the disk.
    async fn on_store<T, F>(&self, action: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&Arc<Store>) -> Result<T, Error> + Send + 'static,
    {
        let store = Arc::clone(&self.store);
        let done = tokio::task::spawn_blocking(move || action(&store)).await;
        done.map_err(|_| Error::Interrupted("a request"))?
    }

    /// Deletes in the background what was removed.
    fn empty_trash_soon(&self) {
        let store = Arc::clone(&self.store);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = store.empty_trash() {
                tracing::warn!("{error}");
            }
        });
    }
}
