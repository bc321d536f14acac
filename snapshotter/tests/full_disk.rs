//! A store on a file system that fills up: requests fail with an error that says so, what is there stays whole, and
//! what did not fit leaves nothing behind.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail with the test")]

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use containerd_client::types::Mount;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use snapshotter::serve;
use snapshotter::service::Service;
use snapshotter::{check, store::Store};
use support::{Client, Content, Image, converter, layer};
use tonic::Code;

mod support;

/// Size of the file system, in bytes.
const SIZE: u64 = 4 << 20;

/// A small file system in memory.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn new() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let options = std::ffi::CString::new(format!("size={SIZE}")).unwrap();
        match mount("none", directory.path(), "tmpfs", MountFlags::empty(), options.as_c_str()) {
            Ok(()) => Some(Self(directory)),
            Err(error) => {
                eprintln!("skipped: a file system cannot be mounted here: {error}");
                None
            }
        }
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = unmount(self.0.path(), UnmountFlags::DETACH);
    }
}

fn entries(path: &Path) -> usize {
    fs::read_dir(path).unwrap().count()
}

/// What a failed conversion wrote is gone from the store at once; its blocks are free when the last thread that wrote
/// them has closed the file.
async fn prepare_when_freed(client: &Client, key: &str) -> Vec<Mount> {
    for _ in 0..100 {
        if let Ok(mounts) = client.prepare(key, "", None).await {
            return mounts;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    client.prepare(key, "", None).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_an_error_and_no_more() {
    let Some(small) = Tmpfs::new() else { return };
    let root = small.0.path().join("store");
    let elsewhere = tempfile::tempdir().unwrap();
    let content = Content::new(&elsewhere.path().join("content"));
    let fits = Image::new(&[layer(&[("a", 1 << 20)])]);
    let too_large = Image::new(&[fits.layers[0].clone(), layer(&[("b", 8 << 20)])]);
    content.put_image(&fits);
    content.put_image(&too_large);
    let store = Store::open(&root).unwrap();
    let service = Service::new(Arc::clone(&store), Arc::new(content), Arc::new(converter()), Vec::new(), 2);
    let socket = elsewhere.path().join("socket");
    let server =
        tokio::spawn(serve::serve(serve::listen(&socket).await.unwrap(), service, std::future::pending()));
    let client = Client::connect(&socket).await.unwrap();
    client.unpack(&fits, "1").await.unwrap();
    let error = client.unpack(&too_large, "2").await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted, "{error:?}");
    assert_eq!((entries(&root.join("staging")), entries(&root.join("layers"))), (0, 1));

    // A directory that cannot be packed stays as it is, to be committed when there is space.
    let mounts = prepare_when_freed(&client, "key").await;
    let upper = Path::new(&mounts[0].source);
    fs::write(upper.join("file"), vec![1; 1 << 20]).unwrap();
    let ballast = small.0.path().join("ballast");
    let _ = fs::write(&ballast, vec![0; 8 << 20]);
    let error = client.commit("key", "name", [].into()).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted, "{error:?}");
    // Not even a record can be written.
    assert!(client.prepare("other", "", None).await.is_err());
    assert_eq!(client.list(&[]).await.unwrap().len(), 2);
    fs::remove_file(ballast).unwrap();
    client.commit("key", "name", [].into()).await.unwrap();

    server.abort();
    let _ = server.await;
    for (id, found) in check::layers(&store) {
        found.unwrap_or_else(|error| panic!("layer {id}: {error}"));
    }
    assert_eq!(store.layers().len(), 2);
}
