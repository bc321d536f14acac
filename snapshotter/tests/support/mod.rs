//! What the tests share: images made on the spot, content stores without a containerd, the service in-process.

#![allow(dead_code, reason = "each test program uses its part")]
#![allow(clippy::unwrap_used, missing_docs, reason = "a test's helpers fail with the test")]

use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, Info, ListSnapshotsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest,
};
use containerd_client::types::Mount;
use snapshotter::content::{ContentInfo, ContentStore};
use snapshotter::convert::{ConversionFailure, Converted, Converter};
use snapshotter::digest::{Digest, chain_ids};
use snapshotter::error::Error;
use snapshotter::oci::OciConverter;
use snapshotter::serve;
use snapshotter::service::{Service, TARGET_LABEL};
use snapshotter::store::Store;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, async_trait};

/// The containerd namespace of all requests.
pub const NAMESPACE: &str = "tests";

/// A layer: a tar with the files given, each of `size` bytes of a pattern of its own.
pub fn layer(files: &[(&str, usize)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, size) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(*size as u64);
        header.set_mode(0o644);
        let content: Vec<u8> = name.bytes().cycle().take(*size).collect();
        builder.append_data(&mut header, name, content.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

/// An image: its layers with their chain ids, and the documents that name them.
#[derive(Clone)]
pub struct Image {
    pub layers: Vec<Vec<u8>>,
    pub chain: Vec<Digest>,
    pub manifest: Vec<u8>,
    pub config: Vec<u8>,
}

impl Image {
    pub fn new(layers: &[Vec<u8>]) -> Self {
        let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
        Self::with_diff_ids(layers, &diff_ids)
    }

    /// An image whose configuration may lie about its layers.
    pub fn with_diff_ids(layers: &[Vec<u8>], diff_ids: &[Digest]) -> Self {
        let config =
            serde_json::to_vec(&serde_json::json!({"rootfs": {"type": "layers", "diff_ids": diff_ids}}));
        let config = config.unwrap();
        let blobs: Vec<_> =
            layers.iter().map(|layer| serde_json::json!({"digest": Digest::of(layer)})).collect();
        let manifest = serde_json::json!({"config": {"digest": Digest::of(&config)}, "layers": blobs});
        let manifest = serde_json::to_vec(&manifest).unwrap();
        Self { layers: layers.to_vec(), chain: chain_ids(diff_ids), manifest, config }
    }
}

/// A content store in a directory: a file for each piece of content, `manifests/` for those that are manifests.
#[derive(Clone)]
pub struct Content(pub PathBuf);

impl Content {
    pub fn new(directory: &Path) -> Self {
        fs::create_dir_all(directory.join("manifests")).unwrap();
        Self(directory.into())
    }

    pub fn put(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        fs::write(self.0.join(digest.hex()), bytes).unwrap();
        digest
    }

    /// Puts manifest and configuration, without the layers.
    pub fn put_documents(&self, image: &Image) {
        self.put(&image.config);
        let digest = self.put(&image.manifest);
        fs::write(self.0.join("manifests").join(digest.hex()), "").unwrap();
    }

    pub fn put_image(&self, image: &Image) {
        self.put_documents(image);
        for layer in &image.layers {
            self.put(layer);
        }
    }
}

#[async_trait]
impl ContentStore for Content {
    async fn manifests(&self, namespace: &str) -> Result<Vec<ContentInfo>, Error> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.0.join("manifests")).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            found.extend(self.info(namespace, format!("sha256:{name}").parse().unwrap()).await?);
        }
        Ok(found)
    }

    async fn info(&self, namespace: &str, digest: Digest) -> Result<Option<ContentInfo>, Error> {
        assert_eq!(namespace, NAMESPACE);
        let metadata = fs::metadata(self.0.join(digest.hex())).ok();
        Ok(metadata.map(|metadata| ContentInfo { digest, size: metadata.len() }))
    }

    async fn open(&self, _: &str, content: ContentInfo) -> Result<Box<dyn Read + Send>, Error> {
        Ok(Box::new(fs::File::open(self.0.join(content.digest.hex())).unwrap()))
    }
}

/// The real converter, counted.
#[derive(Default)]
pub struct Counted {
    pub conversions: AtomicUsize,
    /// How long a conversion takes at least.
    pub delay: Mutex<Duration>,
}

impl Converter for Counted {
    fn convert(&self, blob: Box<dyn Read + Send>, out: &fs::File) -> Result<Converted, ConversionFailure> {
        self.conversions.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(*self.delay.lock().unwrap());
        converter().convert(blob, out)
    }

    fn pack(
        &self,
        directory: &Path,
        out: &fs::File,
    ) -> Result<erofs_verity::layer::Layer, ConversionFailure> {
        converter().pack(directory, out)
    }
}

pub fn converter() -> OciConverter {
    OciConverter::new(1 << 30, 10_000, std::env::temp_dir())
}

/// A service in this process, with a client that stands for containerd.
pub struct Setup {
    pub directory: tempfile::TempDir,
    pub content: Content,
    pub converter: Arc<Counted>,
    pub store: Arc<Store>,
    pub client: Client,
}

impl Setup {
    pub async fn new() -> Self {
        Self::adopting(Vec::new()).await
    }

    pub async fn adopting(adopt: Vec<PathBuf>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let content = Content::new(&directory.path().join("content"));
        let converter = Arc::new(Counted::default());
        let store = Store::open(&directory.path().join("store")).unwrap();
        let service =
            Service::new(Arc::clone(&store), Arc::new(content.clone()), converter.clone(), adopt, 2);
        let socket = directory.path().join("socket");
        let listener = serve::listen(&socket).await.unwrap();
        tokio::spawn(serve::serve(listener, service, std::future::pending()));
        let client = Client::connect(&socket).await.unwrap();
        Self { directory, content, converter, store, client }
    }

    pub fn root(&self) -> PathBuf {
        self.directory.path().join("store")
    }

    pub fn conversions(&self) -> usize {
        self.converter.conversions.load(Ordering::SeqCst)
    }

    /// What a directory of the store holds.
    pub fn entries(&self, directory: &str) -> Vec<String> {
        let entries = fs::read_dir(self.root().join(directory)).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        for id in self.store.layers() {
            let _ = snapshotter::host_mount::unmount(&self.store.layer_directory(id).join("fs"));
        }
    }
}

/// The requests that containerd's metadata layer makes.
#[derive(Clone)]
pub struct Client {
    pub channel: Channel,
    pub snapshots: SnapshotsClient<Channel>,
}

pub fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(snapshotter::NAMESPACE_HEADER, NAMESPACE.parse().unwrap());
    request
}

impl Client {
    pub async fn connect(socket: &Path) -> Result<Self, tonic::transport::Error> {
        let channel = containerd_client::connect(socket).await?;
        Ok(Self { snapshots: SnapshotsClient::new(channel.clone()), channel })
    }

    pub async fn prepare(
        &self,
        key: &str,
        parent: &str,
        target: Option<Digest>,
    ) -> Result<Vec<Mount>, Status> {
        let message = PrepareSnapshotRequest {
            key: key.into(),
            parent: parent.into(),
            labels: target.map(|target| (TARGET_LABEL.into(), target.to_string())).into_iter().collect(),
            ..PrepareSnapshotRequest::default()
        };
        Ok(self.snapshots.clone().prepare(request(message)).await?.into_inner().mounts)
    }

    pub async fn commit(&self, key: &str, name: &str, labels: HashMap<String, String>) -> Result<(), Status> {
        let (key, name) = (key.into(), name.into());
        let message = CommitSnapshotRequest { key, name, labels, ..CommitSnapshotRequest::default() };
        self.snapshots.clone().commit(request(message)).await.map(|_| ())
    }

    pub async fn remove(&self, key: &str) -> Result<(), Status> {
        let message = RemoveSnapshotRequest { key: key.into(), ..RemoveSnapshotRequest::default() };
        self.snapshots.clone().remove(request(message)).await.map(|_| ())
    }

    pub async fn list(&self, filters: &[String]) -> Result<Vec<Info>, Status> {
        let message = ListSnapshotsRequest { filters: filters.to_vec(), ..ListSnapshotsRequest::default() };
        let mut stream = self.snapshots.clone().list(request(message)).await?.into_inner();
        let mut infos = Vec::new();
        while let Some(response) = stream.message().await? {
            infos.extend(response.info);
        }
        Ok(infos)
    }

    /// Unpacks an image as containerd's unpacker does through its metadata layer; `unique` makes the keys. Returns
    /// the name of the topmost snapshot, and how many layers it was given mounts for.
    pub async fn unpack(&self, image: &Image, unique: &str) -> Result<(String, usize), Status> {
        let (mut parent, mut given) = (String::new(), 0);
        for (index, chain) in image.chain.iter().enumerate() {
            let key = format!("{NAMESPACE}/{unique}-{index}/extract-{unique} {chain}");
            parent = match self.prepare(&key, &parent, Some(*chain)).await {
                Ok(_) => {
                    given += 1;
                    let name = format!("{NAMESPACE}/{unique}-{index}/{chain}");
                    let label = HashMap::from([(TARGET_LABEL.into(), chain.to_string())]);
                    self.commit(&key, &name, label).await?;
                    name
                }
                Err(status) if status.code() == Code::AlreadyExists => self
                    .find(*chain, &parent)
                    .await?
                    .ok_or_else(|| Status::not_found("what already exists"))?,
                Err(status) => return Err(status),
            };
        }
        Ok((parent, given))
    }

    /// Finds what an extraction left behind, by containerd's own filter.
    pub async fn find(&self, chain: Digest, parent: &str) -> Result<Option<String>, Status> {
        let filter = format!(r#"labels."{TARGET_LABEL}"=={chain},parent=="{parent}""#);
        Ok(self.list(&[filter]).await?.into_iter().next().map(|info| info.name))
    }
}
