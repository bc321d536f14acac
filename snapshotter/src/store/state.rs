//! What is on disk, in memory: names to snapshots, numbers to layers, and who needs which layer.

use std::collections::HashMap;

use super::{Description, Entry, Kind, Record};
use crate::digest::Digest;
use crate::error::Error;

/// All of it, behind one lock.
#[derive(Default)]
pub struct State {
    /// By name.
    pub snapshots: HashMap<String, Entry>,
    /// By number.
    pub layers: HashMap<u64, LayerEntry>,
    /// The layer of each diff id.
    pub by_diff_id: HashMap<Digest, u64>,
    /// The number given last.
    pub next_snapshot: u64,
    /// The number given last.
    pub next_layer: u64,
    /// The number of the last entry of `staging/`.
    pub next_staged: u64,
}

/// A layer and who needs it.
pub struct LayerEntry {
    /// What it is.
    pub description: Description,
    /// Bytes of the tar that it was made of, if known.
    pub uncompressed_bytes: Option<u64>,
    /// Records that name it.
    pub references: usize,
    /// Whether a record ever did, since this service began.
    pub was_used: bool,
    /// [`super::LayerPin`]s on it.
    pub pins: usize,
}

impl State {
    /// The snapshot of that name.
    pub fn entry(&self, name: &str) -> Result<&Entry, Error> {
        self.snapshots.get(name).ok_or_else(|| Error::NotFound(name.into()))
    }

    /// The snapshot of that name, which has to be active.
    pub fn active(&self, name: &str) -> Result<&Entry, Error> {
        let entry = self.entry(name)?;
        if entry.record.kind == Kind::Active { Ok(entry) } else { Err(wrong_kind(&entry.record, "active")) }
    }

    /// Whether a snapshot can be made: its name is free, its parent committed.
    pub fn check_new(&self, record: &Record) -> Result<(), Error> {
        if record.name.is_empty() {
            return Err(Error::Invalid("a snapshot needs a name".into()));
        }
        if self.snapshots.contains_key(&record.name) {
            return Err(Error::AlreadyExists(record.name.clone()));
        }
        let Some(parent) = &record.parent else { return Ok(()) };
        let parent = &self.entry(parent)?.record;
        if parent.kind == Kind::Committed { Ok(()) } else { Err(wrong_kind(parent, "committed")) }
    }

    /// Takes a snapshot in; its layer is needed from now on.
    pub fn insert(&mut self, entry: Entry) {
        if let Some(layer) = entry.record.layer.and_then(|layer| self.layers.get_mut(&layer)) {
            layer.references += 1;
            layer.was_used = true;
        }
        self.snapshots.insert(entry.record.name.clone(), entry);
    }

    /// Takes a snapshot out; gives its layer back.
    pub fn forget(&mut self, name: &str) -> Option<u64> {
        let layer = self.snapshots.remove(name)?.record.layer?;
        if let Some(entry) = self.layers.get_mut(&layer) {
            entry.references = entry.references.saturating_sub(1);
        }
        Some(layer)
    }

    /// Replaces what is known of a snapshot.
    pub fn replace(&mut self, name: &str, record: Record) {
        if let Some(id) = self.snapshots.get(name).map(|entry| entry.id) {
            self.forget(name);
            self.insert(Entry { id, record });
        }
    }

    /// Takes a layer in, which nobody needs yet.
    pub fn insert_layer(&mut self, id: u64, description: Description, uncompressed_bytes: Option<u64>) {
        if let Some(diff_id) = description.diff_id {
            self.by_diff_id.insert(diff_id, id);
        }
        self.layers.insert(
            id,
            LayerEntry { description, uncompressed_bytes, references: 0, was_used: false, pins: 0 },
        );
    }

    /// A number for a new snapshot.
    pub fn number_snapshot(&mut self) -> u64 {
        self.next_snapshot += 1;
        self.next_snapshot
    }

    /// A number for a new layer.
    pub fn number_layer(&mut self) -> u64 {
        self.next_layer += 1;
        self.next_layer
    }
}

/// The error that a snapshot is of another kind.
pub fn wrong_kind(record: &Record, expected: &'static str) -> Error {
    Error::Kind { name: record.name.clone(), expected, found: record.kind.name() }
}
