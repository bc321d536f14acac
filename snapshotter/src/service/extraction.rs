//! Extraction snapshots: what containerd's unpackers prepare, one for each layer of an image.

use crate::content::ContentStore;
use crate::digest::Digest;
use crate::error::Error;
use crate::images::ImageIndex;
use crate::service::TARGET_LABEL;
use crate::store::{Extraction, Labels};

/// How unpackers begin the last part of a key: `extract-<unique> <chain id>` (containerd `snapshots` package,
/// `UnpackKeyFormat`).
const KEY_PREFIX: &str = "extract-";

/// The chain id that a snapshot is prepared for, if it is an extraction.
pub fn chain_id(key: &str, labels: &Labels) -> Option<Digest> {
    if let Some(target) = labels.get(TARGET_LABEL) {
        return target.parse().ok();
    }
    let (_, chain_id) = last_part(key).strip_prefix(KEY_PREFIX)?.split_once(' ')?;
    chain_id.parse().ok()
}

/// The namespace in a key of containerd's: `<namespace>/<number>/<client's key>`.
pub fn namespace(key: &str) -> Option<&str> {
    let (namespace, rest) = key.split_once('/')?;
    let (number, _) = rest.split_once('/')?;
    number.parse::<u64>().ok().map(|_| namespace).filter(|namespace| !namespace.is_empty())
}

/// A name for what comes of the extraction `key`. containerd's keys are `<namespace>/<number>/<client's key>`,
/// unique by the number.
pub fn committed_name(key: &str, chain_id: Digest) -> String {
    let prefix = &key[..key.len() - last_part(key).len()];
    format!("{prefix}{chain_id}")
}

fn last_part(key: &str) -> &str {
    key.rsplit_once('/').map_or(key, |(_, last)| last)
}

/// Finds out what has to be extracted; `None` if no image of the namespace has the layer.
///
/// # Errors
/// When the content store does not answer.
pub async fn find(
    images: &ImageIndex,
    content: &dyn ContentStore,
    namespace: &str,
    chain_id: Digest,
) -> Result<Option<Extraction>, Error> {
    let layers = images.find(content, namespace, chain_id).await?;
    Ok(layers.first().map(|first| Extraction {
        namespace: namespace.into(),
        chain_id,
        diff_id: first.diff_id,
        blobs: layers.iter().map(|layer| layer.blob).collect(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_ids_come_from_labels_and_keys() {
        let id = Digest::of(b"layer");
        let key = format!("default/12/extract-123456-aB_- {id}");
        let none = Labels::new();
        assert_eq!(chain_id(&key, &none), Some(id));
        assert_eq!(chain_id(&format!("extract-1-x {id}"), &none), Some(id));
        let label: Labels = [(TARGET_LABEL.into(), id.to_string())].into();
        assert_eq!(chain_id("default/12/anything", &label), Some(id));
        for other in ["default/12/container", "extract-1", "extract-1 sha256:00", ""] {
            assert_eq!(chain_id(other, &none), None, "{other}");
        }
        assert_eq!(
            (namespace(&key), namespace("tests/x/y"), namespace("/1/y")),
            (Some("default"), None, None)
        );
        assert_eq!(committed_name(&key, id), format!("default/12/{id}"));
        assert_eq!(committed_name("key", id), id.to_string());
    }
}
