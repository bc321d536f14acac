//! A host that tells the agent something else of a layer than what belongs to its root hash.
//!
//! No shim does so: the machine is this program's own, and the agent's only other protection, the owner's policy,
//! names root hashes and nothing else. So the root hash has to decide alone what a container sees.

use std::fs;

use agent_protocol::paths;
use agent_protocol::rpc::agent::Storage;
use agent_protocol::storage::{LayerStorage, OverlayStorage, VerityInfo};
use anyhow::{Context as _, Result, ensure};

use super::tampering::{OTHER, TARGET, TwoLayers, content, with_image};
use crate::case::{Bed, Case};
use crate::own_machine::OwnMachine;
use crate::snapshots::StoredLayer;

pub const CASES: &[Case] = &[
    Case { name: "tampering::agent_is_told_lies", run: lies },
    Case { name: "tampering::agent_is_told_another_length", run: lengths },
];

const BLOCK: u64 = 4096;
/// Where each layer is on the disk: far enough apart that there are gaps.
const PLACES: u64 = 1 << 30;

/// The layers of an image, attached to a machine, bottom first.
struct Attached {
    machine: OwnMachine,
    layers: Vec<LayerStorage>,
}

impl Attached {
    fn new(bed: &Bed, image: &TwoLayers) -> Result<Self> {
        let machine = OwnMachine::start(bed)?;
        let mut layers = Vec::new();
        for (stored, number) in image.stored.iter().zip(0..) {
            machine.attach(number * PLACES, &stored.path)?;
            layers.push(described(stored, number * PLACES));
        }
        Ok(Self { machine, layers })
    }

    /// What a shim would send for container `id`.
    fn storages(&self, id: &str) -> Result<Vec<Storage>> {
        let mut storages = Vec::new();
        for layer in &self.layers {
            storages.push(layer.to_message()?);
        }
        let lower = self.layers.iter().rev().map(LayerStorage::mount_point).collect();
        storages.push(OverlayStorage { lower, mount_point: paths::rootfs(id) }.to_message());
        Ok(storages)
    }

    /// A container of `storages` that prints the file `path`.
    fn print(&self, id: &str, storages: Vec<Storage>, path: &str) -> Result<(i32, Vec<u8>)> {
        self.machine.create(id, storages, &["cat", path])?;
        self.machine.finish(id)
    }

    /// The truth is served, whatever was tried before.
    fn expect_served(&self, id: &str) -> Result<()> {
        let (status, output) = self.print(id, self.storages(id)?, "/one/target")?;
        ensure!(status == 0 && output == content(1, TARGET), "{id}: {status}, {} bytes", output.len());
        Ok(())
    }

    /// `storages` are refused, in words that contain `name`.
    fn expect_refused(&self, what: &str, id: &str, storages: Vec<Storage>, name: &str) -> Result<()> {
        let Err(refusal) = self.machine.create(id, storages, &["cat", "/one/target"]) else {
            anyhow::bail!("{what}: expected a refusal, found a container");
        };
        let said = format!("{refusal:#}");
        println!("      {what}: {said}");
        ensure!(said.contains(name), "{what}: expected {name} in {said:?}");
        Ok(())
    }
}

fn described(stored: &StoredLayer, offset: u64) -> LayerStorage {
    LayerStorage {
        device: "/dev/vdb".to_owned(),
        offset,
        length: stored.length,
        verity: VerityInfo::sha256(&stored.root_hash, stored.data_blocks),
    }
}

/// The message of a layer, as no shim could make it: the JSON of its hash tree's parameters is changed by `change`.
fn reworded(layer: &LayerStorage, from: &str, to: &str) -> Result<Storage> {
    let mut message = layer.to_message()?;
    let verity = &mut message.driver_options[0];
    ensure!(verity.contains(from), "expected {from:?} in {verity:?}");
    *verity = verity.replacen(from, to, 1);
    Ok(message)
}

/// Each lie is refused by words that name the layer, and leaves nothing that would hinder the truth.
fn lies(bed: &Bed) -> Result<()> {
    with_image("lies", |image| {
        let attached = Attached::new(bed, image)?;
        attached.expect_served("before")?;
        let one = &attached.layers[1];
        let hash = one.verity.hash.clone();
        let blocks = one.verity.blocknum;
        let text = |key: &str, value: u64| format!("\"{key}\":{value}");
        let lie = |verity: VerityInfo| LayerStorage { verity, ..one.clone() }.to_message();
        let other = VerityInfo { hash: format!("{:064x}", 7), ..one.verity.clone() };
        // Another tree over the same data: other levels, or the tree elsewhere.
        let shallow = VerityInfo { blocknum: 100, ..one.verity.clone() };
        let early = VerityInfo { offset: blocks * BLOCK, ..one.verity.clone() };
        let late = VerityInfo { offset: one.verity.offset + BLOCK, ..one.verity.clone() };
        let elsewhere = |offset| LayerStorage { offset, ..one.clone() }.to_message();
        let salt = "\"salt\":\"00\",\"hashtype\"";
        let changes: [(&str, Storage, &str); 14] = [
            ("another root hash", lie(other.clone())?, &other.hash),
            ("fewer levels of the tree", lie(shallow)?, &hash),
            ("the tree a block too early", lie(early)?, &hash),
            ("the tree a block too late", lie(late)?, &hash),
            ("another layer's place", elsewhere(2 * PLACES)?, &hash),
            ("a place a block further", elsewhere(PLACES - BLOCK)?, &hash),
            ("a place where nothing is", elsewhere(PLACES / 2)?, &hash),
            ("a place behind the disk", elsewhere(3 * PLACES)?, &hash),
            ("a salt", reworded(one, "\"hashtype\"", salt)?, &hash),
            ("another hash", reworded(one, "sha256", "sha512")?, &hash),
            ("smaller data blocks", reworded(one, &text("blocksize", 4096), &text("blocksize", 512))?, &hash),
            ("smaller hash blocks", reworded(one, &text("hashsize", 4096), &text("hashsize", 1024))?, &hash),
            ("no data", reworded(one, &text("blocknum", blocks), &text("blocknum", 0))?, &hash),
            (
                "data up to the end",
                reworded(one, &text("blocknum", blocks), &text("blocknum", 1 << 40))?,
                &hash,
            ),
        ];
        let mut found = Vec::new();
        for ((what, changed, name), number) in changes.into_iter().zip(0..) {
            let id = format!("lie-{number}");
            let mut storages = attached.storages(&id)?;
            let overlay = storages.len() - 1;
            if changed.mount_point != storages[1].mount_point {
                let option = &mut storages[overlay].options[0];
                *option = option.replace(&hash, name);
            }
            storages[1] = changed;
            found.extend(
                attached.expect_refused(what, &id, storages, name).err().map(|error| error.to_string()),
            );
        }
        ensure!(found.is_empty(), "{}", found.join("; "));
        reordered(&attached)?;
        attached.expect_served("after")
    })
}

/// The layers in another order than the overlay says, and an overlay of another order than the layers.
fn reordered(attached: &Attached) -> Result<()> {
    let mut storages = attached.storages("order-1")?;
    storages.swap(1, 2);
    attached.expect_refused("layers in another order", "order-1", storages, "top first")?;
    let mut storages = attached.storages("order-2")?;
    let lower: Vec<String> = attached.layers.iter().map(LayerStorage::mount_point).collect();
    let overlay = storages.last_mut().context("an overlay")?;
    *overlay = OverlayStorage { lower, mount_point: paths::rootfs("order-2") }.to_message();
    attached.expect_refused("an overlay from the bottom", "order-2", storages, "top first")
}

/// A number of data blocks that leaves the tree its shape is not in the root hash. One more adds a block that no
/// hash fits and nobody reads; fewer take blocks away, and whoever needs one gets an error. Nothing that is served
/// is anything but the layer's.
fn lengths(bed: &Bed) -> Result<()> {
    with_image("lengths", |image| {
        let attached = Attached::new(bed, image)?;
        for (blocks, id) in [(1, "longer"), (-1, "shorter"), (-20, "short")] {
            let one = &attached.layers[1];
            let blocknum = one.verity.blocknum.checked_add_signed(blocks).context("data blocks")?;
            let verity = VerityInfo { blocknum, ..one.verity.clone() };
            let mut storages = attached.storages(id)?;
            storages[1] = LayerStorage { verity, ..one.clone() }.to_message()?;
            for (path, length) in [("/one/target", TARGET), ("/one/other", OTHER)] {
                let id = format!("{id}-{}", path.len());
                let mut storages = storages.clone();
                let overlay = storages.last_mut().context("an overlay")?;
                overlay.mount_point = paths::rootfs(&id);
                let whole = if path == "/one/target" { content(1, length) } else { content(101, length) };
                match attached.print(&id, storages, path) {
                    Ok((0, output)) => ensure!(output == whole, "{id}: other bytes were served"),
                    Ok((_, output)) => ensure!(whole.starts_with(&output), "{id}: other bytes were served"),
                    Err(refusal) => {
                        let said = format!("{refusal:#}");
                        println!("      {id}: {said}");
                        ensure!(blocks < 0 && said.contains(&one.verity.hash), "{id}: {said}");
                    }
                }
            }
        }
        ensure!(fs::exists(&image.stored[1].path)?, "the layer file is gone");
        attached.expect_served("after")
    })
}
