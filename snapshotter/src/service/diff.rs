//! containerd's diff service (a proxy plugin from containerd 1.7 on): layers are applied by converting them.
//!
//! Only extraction snapshots of this snapshotter are dealt with. For anything else the answer is "not implemented",
//! upon which containerd asks its next differ.

use std::path::Path;

use tonic::{Request, Response, Status, async_trait};

use super::Service;
use crate::api::diff_server::Diff;
use crate::api::messages::{ApplyRequest, ApplyResponse, Descriptor, DiffRequest, DiffResponse, Mount};
use crate::digest::Digest;
use crate::error::Error;
use crate::store::{Entry, Extraction};

/// What an uncompressed layer is called (OCI image specification).
const LAYER_MEDIA_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";

impl Service {
    async fn apply_layer(&self, blob: Digest, mounts: &[Mount]) -> Result<Descriptor, Error> {
        let entry = self.extraction_at(mounts).ok_or(Error::ForeignMounts)?;
        let wanted = entry.record.extraction.ok_or(Error::ForeignMounts)?;
        // This very blob is what the client says that it applies.
        let wanted = Extraction { blobs: vec![blob], ..wanted };
        let layer = self.conversions.layer(&wanted).await?;
        // How long the tar was is known of layers that were converted since the start; nobody asks of others.
        let size = self.store.uncompressed_bytes(&layer).and_then(|bytes| i64::try_from(bytes).ok());
        self.store.assign_layer(&entry.record.name, &layer)?;
        Ok(Descriptor {
            media_type: LAYER_MEDIA_TYPE.into(),
            digest: wanted.diff_id.to_string(),
            size: size.unwrap_or(0),
            ..Descriptor::default()
        })
    }

    /// The extraction snapshot that was given out as these mounts.
    fn extraction_at(&self, mounts: &[Mount]) -> Option<Entry> {
        let [mount] = mounts else { return None };
        if mount.r#type != "bind" {
            return None;
        }
        let is_it = |entry: &Entry| {
            entry.record.extraction.is_some()
                && self.store.upper_directory(entry.id) == Path::new(&mount.source)
        };
        self.store.list().into_iter().find(is_it)
    }
}

#[async_trait]
impl Diff for Service {
    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<ApplyResponse>, Status> {
        let request = request.into_inner();
        let diff = request.diff.ok_or_else(|| Error::Invalid("apply: expected a descriptor".into()))?;
        let blob = diff.digest.parse().map_err(|_| Error::ForeignMounts)?;
        let applied = self.apply_layer(blob, &request.mounts).await?;
        Ok(Response::new(ApplyResponse { applied: Some(applied) }))
    }

    async fn diff(&self, _: Request<DiffRequest>) -> Result<Response<DiffResponse>, Status> {
        Err(Error::Unsupported("making a tar of the difference between two snapshots").into())
    }
}
