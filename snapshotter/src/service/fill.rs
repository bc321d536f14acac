//! Converting in the background, while containerd downloads and unpacks.

use std::time::{Duration, Instant};

use super::Service;
use crate::error::Error;
use crate::images::ImageLayer;
use crate::store::{Extraction, LayerPin};

/// Time between two looks for a blob that is being downloaded.
const POLL: Duration = Duration::from_millis(200);
/// Time after which a download without progress is given up, and a layer kept that no snapshot asks for.
const PATIENCE: Duration = Duration::from_secs(10 * 60);

impl Service {
    /// Fills the extraction snapshot `key` as soon as its blob is there. Ends with the snapshot; should it fail,
    /// committing tries again and tells why.
    pub(super) fn fill_soon(&self, key: String, wanted: Extraction) {
        let service = self.clone();
        tokio::spawn(async move {
            let active = || service.store.stat(&key).is_ok_and(|entry| entry.record.extraction.is_some());
            if let Err(error) = service.await_blob(&wanted, active).await {
                tracing::debug!("{key}: {error}");
                return;
            }
            match service.conversions.layer(&wanted).await {
                Ok(layer) => {
                    if let Err(error) = service.store.assign_layer(&key, &layer) {
                        tracing::debug!("{key}: {error}");
                    }
                }
                Err(error) => tracing::debug!("{key}: {error}"),
            }
        });
    }

    /// Converts the layers above one that is being pulled as their downloads complete, in order: by the time that
    /// containerd asks for them, they are there.
    pub(super) fn convert_ahead(&self, below: &Extraction) {
        let (service, below) = (self.clone(), below.clone());
        tokio::spawn(async move {
            let mut kept: Vec<LayerPin> = Vec::new();
            for ImageLayer { diff_id, blob } in service.images.above(&below.namespace, below.chain_id).await {
                let wanted = Extraction { diff_id, blobs: vec![blob], ..below.clone() };
                let deadline = Instant::now() + PATIENCE;
                let ready = service.await_blob(&wanted, || Instant::now() < deadline).await;
                let layer = match ready {
                    Ok(()) => service.conversions.layer(&wanted).await,
                    Err(error) => Err(error),
                };
                match layer {
                    Ok(layer) => kept.push(layer),
                    Err(error) => return tracing::debug!("layer {diff_id} is not converted ahead: {error}"),
                }
            }
            // Until snapshots have them, and no longer: images that are removed soon free their space as well.
            let deadline = Instant::now() + PATIENCE;
            while !kept.is_empty() && Instant::now() < deadline {
                tokio::time::sleep(POLL).await;
                kept.retain(|layer| !service.store.was_used(layer));
            }
        });
    }

    /// Waits until a blob of the layer is there, as long as it is `wanted_still`.
    async fn await_blob(&self, wanted: &Extraction, wanted_still: impl Fn() -> bool) -> Result<(), Error> {
        while !self.conversions.is_ready(wanted).await? {
            if !wanted_still() {
                return Err(Error::Interrupted("the wait for a layer's download"));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }
}
