//! The service as containerd uses it, over its socket.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail with the test")]

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use containerd_client::services::v1::diff_client::DiffClient;
use containerd_client::services::v1::snapshots::{
    CleanupRequest, Info, MountsRequest, StatSnapshotRequest, UpdateSnapshotRequest, UsageRequest,
    ViewSnapshotRequest,
};
use containerd_client::services::v1::{ApplyRequest, DiffRequest};
use containerd_client::types::{Descriptor, Mount};
use snapshotter::check;
use snapshotter::digest::Digest;
use snapshotter::store::ROOT_HASH_LABEL;
use support::{Image, Setup, layer, request};
use tonic::Code;

mod support;

const MULTI_THREAD: &str = "the service blocks threads of its own";

fn two_layers() -> Image {
    Image::new(&[layer(&[("bin/a", 5000)]), layer(&[("bin/b", 70_000)])])
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_that_are_there_are_never_unpacked() {
    let setup = Setup::new().await;
    let image = two_layers();
    setup.content.put_image(&image);
    let (top, given) = setup.client.unpack(&image, "1").await.unwrap();
    assert_eq!((given, setup.conversions()), (0, 2), "{MULTI_THREAD}");
    // Its label tells the root hash, and the layer has it.
    let stat = StatSnapshotRequest { key: top, ..StatSnapshotRequest::default() };
    let info = setup.client.snapshots.clone().stat(request(stat)).await.unwrap().into_inner().info.unwrap();
    let description = check::layer(&setup.store.layer_directory(2)).unwrap();
    assert_eq!(info.labels[ROOT_HASH_LABEL], description.root_hash());
    assert_eq!(description.diff_id, Some(Digest::of(&image.layers[1])));
    // The same image again, and another with the same layer on another parent, convert nothing.
    setup.client.unpack(&image, "2").await.unwrap();
    let other = Image::new(&[image.layers[1].clone(), image.layers[0].clone(), image.layers[1].clone()]);
    setup.content.put_documents(&other);
    setup.client.unpack(&other, "3").await.unwrap();
    assert_eq!((setup.conversions(), setup.entries("layers").len()), (2, 2));
    assert_eq!(setup.client.list(&[]).await.unwrap().len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_that_come_later_are_converted_by_the_commit() {
    let setup = Setup::new().await;
    let image = two_layers();
    setup.content.put_documents(&image);
    let chain = image.chain[0];
    let key = format!("tests/1/extract-1-x {chain}");
    let mounts = setup.client.prepare(&key, "", Some(chain)).await.unwrap();
    assert_eq!((mounts[0].r#type.as_str(), mounts.len()), ("bind", 1));
    // What is unpacked there is thrown away.
    fs::write(Path::new(&mounts[0].source).join("unpacked"), "x").unwrap();
    let early = setup.client.commit(&key, "tests/2/c", HashMap::new()).await.unwrap_err();
    assert!(early.message().contains("none of its blobs"), "{early:?}");
    setup.content.put(&image.layers[0]);
    setup.client.commit(&key, "tests/2/c", HashMap::new()).await.unwrap();
    assert_eq!(setup.client.find(chain, "").await.unwrap().unwrap(), "tests/2/c");
    assert_eq!(check::layer(&setup.store.layer_directory(1)).unwrap().diff_id, Some(chain));
    setup.client.snapshots.clone().cleanup(request(CleanupRequest::default())).await.unwrap();
    assert!(setup.entries("snapshots").is_empty() && setup.entries("staging").is_empty());
    // The layer above is converted ahead: when it is asked for, it is there.
    setup.content.put(&image.layers[1]);
    for _ in 0..100 {
        if setup.conversions() == 2 && setup.entries("layers").len() == 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!((setup.conversions(), setup.entries("layers").len()), (2, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn parallel_unpacks_convert_once() {
    let setup = Setup::new().await;
    let image = two_layers();
    setup.content.put_image(&image);
    *setup.converter.delay.lock().unwrap() = Duration::from_millis(100);
    let unpack = |index: usize| {
        let (client, image) = (setup.client.clone(), image.clone());
        tokio::spawn(async move { client.unpack(&image, &index.to_string()).await.unwrap() })
    };
    let unpacks: Vec<_> = (0..16).map(unpack).collect();
    for unpack in unpacks {
        unpack.await.unwrap();
    }
    assert_eq!((setup.conversions(), setup.entries("layers").len()), (2, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn contents_that_are_not_what_the_image_says_are_refused() {
    let setup = Setup::new().await;
    let lie = Image::with_diff_ids(&[layer(&[("a", 10)])], &[Digest::of(b"something else")]);
    setup.content.put_image(&lie);
    let error = setup.client.unpack(&lie, "1").await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains("expected diff id"), "{error:?}");
    // A blob that is not the one it is named by.
    let image = two_layers();
    setup.content.put_image(&image);
    fs::write(setup.content.0.join(Digest::of(&image.layers[0]).hex()), layer(&[("b", 10)])).unwrap();
    let error = setup.client.unpack(&image, "2").await.unwrap_err();
    assert!(error.message().contains("expected digest"), "{error:?}");
    // No layer at all.
    let noise = Image::new(&[b"no tar".repeat(500)]);
    setup.content.put_image(&noise);
    let error = setup.client.unpack(&noise, "3").await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error:?}");
    assert!(setup.entries("layers").is_empty() && setup.entries("staging").is_empty());
    assert!(setup.client.list(&[]).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_image_has_is_packed_and_shows_on_the_host() {
    let setup = Setup::new().await;
    let client = &setup.client;
    let mounts = client.prepare("one", "", None).await.unwrap();
    fs::write(Path::new(&mounts[0].source).join("file"), "contents").unwrap();
    client.commit("one", "first", HashMap::new()).await.unwrap();
    assert_eq!(client.commit("one", "again", HashMap::new()).await.unwrap_err().code(), Code::NotFound);
    let view = ViewSnapshotRequest { key: "v".into(), parent: "first".into(), ..Default::default() };
    let mounts = client.snapshots.clone().view(request(view)).await.unwrap().into_inner().mounts;
    assert_eq!(mounts[0].options[0], "ro");
    assert_eq!(fs::read_to_string(Path::new(&mounts[0].source).join("file")).unwrap(), "contents");
    assert_eq!(client.commit("v", "x", HashMap::new()).await.unwrap_err().code(), Code::FailedPrecondition);
    // Two layers and a writable directory are an overlay, topmost layer first.
    let upper = client.prepare("two", "first", None).await.unwrap();
    let directory = option(&upper[0], "upperdir");
    fs::write(Path::new(&directory).join("other"), "more").unwrap();
    client.commit("two", "second", HashMap::new()).await.unwrap();
    let overlay = &client.prepare("three", "second", None).await.unwrap()[0];
    let layers = setup.root().canonicalize().unwrap().join("layers");
    let lower = format!("{0}/2/fs:{0}/1/fs", layers.display());
    assert_eq!((overlay.r#type.as_str(), option(overlay, "lowerdir")), ("overlay", lower));
    let again = MountsRequest { key: "three".into(), ..MountsRequest::default() };
    let again = client.snapshots.clone().mounts(request(again)).await.unwrap().into_inner().mounts;
    assert_eq!(&again[0], overlay);
    let usage = UsageRequest { key: "second".into(), ..UsageRequest::default() };
    let usage = client.snapshots.clone().usage(request(usage)).await.unwrap().into_inner();
    assert!(usage.size >= 8192 && usage.inodes == 4, "{usage:?}");
}

fn option(mount: &Mount, name: &str) -> String {
    let values = mount.options.iter().filter_map(|option| option.strip_prefix(name)?.strip_prefix('='));
    values.collect::<Vec<_>>().join(" and ")
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_frees_what_nothing_else_needs() {
    let setup = Setup::new().await;
    let client = &setup.client;
    let image = two_layers();
    setup.content.put_image(&image);
    let (top, _) = client.unpack(&image, "1").await.unwrap();
    let shares = Image::new(&vec![image.layers[0].clone(); 2]);
    setup.content.put_image(&shares);
    let (other_top, _) = client.unpack(&shares, "2").await.unwrap();
    client.prepare("container", &top, None).await.unwrap();
    assert_eq!(client.remove(&top).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(client.remove("nothing").await.unwrap_err().code(), Code::NotFound);
    for name in ["container", &top] {
        client.remove(name).await.unwrap();
    }
    assert_eq!(setup.entries("layers"), ["1"]);
    client.remove(&other_top).await.unwrap();
    assert_eq!(setup.entries("layers"), ["1"], "the bottom snapshot still has it");
    let bottom = client.find(image.chain[0], "").await.unwrap().unwrap();
    client.remove(&bottom).await.unwrap();
    client.snapshots.clone().cleanup(request(CleanupRequest::default())).await.unwrap();
    for directory in ["layers", "snapshots", "records", "staging"] {
        assert!(setup.entries(directory).is_empty(), "{directory}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_differ_converts_and_leaves_foreign_mounts_to_others() {
    let setup = Setup::new().await;
    let image = two_layers();
    setup.content.put_documents(&image);
    let chain = image.chain[0];
    let key = format!("tests/1/extract-1-x {chain}");
    let mounts = setup.client.prepare(&key, "", Some(chain)).await.unwrap();
    let blob = setup.content.put(&image.layers[0]);
    let descriptor = Descriptor { digest: blob.to_string(), ..Descriptor::default() };
    let mut diff = DiffClient::new(setup.client.channel.clone());
    let apply = ApplyRequest { diff: Some(descriptor), mounts, ..ApplyRequest::default() };
    let applied = diff.apply(request(apply.clone())).await.unwrap().into_inner().applied.unwrap();
    assert_eq!(applied.digest, chain.to_string());
    assert_eq!(applied.size, image.layers[0].len() as i64);
    setup.client.commit(&key, "tests/2/c", HashMap::new()).await.unwrap();
    assert_eq!(setup.conversions(), 1);
    let elsewhere = setup.directory.path().display().to_string();
    let foreign = Mount { r#type: "bind".into(), source: elsewhere, ..Mount::default() };
    for mounts in [vec![foreign], apply.mounts.clone(), Vec::new()] {
        let apply = ApplyRequest { mounts, ..apply.clone() };
        assert_eq!(diff.apply(request(apply)).await.unwrap_err().code(), Code::Unimplemented);
    }
    assert_eq!(diff.diff(request(DiffRequest::default())).await.unwrap_err().code(), Code::Unimplemented);
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_change_but_for_the_root_hash() {
    let setup = Setup::new().await;
    let client = &setup.client;
    client.prepare("one", "", None).await.unwrap();
    let labels = HashMap::from([("a".into(), "1".into()), (ROOT_HASH_LABEL.into(), "forged".into())]);
    client.commit("one", "first", labels.clone()).await.unwrap();
    let update = |labels: HashMap<String, String>, paths: &[&str]| {
        let info = Some(Info { name: "first".into(), labels, ..Info::default() });
        let paths = paths.iter().map(|&path| path.into()).collect();
        let update_mask = Some(prost_types::FieldMask { paths });
        let message = UpdateSnapshotRequest { info, update_mask, ..UpdateSnapshotRequest::default() };
        let mut snapshots = client.snapshots.clone();
        async move { snapshots.update(request(message)).await.map(|r| r.into_inner().info.unwrap().labels) }
    };
    let root_hash = check::layer(&setup.store.layer_directory(1)).unwrap().root_hash().to_owned();
    let after = update(HashMap::from([("b".into(), "2".into())]), &["labels.b"]).await.unwrap();
    let expected = [("a", "1"), ("b", "2"), (ROOT_HASH_LABEL, &root_hash)];
    assert_eq!(after, expected.map(|(k, v)| (k.into(), v.into())).into());
    let after = update(labels, &[]).await.unwrap();
    let expected = [("a", "1"), (ROOT_HASH_LABEL, &root_hash)];
    assert_eq!(after, expected.map(|(k, v)| (k.into(), v.into())).into());
    assert_eq!(update(HashMap::new(), &["parent"]).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(client.list(&["name=".into()]).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(client.list(&["kind==committed".into()]).await.unwrap().len(), 1);
}
