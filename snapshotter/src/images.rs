//! Which blob belongs to a chain id.
//!
//! containerd tells a snapshotter the chain id of a layer, not its blob. The images of the namespace tell: a
//! manifest names blobs and a configuration, the configuration diff ids in the same order, and diff ids make chain
//! ids. Nothing here has to be believed: a chain id is a digest over diff ids, and a blob is converted only to be
//! compared with the diff id that is expected of it.

use std::collections::HashMap;

use serde::Deserialize;
use tokio::sync::Mutex;

use crate::content::{ContentInfo, ContentStore, read_small};
use crate::digest::{Digest, chain_ids};
use crate::error::Error;

/// Longest manifest or configuration that is read, in bytes.
const MAX_DOCUMENT_BYTES: u64 = 8 << 20;
/// Media types of layers that are no tar this program could read.
const OPAQUE_LAYER: [&str; 2] = ["+encrypted", "application/vnd.erofs"];

/// A layer of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageLayer {
    /// Digest of the uncompressed tar, as the image's configuration says.
    pub diff_id: Digest,
    /// Digest of the blob, as the manifest says.
    pub blob: Digest,
}

/// What is known of the images of each namespace; at most what the content store has.
#[derive(Default)]
pub struct ImageIndex {
    namespaces: Mutex<HashMap<String, Manifests>>,
}

/// The layers of each manifest, with their chain ids, bottom first.
type Manifests = HashMap<Digest, Vec<(Digest, ImageLayer)>>;

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
    #[serde(rename = "mediaType", default)]
    media_type: String,
}

#[derive(Deserialize)]
struct Configuration {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

impl ImageIndex {
    /// The layers that have this chain id: none if no image of the namespace has it; several if images have the
    /// same contents in different blobs.
    ///
    /// # Errors
    /// When the content store does not answer.
    pub async fn find(
        &self,
        content: &dyn ContentStore,
        namespace: &str,
        chain_id: Digest,
    ) -> Result<Vec<ImageLayer>, Error> {
        let mut namespaces = self.namespaces.lock().await;
        if let Some(manifests) = namespaces.get(namespace) {
            let found = layers(manifests, chain_id);
            if !found.is_empty() {
                return Ok(found);
            }
        }
        let known = namespaces.remove(namespace).unwrap_or_default();
        let manifests = refresh(content, namespace, known).await?;
        let found = layers(&manifests, chain_id);
        namespaces.insert(namespace.into(), manifests);
        Ok(found)
    }

    /// The layers above `chain_id`, in order, if only one image that was looked at has it, or all have the same
    /// above it: of a layer that many images are based on, it cannot be known which of them is being pulled.
    pub async fn above(&self, namespace: &str, chain_id: Digest) -> Vec<ImageLayer> {
        let namespaces = self.namespaces.lock().await;
        let above = |layers: &Vec<(Digest, ImageLayer)>| {
            let at = layers.iter().position(|(chain, _)| *chain == chain_id)?;
            Some(layers[at + 1..].iter().map(|(_, layer)| *layer).collect::<Vec<_>>())
        };
        let mut stacks = namespaces.get(namespace).into_iter().flat_map(HashMap::values).filter_map(above);
        let first = stacks.next().unwrap_or_default();
        if stacks.all(|other| other == first) { first } else { Vec::new() }
    }
}

fn layers(manifests: &Manifests, chain_id: Digest) -> Vec<ImageLayer> {
    let all = manifests.values().flatten().filter(|(chain, _)| *chain == chain_id);
    let mut found: Vec<ImageLayer> = all.map(|(_, layer)| *layer).collect();
    found.sort_unstable_by_key(|layer| layer.blob);
    found.dedup();
    found
}

/// Forgets manifests that have gone and reads those that have come.
async fn refresh(content: &dyn ContentStore, namespace: &str, known: Manifests) -> Result<Manifests, Error> {
    let mut manifests = Manifests::new();
    for info in content.manifests(namespace).await? {
        if let Some(layers) = known.get(&info.digest) {
            manifests.insert(info.digest, layers.clone());
            continue;
        }
        match read_image(content, namespace, info).await {
            Ok(Some(layers)) => {
                manifests.insert(info.digest, layers);
            }
            // Its configuration is not there yet: looked at again the next time.
            Ok(None) => {}
            Err(error) => tracing::debug!("image {} in {namespace} is not understood: {error}", info.digest),
        }
    }
    Ok(manifests)
}

async fn read_image(
    content: &dyn ContentStore,
    namespace: &str,
    info: ContentInfo,
) -> Result<Option<Vec<(Digest, ImageLayer)>>, Error> {
    let not_understood = |what: &str, error: String| Error::Content {
        what: format!("{what} of {}", info.digest),
        message: error,
    };
    let text = read_small(content, namespace, info, MAX_DOCUMENT_BYTES).await?;
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|error| not_understood("manifest", error.to_string()))?;
    let digest =
        |text: &str| text.parse::<Digest>().map_err(|error| not_understood("digests", error.to_string()));
    let Some(config) = content.info(namespace, digest(&manifest.config.digest)?).await? else {
        return Ok(None);
    };
    let text = read_small(content, namespace, config, MAX_DOCUMENT_BYTES).await?;
    let configuration: Configuration =
        serde_json::from_slice(&text).map_err(|error| not_understood("configuration", error.to_string()))?;
    let diff_ids =
        configuration.rootfs.diff_ids.iter().map(|text| digest(text)).collect::<Result<Vec<_>, _>>()?;
    if diff_ids.len() != manifest.layers.len() {
        let found = format!("{} layers and {} diff ids", manifest.layers.len(), diff_ids.len());
        return Err(not_understood(
            "manifest",
            format!("expected as many layers as diff ids, found {found}"),
        ));
    }
    let mut layers = Vec::with_capacity(diff_ids.len());
    for ((layer, diff_id), chain) in manifest.layers.iter().zip(&diff_ids).zip(chain_ids(&diff_ids)) {
        let opaque = OPAQUE_LAYER.iter().any(|part| layer.media_type.contains(part));
        if !opaque {
            layers.push((chain, ImageLayer { diff_id: *diff_id, blob: digest(&layer.digest)? }));
        }
    }
    Ok(Some(layers))
}
