//! From blobs to stored layers: each diff id once, whoever asks for it and however many do.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use erofs_verity::layer::Layer;
use tokio::sync::{Semaphore, watch};

use crate::content::{ContentInfo, ContentStore};
use crate::digest::Digest;
use crate::error::Error;
use crate::store::{Description, Extraction, LayerPin, Store};

/// What came out of a blob.
#[derive(Debug, Clone, Copy)]
pub struct Converted {
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
    /// Digest of the blob.
    pub blob: Digest,
    /// Bytes of the uncompressed tar.
    pub uncompressed_bytes: u64,
    /// The layer that was written.
    pub layer: Layer,
}

/// Why something could not be made into a layer.
#[derive(Debug)]
pub struct ConversionFailure {
    /// For people.
    pub message: String,
    /// Whether the file system is full.
    pub full: bool,
}

/// Makes layer files. All methods block.
pub trait Converter: Send + Sync + 'static {
    /// Converts a layer blob, of whatever compression, into `out`, an empty file.
    ///
    /// # Errors
    /// When the blob is no layer, breaks a limit, or a file fails.
    fn convert(&self, blob: Box<dyn Read + Send>, out: &File) -> Result<Converted, ConversionFailure>;

    /// Packs an overlayfs upper directory into `out`, an empty file.
    ///
    /// # Errors
    /// When something in it cannot be represented, or a file fails.
    fn pack(&self, directory: &Path, out: &File) -> Result<Layer, ConversionFailure>;
}

/// The conversions that are under way.
pub struct Conversions {
    store: Arc<Store>,
    content: Arc<dyn ContentStore>,
    converter: Arc<dyn Converter>,
    /// Directories with layers that containerd's erofs snapshotter made.
    adopt: Vec<PathBuf>,
    running: Mutex<HashMap<Digest, watch::Receiver<Option<Outcome>>>>,
    slots: Semaphore,
}

type Outcome = Result<LayerPin, Error>;

impl Conversions {
    /// Conversions into `store`, at most `parallel` at a time.
    #[must_use]
    pub fn new(
        store: Arc<Store>,
        content: Arc<dyn ContentStore>,
        converter: Arc<dyn Converter>,
        adopt: Vec<PathBuf>,
        parallel: usize,
    ) -> Self {
        let running = Mutex::default();
        Self { store, content, converter, adopt, running, slots: Semaphore::new(parallel) }
    }

    /// Whether the layer can be had now: it is stored, or one of its blobs is there, whole.
    ///
    /// # Errors
    /// When the content store does not answer.
    pub async fn is_ready(&self, wanted: &Extraction) -> Result<bool, Error> {
        if self.store.layer_of(&wanted.diff_id).is_some() || self.adoptable(wanted.diff_id).is_some() {
            return Ok(true);
        }
        Ok(self.find_blob(wanted).await?.is_some())
    }

    /// The layer, converted now unless it is stored. Who asks while it is being converted waits for that.
    ///
    /// # Errors
    /// When no blob is there, it is not what is wanted, or it cannot be converted or stored.
    pub async fn layer(self: &Arc<Self>, wanted: &Extraction) -> Result<LayerPin, Error> {
        loop {
            let (mut outcome, started) = self.start(wanted);
            let outcome = match outcome.wait_for(Option::is_some).await {
                Ok(outcome) => outcome.clone(),
                Err(_) => None,
            };
            match outcome {
                Some(Ok(layer)) => return Ok(layer),
                // Another namespace's blob may have been at fault.
                Some(Err(_)) | None if !started => {}
                Some(Err(error)) => return Err(error),
                None => return Err(Error::Interrupted("a conversion")),
            }
        }
    }

    /// Packs what was written into an active snapshot.
    ///
    /// # Errors
    /// When it cannot be packed or stored.
    pub async fn pack(&self, name: &str, directory: PathBuf) -> Result<LayerPin, Error> {
        let _slot = self.slots.acquire().await.map_err(|_| Error::Interrupted("packing a snapshot"))?;
        let (store, converter, name) =
            (Arc::clone(&self.store), Arc::clone(&self.converter), name.to_owned());
        let pack = move || {
            let staged = store.stage()?;
            let layer = converter
                .pack(&directory, staged.file())
                .map_err(|ConversionFailure { message, full }| Error::Pack { name, message, full })?;
            store.publish(staged, Description::new(&layer, None), None)
        };
        tokio::task::spawn_blocking(pack).await.map_err(|_| Error::Interrupted("packing a snapshot"))?
    }

    /// Joins the conversion of this diff id, or starts it; tells whether it did.
    fn start(self: &Arc<Self>, wanted: &Extraction) -> (watch::Receiver<Option<Outcome>>, bool) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        // A task that ended without an outcome has closed its channel: it is not waited for.
        if let Some(outcome) = running.get(&wanted.diff_id).filter(|outcome| outcome.has_changed().is_ok()) {
            return (outcome.clone(), false);
        }
        let (sender, receiver) = watch::channel(None);
        running.insert(wanted.diff_id, receiver.clone());
        let (conversions, wanted) = (Arc::clone(self), wanted.clone());
        tokio::spawn(async move {
            let outcome = conversions.run(&wanted).await;
            if let Err(error) = &outcome {
                tracing::warn!("layer {}: {error}", wanted.diff_id);
            }
            // In this order, nobody joins a conversion that has ended: who comes later finds the layer stored.
            conversions.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&wanted.diff_id);
            sender.send_replace(Some(outcome));
        });
        (receiver, true)
    }

    async fn run(&self, wanted: &Extraction) -> Outcome {
        if let Some(layer) = self.store.layer_of(&wanted.diff_id) {
            return Ok(layer);
        }
        let _slot = self.slots.acquire().await.map_err(|_| Error::Interrupted("a conversion"))?;
        if let Some(path) = self.adoptable(wanted.diff_id) {
            match self.adopt(path.clone(), wanted.diff_id).await {
                Ok(layer) => return Ok(layer),
                Err(error) => tracing::warn!("{} is not used: {error}", path.display()),
            }
        }
        let Some(blob) = self.find_blob(wanted).await? else {
            let what = format!("find the layer with diff id {}", wanted.diff_id);
            let message =
                format!("none of its blobs {:?} is in namespace {}", wanted.blobs, wanted.namespace);
            return Err(Error::Content { what, message });
        };
        let reader = self.content.open(&wanted.namespace, blob).await?;
        let (store, converter) = (Arc::clone(&self.store), Arc::clone(&self.converter));
        let diff_id = wanted.diff_id;
        let convert = move || convert(&store, &*converter, reader, blob, diff_id);
        tokio::task::spawn_blocking(convert).await.map_err(|_| Error::Interrupted("a conversion"))?
    }

    async fn find_blob(&self, wanted: &Extraction) -> Result<Option<ContentInfo>, Error> {
        for &blob in &wanted.blobs {
            if let Some(found) = self.content.info(&wanted.namespace, blob).await? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn adoptable(&self, diff_id: Digest) -> Option<PathBuf> {
        self.adopt.iter().map(|cache| crate::adopt::path(cache, diff_id)).find(|path| path.is_file())
    }

    async fn adopt(&self, path: PathBuf, diff_id: Digest) -> Outcome {
        let store = Arc::clone(&self.store);
        let adopt = move || crate::adopt::adopt(&store, &path, diff_id);
        tokio::task::spawn_blocking(adopt).await.map_err(|_| Error::Interrupted("taking a layer over"))?
    }
}

/// Converts and stores one blob, if it is what it should be.
fn convert(
    store: &Arc<Store>,
    converter: &dyn Converter,
    reader: Box<dyn Read + Send>,
    blob: ContentInfo,
    diff_id: Digest,
) -> Outcome {
    let staged = store.stage()?;
    let converted =
        converter.convert(reader, staged.file()).map_err(|ConversionFailure { message, full }| {
            Error::Conversion { blob: blob.digest, message, full }
        })?;
    let expect = |what, expected: Digest, found: Digest| {
        let error = Error::Digest { blob: blob.digest, what, expected, found };
        if expected == found { Ok(()) } else { Err(error) }
    };
    expect("digest", blob.digest, converted.blob)?;
    expect("diff id", diff_id, converted.diff_id)?;
    let description = Description::new(&converted.layer, Some(diff_id));
    tracing::info!(
        "layer {}: {} bytes of tar in {} blocks, root hash {}",
        blob.digest,
        converted.uncompressed_bytes,
        description.data_blocks,
        description.root_hash()
    );
    store.publish(staged, description, Some(converted.uncompressed_bytes))
}

/// Whether somewhere in the causes of an error a file system says that it is full.
#[must_use]
pub fn is_caused_by_full_disk(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.downcast_ref::<io::Error>().is_some_and(crate::error::is_full) {
            return true;
        }
        next = error.source();
    }
    false
}
