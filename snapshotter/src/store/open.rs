//! Opening a store: whatever a crash left behind is made whole or removed here.

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustix::fs::{FlockOperation, flock};

use super::layer::{self, Description};
use super::state::State;
use super::{Entry, Kind, Record, Store, durable, number, record};
use crate::error::Error;
use crate::host_mount;

/// Longest record that is read, in bytes: containerd limits a label to 4096, not their number.
const MAX_RECORD_BYTES: u64 = 1 << 20;

impl Store {
    /// Opens the store below `root`, which is made unless it is there. Deletes what no record names.
    ///
    /// # Errors
    /// When another program uses the store, the file system refuses, or a record names what is not there.
    pub fn open(root: &Path) -> Result<Arc<Self>, Error> {
        durable::make_directories(root)?;
        // Images have set-user-ID programs, which are nothing for the host's users.
        let private = Permissions::from_mode(0o700);
        fs::set_permissions(root, private).map_err(Error::file("set the mode of", root))?;
        let root = fs::canonicalize(root).map_err(Error::file("find", root))?;
        let lock = lock(&root.join("lock"))?;
        for directory in ["records", "snapshots", "layers", "staging"] {
            durable::make_directories(&root.join(directory))?;
        }
        for leftover in entries(&root.join("staging"))? {
            remove(&leftover)?;
        }
        let mut state = State::default();
        let entries = read_records(&root.join("records"))?;
        let needed: HashSet<u64> = entries.iter().filter_map(|entry| entry.record.layer).collect();
        let mounted = read_layers(&root.join("layers"), &needed, &mut state)?;
        take_records(&root, entries, &mut state)?;
        remove_orphans(&root.join("snapshots"), &mut state)?;
        durable::sync_directory(&root.join("layers"))?;
        let (mounted, emptying) = (Mutex::new(mounted), Mutex::new(()));
        Ok(Arc::new(Self { root, state: Mutex::new(state), mounted, emptying, _lock: lock }))
    }
}

fn lock(path: &Path) -> Result<File, Error> {
    let file = File::create(path).map_err(Error::file("make", path))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|errno| {
        let in_use = io::Error::other("another program uses this store");
        let source = if errno == rustix::io::Errno::WOULDBLOCK { in_use } else { errno.into() };
        Error::file("lock", path)(source)
    })?;
    Ok(file)
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect())
        .map_err(Error::file("list", directory))
}

fn remove(path: &Path) -> Result<(), Error> {
    let metadata = fs::symlink_metadata(path).map_err(Error::file("read", path))?;
    let removed = if metadata.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.map_err(Error::file("remove", path))
}

fn read_records(directory: &Path) -> Result<Vec<Entry>, Error> {
    let mut records = Vec::new();
    for path in entries(directory)? {
        // A record that was being written when the program died: its old form, if any, is beside it.
        let Some(id) = number(&path).filter(|_| path.extension().is_some_and(|e| e == "json")) else {
            remove(&path)?;
            continue;
        };
        let size = fs::metadata(&path).map_err(Error::file("read", &path))?.len();
        if size > MAX_RECORD_BYTES {
            let what = format!("expected a record of at most {MAX_RECORD_BYTES} bytes, found {size}");
            return Err(Error::Inconsistent { path, what });
        }
        let bytes = fs::read(&path).map_err(Error::file("read", &path))?;
        let record: Record = serde_json::from_slice(&bytes)
            .map_err(|error| Error::Inconsistent { path: path.clone(), what: error.to_string() })?;
        if record.version != record::VERSION {
            let what = format!("expected version {}, found {}", record::VERSION, record.version);
            return Err(Error::Inconsistent { path, what });
        }
        records.push(Entry { id, record });
    }
    Ok(records)
}

/// Reads the layers that records name and removes the others; returns which are mounted.
fn read_layers(directory: &Path, needed: &HashSet<u64>, state: &mut State) -> Result<BTreeSet<u64>, Error> {
    let mount_points =
        host_mount::below(directory).map_err(Error::file("look for mounts below", directory))?;
    let mut mounted = BTreeSet::new();
    for path in entries(directory)? {
        let id = number(&path);
        let mount_point = path.join(layer::MOUNT_POINT);
        let is_mounted = mount_points.contains(&mount_point);
        let Some(id) = id.filter(|id| needed.contains(id)) else {
            if is_mounted {
                host_mount::unmount(&mount_point).map_err(Error::file("unmount", &mount_point))?;
            }
            remove(&path)?;
            continue;
        };
        state.next_layer = state.next_layer.max(id);
        state.insert_layer(id, Description::read(&path)?, None);
        if is_mounted {
            mounted.insert(id);
        }
    }
    Ok(mounted)
}

fn take_records(root: &Path, entries: Vec<Entry>, state: &mut State) -> Result<(), Error> {
    for entry in entries {
        state.next_snapshot = state.next_snapshot.max(entry.id);
        let path = || root.join("records").join(super::record_name(entry.id));
        if let Some(layer) = entry.record.layer.filter(|layer| !state.layers.contains_key(layer)) {
            let what = format!("names layer {layer}, which is not in the store");
            return Err(Error::Inconsistent { path: path(), what });
        }
        if entry.record.kind == Kind::Committed && entry.record.layer.is_none() {
            return Err(Error::Inconsistent {
                path: path(),
                what: "a committed snapshot without a layer".into(),
            });
        }
        if let Some(other) = state.snapshots.get(&entry.record.name) {
            let what = format!("names snapshot {:?}, as record {} does", entry.record.name, other.id);
            return Err(Error::Inconsistent { path: path(), what });
        }
        state.insert(entry);
    }
    for entry in state.snapshots.values() {
        let Some(parent) = &entry.record.parent else { continue };
        if !state.snapshots.get(parent).is_some_and(|parent| parent.record.kind == Kind::Committed) {
            let path = root.join("records").join(super::record_name(entry.id));
            let what = format!("names parent {parent:?}, which is not a committed snapshot of the store");
            return Err(Error::Inconsistent { path, what });
        }
    }
    Ok(())
}

/// Removes the directories of snapshots that are not active, or not at all.
fn remove_orphans(directory: &Path, state: &mut State) -> Result<(), Error> {
    let writable = |entry: &&Entry| entry.record.kind != Kind::Committed;
    let needed: HashSet<u64> = state.snapshots.values().filter(writable).map(|entry| entry.id).collect();
    for path in entries(directory)? {
        if !number(&path).is_some_and(|id| needed.contains(&id)) {
            remove(&path)?;
        }
    }
    Ok(())
}
