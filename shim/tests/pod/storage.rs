//! Layers, volumes and scratch space of a pod, as its machine and its agent see them.

use std::fs;

use ttrpc::Code;

use super::guest::FakeDriver;
use super::harness::{Harness, code};

/// What the machine was asked to attach and detach, from `begin` on.
fn disk(harness: &Harness, begin: usize) -> Vec<String> {
    let entries = harness.driver.journal.entries().split_off(begin);
    entries.into_iter().filter(|entry| entry.starts_with("attach") || entry.starts_with("detach")).collect()
}

async fn run(harness: &Harness, id: &str, args: &[&str], layers: &[u64]) -> ttrpc::Result<()> {
    let mut request = harness.member(id, "p", args);
    request.rootfs = vec![harness.snapshot(layers)];
    harness.client.create(Harness::context(), &request).await.map(drop)
}

#[tokio::test]
async fn a_layer_is_attached_once_and_its_place_is_used_again() {
    let harness = Harness::new("p", FakeDriver::default()).await;
    harness.run(&harness.sandbox("p")).await;
    run(&harness, "a", &["sleep"], &[2, 3]).await.unwrap();
    run(&harness, "b", &["sleep"], &[2, 4]).await.unwrap();
    assert_eq!(disk(&harness, 0), ["attach 1@0 8192", "attach 1@8192 12288", "attach 1@20480 16384"]);
    let begin = harness.driver.journal.entries().len();
    harness.delete("a", "").await.unwrap();
    assert_eq!(disk(&harness, begin), ["detach 1@8192"]);
    let begin = harness.driver.journal.entries().len();
    // The gap takes what fits: a layer of five blocks comes after the end, one of three into the gap.
    run(&harness, "c", &["sleep"], &[2, 5, 3]).await.unwrap();
    assert_eq!(disk(&harness, begin), ["attach 1@36864 20480", "attach 1@8192 12288"]);
}

#[tokio::test]
async fn what_occurs_twice_in_a_stack_is_shown_at_its_topmost_place() {
    let harness = Harness::new("p", FakeDriver::default()).await;
    harness.run(&harness.sandbox("p")).await;
    run(&harness, "a", &["sleep"], &[2, 3, 2]).await.unwrap();
    assert_eq!(disk(&harness, 0), ["attach 1@0 12288", "attach 1@12288 8192"]);
    assert!(harness.driver.journal.entries().contains(&"create a mmioblk+mmioblk+overlayfs".to_owned()));
}

#[tokio::test]
async fn hundreds_of_containers_fit() {
    let harness = Harness::new("p", FakeDriver::default()).await;
    harness.run(&harness.sandbox("p")).await;
    for index in 0..200 {
        run(&harness, &format!("c{index}"), &["sleep"], &[2, 3, 10 + index]).await.unwrap();
    }
    assert_eq!(disk(&harness, 0).len(), 202);
    let begin = harness.driver.journal.entries().len();
    for index in 0..200 {
        harness.delete(&format!("c{index}"), "").await.unwrap();
    }
    let detached = disk(&harness, begin);
    assert_eq!(detached.len(), 202);
    assert!(detached.iter().all(|entry| entry.starts_with("detach")));
}

#[tokio::test]
async fn a_creation_that_the_agent_refuses_leaves_nothing_attached_and_its_words_arrive() {
    let harness = Harness::new("p", FakeDriver::default()).await;
    harness.run(&harness.sandbox("p")).await;
    run(&harness, "a", &["sleep"], &[2]).await.unwrap();
    let begin = harness.driver.journal.entries().len();
    let error = run(&harness, "b", &["refuse"], &[2, 3]).await.unwrap_err();
    assert!(format!("{error:?}").contains("layer does not match its root hash"), "{error:?}");
    assert_eq!(disk(&harness, begin), ["attach 1@8192 12288", "detach 1@8192"]);
    run(&harness, "b", &["sleep"], &[2, 3]).await.unwrap();
}

#[tokio::test]
async fn a_layer_that_the_machine_refuses_takes_the_others_along() {
    let driver = FakeDriver { refused: Some(8192), ..FakeDriver::default() };
    let harness = Harness::new("p", driver).await;
    harness.run(&harness.sandbox("p")).await;
    let error = run(&harness, "a", &["sleep"], &[2, 3, 4]).await.unwrap_err();
    assert!(format!("{error:?}").contains("refused: no"), "{error:?}");
    assert_eq!(disk(&harness, 0), ["attach 1@0 8192", "detach 1@0"]);
    run(&harness, "a", &["sleep"], &[2]).await.unwrap();
    assert_eq!(disk(&harness, 0).last().unwrap(), "attach 1@0 8192");
}

#[tokio::test]
async fn a_layer_file_that_is_not_what_was_written_is_named() {
    let harness = Harness::new("p", FakeDriver::default()).await;
    harness.run(&harness.sandbox("p")).await;
    let mut request = harness.member("a", "p", &["sleep"]);
    request.rootfs = vec![harness.snapshot(&[2])];
    let layer = harness.dir.path().join("store/layers/2/layer");
    let refusal =
        async || format!("{:?}", harness.client.create(Harness::context(), &request).await.unwrap_err());
    fs::File::options().write(true).open(&layer).unwrap().set_len(4096).unwrap();
    let error = refusal().await;
    assert!(error.contains("store/layers/2/layer: length: expected 8192 bytes, found 4096 bytes"), "{error}");
    fs::remove_file(&layer).unwrap();
    assert!(refusal().await.contains("cannot open layer"));
    assert_eq!(disk(&harness, 0), [""; 0]);
}

#[tokio::test]
async fn a_pods_empty_directories_are_made_in_the_guest() {
    let harness = Harness::new("p", FakeDriver::default()).await;
    harness.run(&harness.sandbox("p")).await;
    let volume = harness.dir.path().join("kubelet/pods/u/volumes/kubernetes.io~empty-dir/cache");
    fs::create_dir_all(&volume).unwrap();
    let request = harness.member("a", "p", &["sleep"]);
    harness.bind(&request, &volume, "/cache");
    harness.create(&request).await;
    let journal = harness.driver.journal.entries();
    assert!(journal.contains(&"create a local+mmioblk+overlayfs".to_owned()), "{journal:?}");
    assert!(
        journal.contains(&"bind /run/kata-containers/sandbox/local/cache /cache".to_owned()),
        "{journal:?}"
    );

    let request = harness.member("b", "p", &["sleep"]);
    harness.bind(&request, &volume.join("sub"), "/cache");
    assert_eq!(code(harness.client.create(Harness::context(), &request).await), Code::INVALID_ARGUMENT);
}

#[tokio::test]
async fn scratch_space_is_attached_before_the_pod_is_made() {
    let mut harness = Harness::new("p", FakeDriver::default()).await;
    harness.config = "scratch_mib = 64\n".into();
    harness.run(&harness.sandbox("p")).await;
    let expected =
        ["launch 1 512", "attach 2@0 67108864", "sandbox p name", "uvm.scratch_bytes=67108864 at /dev/vdc"];
    assert_eq!(harness.driver.journal.entries(), expected);
    assert_eq!(fs::read_dir(harness.dir.path().join("scratch")).unwrap().count(), 0, "the file has no name");
}

#[tokio::test]
async fn a_creation_that_the_machines_end_breaks_off_says_why_it_ended() {
    let harness = Harness::new("p", FakeDriver::default()).await;
    harness.run(&harness.sandbox("p")).await;
    let request = harness.member("a", "p", &["hang"]);
    let client = harness.client.clone();
    let hanging = tokio::spawn(async move { client.create(Harness::context(), &request).await });
    while !harness.driver.journal.entries().iter().any(|entry| entry.starts_with("create a")) {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    harness.driver.crash().await;
    let error = format!("{:?}", hanging.await.unwrap().unwrap_err());
    assert!(error.contains("the pod's utility VM has ended: guest kernel panicked"), "{error}");
}
