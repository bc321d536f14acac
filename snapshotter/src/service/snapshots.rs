//! containerd's snapshots service.

use std::time::SystemTime;

use tokio_stream::Stream;
use tonic::{Request, Response, Status, async_trait};

use super::{Service, TARGET_LABEL, extraction, mounts};
use crate::api::messages::{
    CleanupRequest, CommitSnapshotRequest, Empty, Info, Kind as ApiKind, ListSnapshotsRequest,
    ListSnapshotsResponse, Mount, MountsRequest, MountsResponse, PrepareSnapshotRequest,
    PrepareSnapshotResponse, RemoveSnapshotRequest, StatSnapshotRequest, StatSnapshotResponse,
    UpdateSnapshotRequest, UpdateSnapshotResponse, UsageRequest, UsageResponse, ViewSnapshotRequest,
    ViewSnapshotResponse,
};
use crate::api::snapshots_server::Snapshots;
use crate::error::Error;
use crate::filter::{Fields, Filters};
use crate::store::{Kind, Labels, NewSnapshot, Record};
use crate::{NAMESPACE_HEADER, store};

/// Snapshots in one message of a listing.
const LIST_BATCH: usize = 100;

impl Service {
    async fn prepare_snapshot(&self, namespace: &str, mut new: NewSnapshot) -> Result<Vec<Mount>, Error> {
        if let Some(chain_id) = extraction::chain_id(&new.name, &new.labels) {
            let wanted = extraction::find(&self.images, &*self.content, namespace, chain_id).await?;
            if let Some(wanted) = wanted {
                let targeted = new.labels.contains_key(TARGET_LABEL);
                let ready = self.conversions.is_ready(&wanted).await?;
                if targeted && ready {
                    return Err(self.commit_at_once(&wanted, new).await?);
                }
                new.extraction = Some(wanted.clone());
                let mounts = self.create(Kind::Active, new.clone()).await?;
                self.fill_soon(new.name, wanted.clone());
                if !ready {
                    self.convert_ahead(&wanted);
                }
                return Ok(mounts);
            }
        }
        self.create(Kind::Active, new).await
    }

    /// Makes the committed snapshot that containerd wants; the answer is that it already exists.
    async fn commit_at_once(&self, wanted: &store::Extraction, new: NewSnapshot) -> Result<Error, Error> {
        let exists = Error::AlreadyExists(new.name.clone());
        let chain = wanted.chain_id.to_string();
        let parent = new.parent.clone();
        let is_there = self.store.committed_chain(parent.as_deref(), TARGET_LABEL, &chain);
        if is_there {
            return Ok(exists);
        }
        let layer = self.conversions.layer(wanted).await?;
        self.on_store(move |store| {
            if store.committed_chain(parent.as_deref(), TARGET_LABEL, &chain) {
                return Ok(exists);
            }
            let name = extraction::committed_name(&new.name, chain.parse().map_err(invalid_digest)?);
            store.create_committed(NewSnapshot { name, ..new }, &layer)?;
            Ok(exists)
        })
        .await
    }

    async fn create(&self, kind: Kind, new: NewSnapshot) -> Result<Vec<Mount>, Error> {
        self.on_store(move |store| {
            let entry = store.create(kind, new)?;
            let mounts = mounts::inherit_owner(store, &entry).and_then(|()| mounts::of(store, &entry));
            mounts.inspect_err(|_| {
                // Without mounts there is no snapshot; that it could not be mounted is what the caller is told.
                let _ = store.remove(&entry.record.name);
            })
        })
        .await
    }

    async fn commit_snapshot(&self, key: String, name: String, mut labels: Labels) -> Result<(), Error> {
        let entry = self.store.stat(&key)?;
        if entry.record.kind != Kind::Active {
            let found = entry.record.kind.name();
            return Err(Error::Kind { name: key, expected: "active", found });
        }
        if self.store.stat(&name).is_ok() {
            return Err(Error::AlreadyExists(name));
        }
        let assigned = entry.record.layer.and_then(|layer| self.store.layer(layer));
        let layer = match (assigned, &entry.record.extraction) {
            (Some(layer), _) => layer,
            (None, Some(wanted)) => self.conversions.layer(wanted).await?,
            (None, None) => self.conversions.pack(&key, self.store.upper_directory(entry.id)).await?,
        };
        if let Some(wanted) = &entry.record.extraction {
            labels.insert(TARGET_LABEL.into(), wanted.chain_id.to_string());
        }
        self.on_store(move |store| store.commit(&key, &name, labels, &layer)).await?;
        self.empty_trash_soon();
        Ok(())
    }
}

fn invalid_digest(error: crate::digest::DigestError) -> Error {
    Error::Invalid(error.to_string())
}

/// The containerd namespace of a request: containerd's keys begin with it; the header comes only from later
/// versions than 1.6, and from clients that speak to the snapshotter directly.
fn namespace<T>(request: &Request<T>, key: &str) -> Result<String, Error> {
    if let Some(namespace) = extraction::namespace(key) {
        return Ok(namespace.into());
    }
    let value = request.metadata().get(NAMESPACE_HEADER);
    let text =
        value.map(|value| value.to_str().map_err(|error| Error::Invalid(format!("namespace: {error}"))));
    Ok(text.transpose()?.unwrap_or("default").to_owned())
}

fn new_snapshot(
    key: String,
    parent: String,
    labels: impl IntoIterator<Item = (String, String)>,
) -> NewSnapshot {
    let parent = Some(parent).filter(|parent| !parent.is_empty());
    NewSnapshot { name: key, parent, labels: labels.into_iter().collect(), extraction: None }
}

/// A record as containerd sees it.
fn info(record: Record) -> Info {
    let kind = match record.kind {
        Kind::View => ApiKind::View,
        Kind::Active => ApiKind::Active,
        Kind::Committed => ApiKind::Committed,
    };
    let time = |time: SystemTime| Some(prost_types::Timestamp::from(time));
    Info {
        name: record.name,
        parent: record.parent.unwrap_or_default(),
        kind: kind.into(),
        created_at: time(record.created),
        updated_at: time(record.updated),
        labels: record.labels.into_iter().collect(),
    }
}

impl Fields for Record {
    fn field(&self, path: &[String]) -> Option<String> {
        match (path[0].as_str(), &path[1..]) {
            ("name", []) => Some(self.name.clone()),
            ("parent", []) => Some(self.parent.clone().unwrap_or_default()),
            ("kind", []) => Some(self.kind.name().into()),
            ("labels", label) => self.labels.get(&label.join(".")).cloned(),
            _ => None,
        }
    }
}

/// Applies the fields that an update names, or all that may be changed: the labels.
fn update_labels(labels: &mut Labels, new: &Labels, paths: &[String]) -> Result<(), Error> {
    if paths.is_empty() {
        labels.clone_from(new);
    }
    for path in paths {
        if path == "labels" {
            labels.clone_from(new);
        } else if let Some(label) = path.strip_prefix("labels.") {
            match new.get(label).filter(|value| !value.is_empty()) {
                Some(value) => labels.insert(label.into(), value.clone()),
                None => labels.remove(label),
            };
        } else {
            return Err(Error::Invalid(format!(
                "field {path:?} of a snapshot cannot be changed: only labels"
            )));
        }
    }
    Ok(())
}

#[async_trait]
impl Snapshots for Service {
    async fn prepare(
        &self,
        request: Request<PrepareSnapshotRequest>,
    ) -> Result<Response<PrepareSnapshotResponse>, Status> {
        let namespace = namespace(&request, &request.get_ref().key)?;
        let request = request.into_inner();
        let new = new_snapshot(request.key, request.parent, request.labels);
        let mounts = self.prepare_snapshot(&namespace, new).await?;
        Ok(Response::new(PrepareSnapshotResponse { mounts }))
    }

    async fn view(
        &self,
        request: Request<ViewSnapshotRequest>,
    ) -> Result<Response<ViewSnapshotResponse>, Status> {
        let request = request.into_inner();
        let new = new_snapshot(request.key, request.parent, request.labels);
        let mounts = self.create(Kind::View, new).await?;
        Ok(Response::new(ViewSnapshotResponse { mounts }))
    }

    async fn mounts(&self, request: Request<MountsRequest>) -> Result<Response<MountsResponse>, Status> {
        let key = request.into_inner().key;
        let mounts = self.on_store(move |store| mounts::of(store, &store.stat(&key)?)).await?;
        Ok(Response::new(MountsResponse { mounts }))
    }

    async fn commit(&self, request: Request<CommitSnapshotRequest>) -> Result<Response<Empty>, Status> {
        let request = request.into_inner();
        let labels = request.labels.into_iter().collect();
        self.commit_snapshot(request.key, request.name, labels).await?;
        Ok(Response::new(()))
    }

    async fn remove(&self, request: Request<RemoveSnapshotRequest>) -> Result<Response<Empty>, Status> {
        let key = request.into_inner().key;
        self.on_store(move |store| store.remove(&key)).await?;
        self.empty_trash_soon();
        Ok(Response::new(()))
    }

    async fn stat(
        &self,
        request: Request<StatSnapshotRequest>,
    ) -> Result<Response<StatSnapshotResponse>, Status> {
        let record = self.store.stat(&request.into_inner().key)?.record;
        Ok(Response::new(StatSnapshotResponse { info: Some(info(record)) }))
    }

    async fn update(
        &self,
        request: Request<UpdateSnapshotRequest>,
    ) -> Result<Response<UpdateSnapshotResponse>, Status> {
        let request = request.into_inner();
        let new = request.info.ok_or_else(|| Error::Invalid("update: expected a snapshot".into()))?;
        let paths = request.update_mask.map(|mask| mask.paths).unwrap_or_default();
        let labels: Labels = new.labels.into_iter().collect();
        let change = move |own: &mut Labels| update_labels(own, &labels, &paths);
        let record = self.on_store(move |store| store.update(&new.name, change)).await?;
        Ok(Response::new(UpdateSnapshotResponse { info: Some(info(record)) }))
    }

    type ListStream = Box<dyn Stream<Item = Result<ListSnapshotsResponse, Status>> + Send + Unpin>;

    async fn list(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let filters = Filters::parse(&request.into_inner().filters).map_err(Error::from)?;
        let records = self.store.list().into_iter().map(|entry| entry.record);
        let infos: Vec<Info> = records.filter(|record| filters.pass(record)).map(info).collect();
        let batches: Vec<_> = infos
            .chunks(LIST_BATCH)
            .map(|infos| Ok(ListSnapshotsResponse { info: infos.to_vec() }))
            .collect();
        Ok(Response::new(Box::new(tokio_stream::iter(batches))))
    }

    async fn usage(&self, request: Request<UsageRequest>) -> Result<Response<UsageResponse>, Status> {
        let key = request.into_inner().key;
        let usage = self.on_store(move |store| store.usage(&key)).await?;
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        Ok(Response::new(UsageResponse { size: number(usage.bytes), inodes: number(usage.inodes) }))
    }

    async fn cleanup(&self, _: Request<CleanupRequest>) -> Result<Response<Empty>, Status> {
        self.on_store(|store| store.empty_trash()).await?;
        Ok(Response::new(()))
    }
}
