//! Images in the product's snapshotter: pulled, imported, run, shared, removed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::case::{Bed, Case};
use crate::command::{eventually, run};
use crate::cri::{Container, Cri, Pod};
use crate::ctr::{RUNTIME, ctr, transfer};
use crate::layered_image::{LayeredImage, SHOW};
use crate::ledger::{Ledger, processes};
use crate::registry::{REGISTRY, Registry};
use crate::snapshots::{SNAPSHOTTER, StoredLayer, list, root_hash, stored_layers, usage};

pub const CASES: &[Case] = &[
    Case { name: "image::imported_from_an_archive", run: imported },
    Case { name: "image::pulled_from_a_registry", run: pulled },
    Case { name: "image::pulled_by_a_kubelet", run: pulled_by_kubelet },
    Case { name: "image::snapshots_ls_and_usage", run: listed },
    Case { name: "image::root_hashes_are_the_converter's", run: converted },
    Case { name: "image::removed_images_free_the_space", run: removed },
    Case { name: "image::shared_by_two_pods_once_on_disk", run: shared_by_pods },
    Case { name: "image::two_containers_share_a_layer", run: shared_by_containers },
    Case { name: "image::many_containers", run: many_containers },
];

/// Few layers, some, and as many as there may be.
const SIZES: [usize; 3] = [1, 12, 100];
/// An image that most cases can do with.
const SOME: usize = 12;
/// How soon the space of removed images is free.
const FREED: Duration = Duration::from_secs(30);
/// Containers in one pod.
const MANY: usize = 30;

fn import(namespace: &str, image: &LayeredImage) -> Result<()> {
    let flags = ["-n", namespace, "images", "import", "--snapshotter", SNAPSHOTTER];
    transfer(&[&flags[..], &[&image.archive]].concat())?.expect_status(0)?;
    Ok(())
}

fn remove(namespace: &str, image: &LayeredImage) -> Result<()> {
    transfer(&["-n", namespace, "images", "rm", "--sync", &image.name])?.expect_status(0)?;
    Ok(())
}

/// What a container of the image sees under `runtime` is what the layers' traces add up to.
fn expect_view(image: &LayeredImage, runtime: &str) -> Result<()> {
    let flags = ["run", "--rm", "--snapshotter", SNAPSHOTTER, "--runtime", runtime];
    let command = [&image.name, "layered", "sh", "-c", SHOW];
    let outcome = ctr(&[&flags[..], &command].concat())?.expect_status(0)?;
    ensure!(outcome.out == image.view(), "expected {:?}, found {outcome:?}", image.view());
    Ok(())
}

/// The layers in the store that are the image's: each once, and all of them.
fn expect_stored(image: &LayeredImage) -> Result<Vec<StoredLayer>> {
    let mut stored = stored_layers()?;
    let wanted = image.diff_ids();
    stored.retain(|layer| layer.diff_id.as_ref().is_some_and(|diff_id| wanted.contains(diff_id)));
    ensure!(stored.len() == wanted.len(), "expected {} layers once each, found {stored:#?}", wanted.len());
    Ok(stored)
}

/// Of the image's layers, the store has just `wanted` left. Space is freed behind containerd's back, soon after an
/// image has gone; layers of other cases may come and go meanwhile.
fn expect_left(image: &LayeredImage, wanted: &BTreeSet<String>) -> Result<()> {
    let of_image = image.diff_ids();
    let left = || -> Result<Vec<String>> {
        let stored = stored_layers()?.into_iter().filter_map(|layer| layer.diff_id);
        Ok(stored.filter(|diff_id| of_image.contains(diff_id)).collect())
    };
    let freed = eventually("layers are gone", FREED, || {
        let left = left()?;
        Ok((left.len() == wanted.len() && left.iter().all(|layer| wanted.contains(layer))).then_some(()))
    });
    freed.with_context(|| format!("of {}: expected {wanted:?}, found {:?}", image.name, left()))
}

fn imported(_: &Bed) -> Result<()> {
    let before = Ledger::take()?;
    for size in SIZES {
        let folder = tempfile::tempdir()?;
        let image = LayeredImage::write(folder.path(), "docker.io/library/", size)?;
        import("default", &image)?;
        let outcome = expect_stored(&image).and_then(|_| expect_view(&image, RUNTIME));
        // The same snapshots serve containers that are no machines.
        let outcome = outcome.and_then(|()| expect_view(&image, "io.containerd.runc.v2"));
        remove("default", &image)?;
        outcome
            .and_then(|()| expect_left(&image, &BTreeSet::new()))
            .with_context(|| format!("{size} layers"))?;
    }
    before.expect_nothing_new()
}

fn pulled(_: &Bed) -> Result<()> {
    let registry = Registry::start()?;
    for size in SIZES {
        let folder = tempfile::tempdir()?;
        let image = LayeredImage::write(folder.path(), REGISTRY, size)?;
        registry.put(&image)?;
        let flags = ["images", "pull", "--plain-http", "--snapshotter", SNAPSHOTTER];
        transfer(&[&flags[..], &[&image.name]].concat())?.expect_status(0)?;
        let outcome = expect_stored(&image).and_then(|_| expect_view(&image, RUNTIME));
        remove("default", &image)?;
        outcome.with_context(|| format!("{size} layers"))?;
    }
    Ok(())
}

/// CRI's pull names the layers before it fetches them, unlike that of `ctr`.
fn pulled_by_kubelet(_: &Bed) -> Result<()> {
    let registry = Registry::start()?;
    let (folder, mut cri) = (tempfile::tempdir()?, Cri::connect()?);
    let image = LayeredImage::write(folder.path(), REGISTRY, SOME)?;
    registry.put(&image)?;
    cri.pull(&image.name)?;
    let outcome = in_pod(&mut cri, "pulled", |cri, pod| {
        expect_stored(&image)?;
        let container = cri.run_container(pod, &sleeping("main", &image))?;
        let seen = cri.succeed(&container, &["sh", "-c", SHOW])?;
        ensure!(seen == image.view(), "expected {:?}, found {seen:?}", image.view());
        Ok(())
    });
    cri.remove_image(&image.name)?;
    outcome
}

/// A pod for as long as `check` takes.
fn in_pod(cri: &mut Cri, name: &str, check: impl FnOnce(&mut Cri, &Pod) -> Result<()>) -> Result<()> {
    let logs = tempfile::tempdir()?;
    let pod = cri.run_pod(name, logs.path())?;
    let outcome = check(cri, &pod);
    cri.remove_pod(&pod)?;
    outcome
}

fn sleeping<'a>(name: &'a str, image: &'a LayeredImage) -> Container<'a> {
    Container { name, image: &image.name, command: &["sleep", "1000"], mounts: &[] }
}

/// An image of [`SOME`] layers in `namespace`, for as long as `check` takes.
fn with_image(namespace: &str, check: impl FnOnce(&LayeredImage) -> Result<()>) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let image = LayeredImage::write(folder.path(), "docker.io/library/", SOME)?;
    import(namespace, &image)?;
    let outcome = check(&image);
    remove(namespace, &image)?;
    outcome
}

/// A chain of committed snapshots, each with the root hash and the size of its layer.
fn listed(_: &Bed) -> Result<()> {
    with_image("default", |image| {
        let stored = expect_stored(image)?;
        let (listed, sizes) = (list("default")?, usage()?);
        ensure!(listed.len() == image.layers(), "expected {} snapshots, found {listed:#?}", image.layers());
        ensure!(listed.values().all(|snapshot| snapshot.kind == "Committed"), "{listed:#?}");
        let parents: BTreeSet<&str> = listed.values().map(|snapshot| snapshot.parent.as_str()).collect();
        ensure!(parents.len() == image.layers() && parents.contains(""), "expected a chain: {listed:#?}");
        let top = listed.keys().find(|key| !parents.contains(key.as_str())).context("a top snapshot")?;
        let hash = root_hash(top)?;
        let last = crate::oci_archive::digest(image.tar(image.layers() - 1));
        let layer = stored.iter().find(|layer| layer.root_hash == hash).context("the top's layer")?;
        ensure!(layer.diff_id == Some(last), "the top snapshot has {layer:?}");
        let size = sizes.get(top).copied();
        ensure!(size == Some(layer.allocated), "expected {} bytes, found {size:?}", layer.allocated);
        Ok(())
    })
}

/// What `uvm-snapshotter convert` computes from a layer's tar is what an import has stored.
fn converted(bed: &Bed) -> Result<()> {
    with_image("default", |image| {
        let stored = expect_stored(image)?;
        let folder = tempfile::tempdir()?;
        let (tar, out) = (folder.path().join("tar"), folder.path().join("layer"));
        for number in [0, SOME - 1] {
            fs::write(&tar, image.tar(number))?;
            let arguments = [Path::new("convert"), &tar, &out, Path::new("--json")];
            let said = run(bed.program("uvm-snapshotter"), &arguments)?.expect_status(0)?.out;
            let said: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
            let diff_id = said["diff_id"].as_str().map(str::to_owned);
            let layer = stored.iter().find(|layer| layer.diff_id == diff_id).context("a stored layer")?;
            ensure!(said["root_hash"] == layer.root_hash.as_str(), "{said} and {layer:?}");
            ensure!(fs::read(&out)? == fs::read(&layer.path)?, "layer {number} differs");
            fs::remove_file(&out)?;
        }
        Ok(())
    })
}

/// Of two images that share layers, the last to go takes them along; nothing stays mounted.
fn removed(_: &Bed) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let write = |name, layers| {
        let image = LayeredImage::write(&folder.path().join(name), "docker.io/library/", layers)?;
        import("default", &image).map(|()| image)
    };
    let (small, large) = (write("small", 4)?, write("large", SOME)?);
    expect_view(&large, RUNTIME)?;
    remove("default", &large)?;
    expect_left(&large, &small.diff_ids())?;
    expect_stored(&small)?;
    remove("default", &small)?;
    expect_left(&small, &BTreeSet::new())?;
    let left = list("default")?;
    ensure!(left.is_empty(), "snapshots are left: {left:?}");
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let stored = stored_layers()?;
    let left = |mount: &&str| mount.contains("/uvm-snapshotter/") && !is_mounted_of(mount, &stored);
    ensure!(mounts.lines().find(left).is_none(), "left mounted: {:?}", mounts.lines().find(left));
    Ok(())
}

fn is_mounted_of(mount: &str, layers: &[StoredLayer]) -> bool {
    layers.iter().any(|layer| mount.contains(&layer.path.with_file_name("fs ").display().to_string()))
}

/// Files in the store that a process has open, as often as it has.
fn open_layers(process: u32) -> Result<Vec<PathBuf>> {
    let mut open = Vec::new();
    for entry in fs::read_dir(format!("/proc/{process}/fd"))?.flatten() {
        let file = fs::read_link(entry.path()).unwrap_or_default();
        if file.ends_with("layer") && file.starts_with(crate::snapshots::STORE) {
            open.push(file);
        }
    }
    open.sort();
    Ok(open)
}

/// The machine that was started last.
fn newest_machine() -> Result<u32> {
    processes("uvm-vmm")?.into_iter().max().context("expected a machine, found none")
}

/// Two pods read the very same files, each of which is there once.
fn shared_by_pods(_: &Bed) -> Result<()> {
    with_image("k8s.io", |image| {
        let mut cri = Cri::connect()?;
        let stored = stored_layers()?;
        let files: Vec<PathBuf> = expect_stored(image)?.into_iter().map(|layer| layer.path).collect();
        in_pod(&mut cri, "first", |cri, first| {
            cri.run_container(first, &sleeping("main", image))?;
            let machine = newest_machine()?;
            in_pod(cri, "second", |cri, second| {
                let container = cri.run_container(second, &sleeping("main", image))?;
                let seen = cri.succeed(&container, &["sh", "-c", SHOW])?;
                ensure!(seen == image.view(), "expected {:?}, found {seen:?}", image.view());
                for machine in [machine, newest_machine()?] {
                    let open = open_layers(machine)?;
                    ensure!(open == files, "expected {files:?}, found {open:?}");
                }
                ensure!(stored_layers()? == stored, "expected {stored:?}, found {:?}", stored_layers());
                Ok(())
            })
        })
    })
}

/// The directories below a container's root, as its own mount table names them.
fn lower_directories(cri: &mut Cri, container: &str) -> Result<Vec<String>> {
    let mounts = cri.succeed(container, &["cat", "/proc/mounts"])?;
    let root = mounts.lines().find(|line| line.split(' ').nth(1) == Some("/")).context("a root mount")?;
    let options = root.split(' ').nth(3).context("mount options")?;
    // One option each, as the kernel shows what was given one by one.
    let lower = options.split(',').filter_map(|option| option.strip_prefix("lowerdir+="));
    Ok(lower.map(str::to_owned).collect())
}

fn guest_devices(cri: &mut Cri, container: &str) -> Result<usize> {
    let devices = cri.succeed(container, &["sh", "-c", "cd /sys/block; echo dm-*"])?;
    Ok(devices.split_whitespace().count())
}

/// The second container of an image costs no device and no mount of a layer, in the guest as on the host; the
/// last one to go takes them along.
fn shared_by_containers(_: &Bed) -> Result<()> {
    with_image("k8s.io", |image| {
        let files: Vec<PathBuf> = expect_stored(image)?.into_iter().map(|layer| layer.path).collect();
        in_pod(&mut Cri::connect()?, "sharing", |cri, pod| {
            let first = cri.run_container(pod, &sleeping("first", image))?;
            let devices = guest_devices(cri, &first)?;
            let lower = lower_directories(cri, &first)?;
            ensure!(lower.len() == files.len(), "expected each layer once, found {lower:?}");
            ensure!(devices >= files.len(), "expected a device for each of {lower:?}, found {devices}");

            let second = cri.run_container(pod, &sleeping("second", image))?;
            ensure!(lower_directories(cri, &second)? == lower, "the containers have other layers");
            let after = guest_devices(cri, &second)?;
            ensure!(after == devices, "expected {devices} devices still, found {after}");
            let machine = newest_machine()?;
            ensure!(open_layers(machine)? == files, "expected {files:?}, found {:?}", open_layers(machine));

            for (container, left) in [(&first, files.len()), (&second, 0)] {
                cri.stop_container(container)?;
                cri.remove_container(container)?;
                let open = open_layers(machine)?;
                ensure!(open.len() == left, "expected {left} layers, found {open:?}");
            }
            Ok(())
        })
    })
}

/// Containers come and go in a pod that stays; the layers of each are seen in it.
fn many_containers(_: &Bed) -> Result<()> {
    with_image("k8s.io", |image| {
        in_pod(&mut Cri::connect()?, "many", |cri, pod| {
            let machine = newest_machine()?;
            let names: Vec<String> = (0..MANY).map(|number| format!("container-{number}")).collect();
            let mut containers = Vec::new();
            for name in &names {
                containers.push(cri.run_container(pod, &sleeping(name, image))?);
            }
            let last = containers.last().context("a container")?;
            let seen = cri.succeed(last, &["sh", "-c", SHOW])?;
            ensure!(seen == image.view(), "expected {:?}, found {seen:?}", image.view());
            ensure!(open_layers(machine)?.len() == image.diff_ids().len());
            for container in &containers {
                cri.stop_container(container)?;
                cri.remove_container(container)?;
            }
            ensure!(open_layers(machine)?.is_empty(), "still attached: {:?}", open_layers(machine));
            Ok(())
        })
    })
}
