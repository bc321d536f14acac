//! A real containerd, of whatever version is installed, with the service as its proxy snapshotter.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail with the test")]

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use containerd_client::services::v1::CreateRequest;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{PrepareSnapshotRequest, StatSnapshotRequest};
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::{ImageSpec, PullImageRequest, RemoveImageRequest};
use snapshotter::content::Containerd;
use snapshotter::digest::Digest;
use snapshotter::serve;
use snapshotter::service::{Service, TARGET_LABEL};
use snapshotter::store::{Entry, Kind, ROOT_HASH_LABEL, Store};
use support::{Counted, Image, layer, request};
use tonic::Code;

mod support;

const REFERENCE: &str = "example.org/layers:1";
const LEASE: &str = "pull";

/// A containerd with everything of its own, and the service beside it.
struct Node {
    directory: tempfile::TempDir,
    containerd: Child,
    converter: Arc<Counted>,
    store: Arc<Store>,
}

impl Node {
    /// `None` where there is no containerd, or not the rights to start one.
    async fn start(read_files: bool, cri: bool) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let config = format!(
            "version = 2\nroot = '{0}/root'\nstate = '{0}/state'\n\
             disabled_plugins = [{1}]\n\
             [grpc]\naddress = '{0}/containerd.sock'\n[ttrpc]\naddress = '{0}/containerd.sock.ttrpc'\n\
             [proxy_plugins.uvm]\ntype = 'snapshot'\naddress = '{0}/snapshotter.sock'\n\
             [plugins.'io.containerd.grpc.v1.cri'.containerd]\nsnapshotter = 'uvm'\n",
            directory.path().display(),
            if cri { "" } else { "'io.containerd.grpc.v1.cri'" },
        );
        fs::write(path("config.toml"), config).unwrap();
        let content = path("root/io.containerd.content.v1.content");
        let content = Containerd::new(&path("containerd.sock"), read_files.then_some(content.as_path()));
        let converter = Arc::new(Counted::default());
        let store = Store::open(&path("store")).unwrap();
        let service = Service::new(Arc::clone(&store), Arc::new(content), converter.clone(), Vec::new(), 2);
        let listener = serve::listen(&path("snapshotter.sock")).await.unwrap();
        tokio::spawn(serve::serve(listener, service, std::future::pending()));
        let log = fs::File::create(path("containerd.log")).unwrap();
        let containerd = Command::new("containerd")
            .arg("--config")
            .arg(path("config.toml"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        let containerd = match containerd {
            Ok(containerd) if rustix::process::geteuid().is_root() => containerd,
            _ => {
                eprintln!("skipped: containerd cannot be started here");
                return None;
            }
        };
        let node = Self { directory, containerd, converter, store };
        for _ in 0..200 {
            if containerd_client::connect(node.path("containerd.sock")).await.is_ok() {
                return Some(node);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("containerd does not answer: {}", fs::read_to_string(node.path("containerd.log")).unwrap());
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    async fn ctr(&self, arguments: &[&str]) -> String {
        let mut ctr = tokio::process::Command::new("ctr");
        ctr.arg("--address").arg(self.path("containerd.sock")).args(["--namespace", support::NAMESPACE]);
        let output = ctr.args(arguments).output().await.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "ctr {arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    fn conversions(&self) -> usize {
        self.converter.conversions.load(Ordering::SeqCst)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.containerd.kill();
        let _ = self.containerd.wait();
        for id in self.store.layers() {
            let _ = snapshotter::host_mount::unmount(&self.store.layer_directory(id).join("fs"));
        }
    }
}

/// Writes an image as an archive that containerd imports.
fn archive(path: &Path, image: &Image) {
    let mut builder = tar::Builder::new(fs::File::create(path).unwrap());
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, bytes).unwrap();
    };
    let (manifest, config) = (documents(image), configuration(image));
    let index = serde_json::json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": Digest::of(&manifest),
            "size": manifest.len(), "annotations": {"io.containerd.image.name": REFERENCE},
        }],
    });
    add("oci-layout", br#"{"imageLayoutVersion": "1.0.0"}"#);
    add("index.json", index.to_string().as_bytes());
    for blob in image.layers.iter().chain([&manifest, &config]) {
        add(&format!("blobs/sha256/{}", Digest::of(blob).hex()), blob);
    }
    builder.finish().unwrap();
}

fn configuration(image: &Image) -> Vec<u8> {
    let diff_ids: Vec<_> = image.layers.iter().map(|layer| Digest::of(layer)).collect();
    let rootfs = serde_json::json!({"type": "layers", "diff_ids": diff_ids});
    serde_json::json!({"architecture": "amd64", "os": "linux", "rootfs": rootfs}).to_string().into_bytes()
}

fn documents(image: &Image) -> Vec<u8> {
    let descriptor = |kind: &str, bytes: &[u8]| {
        let media_type = format!("application/vnd.oci.image.{kind}");
        serde_json::json!({"mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len()})
    };
    let layers: Vec<_> = image.layers.iter().map(|layer| descriptor("layer.v1.tar", layer)).collect();
    let config = descriptor("config.v1+json", &configuration(image));
    serde_json::json!({"schemaVersion": 2, "config": config, "layers": layers}).to_string().into_bytes()
}

/// Three layers, two of them the same.
fn image() -> Image {
    let (a, b) = (layer(&[("bin/a", 50_000), ("etc/x", 3)]), layer(&[("bin/b", 2_000_000)]));
    Image::new(&[a.clone(), b, a])
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_imported_shown_and_removed() {
    let Some(node) = Node::start(false, false).await else { return };
    let (image, file) = (image(), node.path("image.tar"));
    archive(&file, &image);
    node.ctr(&["images", "import", "--snapshotter", "uvm", file.to_str().unwrap()]).await;
    assert_eq!((node.conversions(), node.store.layers().len()), (2, 2));
    let usage = node.ctr(&["snapshots", "--snapshotter", "uvm", "usage"]).await;
    for chain in &image.chain {
        assert!(usage.contains(&chain.to_string()), "{usage}");
    }
    // containerd mounts a snapshot, and sees what the layers hold.
    let top = image.chain[2].to_string();
    node.ctr(&["snapshots", "--snapshotter", "uvm", "prepare", "container", &top]).await;
    let target = node.path("mounted");
    fs::create_dir(&target).unwrap();
    let mounts = ["snapshots", "--snapshotter", "uvm", "mounts", target.to_str().unwrap(), "container"];
    let command = node.ctr(&mounts).await;
    assert!(Command::new("sh").arg("-c").arg(&command).status().unwrap().success(), "{command}");
    assert_eq!(fs::read(target.join("etc/x")).unwrap(), b"etc");
    assert_eq!(fs::metadata(target.join("bin/b")).unwrap().len(), 2_000_000);
    rustix::mount::unmount(&target, rustix::mount::UnmountFlags::empty()).unwrap();
    node.ctr(&["snapshots", "--snapshotter", "uvm", "rm", "container"]).await;
    node.ctr(&["images", "rm", "--sync", REFERENCE]).await;
    assert!(node.store.layers().is_empty() && node.store.list().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_containerd_names_the_target_of_is_not_unpacked() {
    let Some(node) = Node::start(true, false).await else { return };
    let (image, file) = (image(), node.path("image.tar"));
    archive(&file, &image);
    node.ctr(&["images", "import", "--no-unpack", "--snapshotter", "uvm", file.to_str().unwrap()]).await;
    assert_eq!(node.conversions(), 0);
    let channel = containerd_client::connect(node.path("containerd.sock")).await.unwrap();
    let mut snapshots = SnapshotsClient::new(channel.clone());
    // As every pull has one: without it, the snapshots are garbage at once.
    let lease = CreateRequest { id: LEASE.into(), ..CreateRequest::default() };
    LeasesClient::new(channel).create(request(lease)).await.unwrap();
    let mut parent = String::new();
    for chain in &image.chain {
        let prepare = PrepareSnapshotRequest {
            snapshotter: "uvm".into(),
            key: format!("extract-1-x {chain}"),
            parent,
            labels: [(TARGET_LABEL.into(), chain.to_string())].into(),
        };
        let mut prepare = request(prepare);
        prepare.metadata_mut().insert("containerd-lease", LEASE.parse().unwrap());
        let status = snapshots.prepare(prepare).await.unwrap_err();
        assert_eq!(status.code(), Code::AlreadyExists, "{status:?}");
        parent = chain.to_string();
        let stat = StatSnapshotRequest { snapshotter: "uvm".into(), key: parent.clone() };
        let info = snapshots.stat(request(stat)).await.unwrap().into_inner().info.unwrap();
        assert_eq!(info.labels[ROOT_HASH_LABEL].len(), 64);
    }
    assert_eq!((node.conversions(), node.store.layers().len()), (2, 2));
}

/// A registry with a folder of its own.
struct Registry(Child, String);

impl Registry {
    fn start(directory: &Path) -> Option<Self> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let folder = directory.join("registry");
        let config = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
            folder.display()
        );
        let path = directory.join("registry.yml");
        fs::write(&path, config).unwrap();
        let mut registry = Command::new("docker-registry");
        let registry = registry.arg("serve").arg(path).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        match registry {
            Ok(registry) => Some(Self(registry, address)),
            Err(error) => {
                eprintln!("skipped: docker-registry cannot be started: {error}");
                None
            }
        }
    }

    async fn wait(&self) {
        for _ in 0..200 {
            if tokio::net::TcpStream::connect(&self.1).await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the registry does not answer");
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cri_pulls_an_image() {
    let Some(node) = Node::start(false, true).await else { return };
    let Some(registry) = Registry::start(node.directory.path()) else { return };
    registry.wait().await;
    let files = ["a", "b", "c", "d", "e"].map(|name| layer(&[(name, 3_000_000)]));
    let (image, file) = (Image::new(&files), node.path("image.tar"));
    archive(&file, &image);
    let reference = format!("{}/layers:1", registry.1);
    node.ctr(&["images", "import", "--no-unpack", file.to_str().unwrap()]).await;
    node.ctr(&["images", "tag", REFERENCE, &reference]).await;
    node.ctr(&["images", "push", "--plain-http", &reference]).await;
    node.ctr(&["images", "rm", "--sync", REFERENCE, &reference]).await;

    let channel = containerd_client::connect(node.path("containerd.sock")).await.unwrap();
    let mut images = ImageServiceClient::new(channel);
    let spec = Some(ImageSpec { image: reference, ..ImageSpec::default() });
    let pull = PullImageRequest { image: spec.clone(), ..PullImageRequest::default() };
    images.pull_image(pull).await.unwrap();
    assert_eq!((node.conversions(), node.store.layers().len()), (5, 5));
    let committed = |entry: &Entry| entry.record.kind == Kind::Committed;
    assert_eq!(node.store.list().iter().filter(|entry| committed(entry)).count(), 5);
    assert_eq!(node.store.chain(Some(&node.store.list()[4].record.name)).unwrap().len(), 5);
    images.remove_image(RemoveImageRequest { image: spec }).await.unwrap();
    // What was converted ahead of the pull does not keep the space either.
    for _ in 0..200 {
        if node.store.list().is_empty() && node.store.layers().is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{:?} and layers {:?} are left", node.store.list(), node.store.layers());
}
