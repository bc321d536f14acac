//! The store on disk: snapshots and the layers that they are made of.
//!
//! | below the root | what |
//! |---|---|
//! | `records/<n>.json` | one [`Record`] for each snapshot |
//! | `snapshots/<n>/{fs,work}` | upper and work directory of an active snapshot |
//! | `layers/<n>/{layer,layer.json,fs}` | layer file, its description, where the host mounts it |
//! | `staging/` | layers that are being made, and what waits to be deleted |
//! | `lock` | held by the one program that uses the store |
//!
//! Invariants, at every instant at which the program may be killed or the disk may fill up:
//! - A record appears, changes and vanishes by one rename or unlink. It is the truth; whatever no record names is
//!   garbage, and is deleted when the store is opened.
//! - A layer appears under `layers/` by the rename of a finished directory, before a record names it, and leaves
//!   by rename after the last record that names it has gone.
//! - What is in memory changes after the disk has.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::digest::Digest;
use crate::error::Error;

pub use layer::{Description, LayerPin, StagedLayer};
pub use record::{Extraction, Kind, Labels, Record};
use state::{State, wrong_kind};
pub use usage::Usage;

mod durable;
pub mod layer;
mod mounts;
mod open;
mod record;
mod state;
mod trash;
pub mod usage;

/// Label of a committed snapshot that tells its layer's root hash. containerd hands labels with this prefix on.
pub const ROOT_HASH_LABEL: &str = "containerd.io/snapshot/uvm.root-hash";

/// The store. All methods may block on the disk.
pub struct Store {
    root: PathBuf,
    state: Mutex<State>,
    /// Layers that are mounted on the host.
    mounted: Mutex<BTreeSet<u64>>,
    /// Held while the trash is emptied, so that who waits for it to be empty does.
    emptying: Mutex<()>,
    _lock: File,
}

/// A snapshot and its number.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The number, which names its files.
    pub id: u64,
    /// What is known of it.
    pub record: Record,
}

/// What a new snapshot is to be.
#[derive(Debug, Clone, Default)]
pub struct NewSnapshot {
    /// Its key.
    pub name: String,
    /// Name of its parent, which has to be committed.
    pub parent: Option<String>,
    /// Labels.
    pub labels: Labels,
    /// What it is to be filled with.
    pub extraction: Option<Extraction>,
}

impl NewSnapshot {
    fn record(self, kind: Kind, layer: Option<&LayerPin>) -> Record {
        let now = SystemTime::now();
        Record {
            version: record::VERSION,
            name: self.name,
            parent: self.parent,
            kind,
            layer: layer.map(|layer| layer.id),
            extraction: self.extraction,
            labels: own_label(self.labels, layer.map(|layer| layer.description.root_hash())),
            created: now,
            updated: now,
        }
    }
}

/// Sets the label that only the store may set: images bring labels of this form along.
fn own_label(mut labels: Labels, root_hash: Option<&str>) -> Labels {
    labels.remove(ROOT_HASH_LABEL);
    labels.extend(root_hash.map(|root_hash| (ROOT_HASH_LABEL.into(), root_hash.into())));
    labels
}

impl Store {
    /// Everything there is, oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<Entry> {
        let mut entries: Vec<Entry> = self.state().snapshots.values().cloned().collect();
        entries.sort_unstable_by_key(|entry| entry.id);
        entries
    }

    /// The snapshot `name`.
    ///
    /// # Errors
    /// When there is none.
    pub fn stat(&self, name: &str) -> Result<Entry, Error> {
        self.state().entry(name).cloned()
    }

    /// Whether a snapshot with this label is committed on `parent`.
    #[must_use]
    pub fn committed_chain(&self, parent: Option<&str>, label: &str, value: &str) -> bool {
        let is_it = |record: &Record| {
            record.kind == Kind::Committed
                && record.parent.as_deref() == parent
                && record.labels.get(label).is_some_and(|found| found == value)
        };
        self.state().snapshots.values().any(|entry| is_it(&entry.record))
    }

    /// Makes an active snapshot or a view.
    ///
    /// # Errors
    /// When its name is taken, its parent is not committed, or the file system refuses; nothing is left then.
    pub fn create(&self, kind: Kind, new: NewSnapshot) -> Result<Entry, Error> {
        let mut state = self.state();
        let record = new.record(kind, None);
        state.check_new(&record)?;
        let id = state.number_snapshot();
        let directory = self.snapshot_directory(id);
        let upper = directory.join("fs");
        let made = durable::make_directories(&upper)
            .and_then(|()| durable::make_directories(&directory.join("work")))
            .and_then(|()| open_to_all(&upper))
            .and_then(|()| self.write_record(id, &record));
        if let Err(error) = made {
            // What is left over is removed at the next start.
            let _ = fs::remove_dir_all(&directory);
            return Err(error);
        }
        let entry = Entry { id, record };
        state.insert(entry.clone());
        Ok(entry)
    }

    /// Makes a committed snapshot of a stored layer, without an active one before it.
    ///
    /// # Errors
    /// As [`Store::create`].
    pub fn create_committed(&self, new: NewSnapshot, layer: &LayerPin) -> Result<(), Error> {
        let mut state = self.state();
        let record = new.record(Kind::Committed, Some(layer));
        state.check_new(&record)?;
        let id = state.number_snapshot();
        self.write_record(id, &record)?;
        state.insert(Entry { id, record });
        Ok(())
    }

    /// Decides what committing an active snapshot will make of it. That is remembered, not written down: if the
    /// program ends before the snapshot is committed, the layer is made once more.
    ///
    /// # Errors
    /// When there is no such active snapshot.
    pub fn assign_layer(&self, name: &str, layer: &LayerPin) -> Result<(), Error> {
        let mut state = self.state();
        let mut record = state.active(name)?.record.clone();
        record.layer = Some(layer.id);
        state.replace(name, record);
        Ok(())
    }

    /// Turns the active snapshot `key` into the committed snapshot `name` with `layer`. Its labels are replaced.
    ///
    /// # Errors
    /// When `key` is not an active snapshot, `name` is taken, or the file system refuses; nothing has changed
    /// then.
    pub fn commit(&self, key: &str, name: &str, labels: Labels, layer: &LayerPin) -> Result<(), Error> {
        let mut state = self.state();
        let entry = state.active(key)?;
        let (id, mut record) = (entry.id, entry.record.clone());
        if name != key && state.snapshots.contains_key(name) {
            return Err(Error::AlreadyExists(name.into()));
        }
        record.name = name.into();
        record.kind = Kind::Committed;
        record.layer = Some(layer.id);
        record.extraction = None;
        record.labels = own_label(labels, Some(layer.description.root_hash()));
        record.created = SystemTime::now();
        record.updated = record.created;
        self.write_record(id, &record)?;
        state.replace(key, record);
        self.discard(&self.snapshot_directory(id), &mut state);
        Ok(())
    }

    /// Changes a snapshot's labels by `change`.
    ///
    /// # Errors
    /// When there is no such snapshot, `change` refuses, or the file system does.
    pub fn update(
        &self,
        name: &str,
        change: impl FnOnce(&mut Labels) -> Result<(), Error>,
    ) -> Result<Record, Error> {
        let mut state = self.state();
        let entry = state.entry(name)?;
        let (id, mut record) = (entry.id, entry.record.clone());
        change(&mut record.labels)?;
        let layer = record.layer.filter(|_| record.kind == Kind::Committed);
        let layer = layer.and_then(|layer| state.layers.get(&layer));
        record.labels = own_label(record.labels, layer.map(|layer| layer.description.root_hash()));
        record.updated = SystemTime::now();
        self.write_record(id, &record)?;
        state.replace(name, record.clone());
        Ok(record)
    }

    /// Removes a snapshot; its files go to the trash, and so does its layer if nothing else needs it.
    ///
    /// # Errors
    /// When there is no such snapshot, another has it as its parent, or the file system refuses.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        let mut state = self.state();
        let id = state.entry(name)?.id;
        if state.snapshots.values().any(|entry| entry.record.parent.as_deref() == Some(name)) {
            return Err(Error::HasChildren(name.into()));
        }
        let path = self.records().join(record_name(id));
        fs::remove_file(&path).map_err(Error::file("remove", &path))?;
        durable::sync_directory(&self.records())?;
        let layer = state.forget(name);
        self.discard(&self.snapshot_directory(id), &mut state);
        if let Some(layer) = layer {
            self.discard_unused(layer, &mut state);
        }
        Ok(())
    }

    /// Numbers of the layers below a snapshot with this parent, topmost first. A layer that occurs twice is named
    /// at its topmost place only: nothing of it shows further down, and overlayfs refuses it twice.
    ///
    /// # Errors
    /// When a snapshot of the chain is not there or not committed.
    pub fn chain(&self, parent: Option<&str>) -> Result<Vec<u64>, Error> {
        let state = self.state();
        let mut layers = Vec::new();
        let mut seen = BTreeSet::new();
        let mut next = parent;
        while let Some(name) = next {
            let record = &state.entry(name)?.record;
            let layer = record.layer.filter(|_| record.kind == Kind::Committed);
            let layer = layer.ok_or_else(|| wrong_kind(record, "committed"))?;
            if seen.insert(layer) {
                layers.push(layer);
            }
            next = record.parent.as_deref();
        }
        Ok(layers)
    }

    /// Disk space of one snapshot, without its parents: the layer of a committed one, the written files of an
    /// active one.
    ///
    /// # Errors
    /// When there is no such snapshot or its files cannot be looked at.
    pub fn usage(&self, name: &str) -> Result<Usage, Error> {
        let entry = self.stat(name)?;
        match entry.record.layer.filter(|_| entry.record.kind == Kind::Committed) {
            Some(layer) => layer::usage(&self.layer_directory(layer)),
            None => usage::of_directory(&self.upper_directory(entry.id)),
        }
    }

    /// The stored layer with this diff id, if there is one.
    #[must_use]
    pub fn layer_of(self: &Arc<Self>, diff_id: &Digest) -> Option<LayerPin> {
        let mut state = self.state();
        let id = *state.by_diff_id.get(diff_id)?;
        self.pin(id, &mut state)
    }

    /// The layer with this number, if there is one.
    #[must_use]
    pub fn layer(self: &Arc<Self>, id: u64) -> Option<LayerPin> {
        let mut state = self.state();
        self.pin(id, &mut state)
    }

    /// Whether a snapshot has the layer, or had it.
    #[must_use]
    pub fn was_used(&self, layer: &LayerPin) -> bool {
        self.state().layers.get(&layer.id).is_some_and(|entry| entry.was_used)
    }

    /// Numbers of all layers, in order.
    #[must_use]
    pub fn layers(&self) -> Vec<u64> {
        let mut layers: Vec<u64> = self.state().layers.keys().copied().collect();
        layers.sort_unstable();
        layers
    }

    /// A place where a new layer can be made.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn stage(&self) -> Result<StagedLayer, Error> {
        StagedLayer::create(self.staged_path(&mut self.state()))
    }

    /// Takes a finished layer into the store. If a layer of the same diff id got there first, that one is kept.
    ///
    /// # Errors
    /// When the file is not as long as described or the file system refuses; nothing is left then.
    pub fn publish(
        self: &Arc<Self>,
        staged: StagedLayer,
        description: Description,
        uncompressed_bytes: Option<u64>,
    ) -> Result<LayerPin, Error> {
        staged.complete(&description)?;
        let mut state = self.state();
        let existing = description.diff_id.and_then(|diff_id| state.by_diff_id.get(&diff_id).copied());
        if let Some(pin) = existing.and_then(|id| self.pin(id, &mut state)) {
            return Ok(pin);
        }
        let id = state.number_layer();
        let directory = self.layer_directory(id);
        fs::rename(&staged.directory, &directory).map_err(Error::file("make", &directory))?;
        state.insert_layer(id, description.clone(), uncompressed_bytes);
        let pin = self.pin(id, &mut state);
        drop(state);
        durable::sync_directory(&self.root.join("layers"))?;
        pin.ok_or(Error::Interrupted("storing a layer"))
    }

    /// Bytes of the tar that a layer was made of, if this program made it since it was started.
    #[must_use]
    pub fn uncompressed_bytes(&self, layer: &LayerPin) -> Option<u64> {
        self.state().layers.get(&layer.id)?.uncompressed_bytes
    }

    /// A directory on the store's file system for temporary files.
    #[must_use]
    pub fn spool(&self) -> PathBuf {
        self.root.join("staging")
    }

    /// Where the writable files of active snapshot `id` are.
    #[must_use]
    pub fn upper_directory(&self, id: u64) -> PathBuf {
        self.snapshot_directory(id).join("fs")
    }

    /// Where overlayfs keeps what it works on for active snapshot `id`.
    #[must_use]
    pub fn work_directory(&self, id: u64) -> PathBuf {
        self.snapshot_directory(id).join("work")
    }

    /// Directory of layer `id`.
    #[must_use]
    pub fn layer_directory(&self, id: u64) -> PathBuf {
        self.root.join("layers").join(id.to_string())
    }

    fn snapshot_directory(&self, id: u64) -> PathBuf {
        self.root.join("snapshots").join(id.to_string())
    }

    fn records(&self) -> PathBuf {
        self.root.join("records")
    }

    fn write_record(&self, id: u64, record: &Record) -> Result<(), Error> {
        let path = self.records().join(record_name(id));
        let text = serde_json::to_vec(record)
            .map_err(|error| Error::file("write", &path)(std::io::Error::other(error)))?;
        durable::replace(&self.records(), &record_name(id), &text)
    }

    fn staged_path(&self, state: &mut State) -> PathBuf {
        state.next_staged += 1;
        self.root.join("staging").join(state.next_staged.to_string())
    }

    fn pin(self: &Arc<Self>, id: u64, state: &mut State) -> Option<LayerPin> {
        let entry = state.layers.get_mut(&id)?;
        entry.pins += 1;
        Some(LayerPin { store: Arc::clone(self), id, description: entry.description.clone() })
    }

    fn pin_again(&self, pin: &LayerPin) -> LayerPin {
        if let Some(entry) = self.state().layers.get_mut(&pin.id) {
            entry.pins += 1;
        }
        LayerPin { store: Arc::clone(&pin.store), id: pin.id, description: pin.description.clone() }
    }

    fn unpin(&self, id: u64) {
        let mut state = self.state();
        if let Some(entry) = state.layers.get_mut(&id) {
            entry.pins = entry.pins.saturating_sub(1);
        }
        self.discard_unused(id, &mut state);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Memory changes in one step after the disk has: a panic elsewhere cannot have left it half-changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An upper directory is a container's root directory: its users have to get in, whatever the umask is.
fn open_to_all(upper: &Path) -> Result<(), Error> {
    fs::set_permissions(upper, Permissions::from_mode(0o755)).map_err(Error::file("set the mode of", upper))
}

fn record_name(id: u64) -> String {
    format!("{id}.json")
}

/// The number that a directory or record is named by.
fn number(path: &Path) -> Option<u64> {
    path.file_stem()?.to_str()?.parse().ok()
}
