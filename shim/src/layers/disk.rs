//! The disk on which a pod's layers appear: each once, however many containers stand on it.
//!
//! [`Book`] is pure: it knows which layer is where and who uses it. [`LayersDisk`] keeps one for a machine and has
//! the machine attach and detach what the book says. A layer is attached when its first container needs it and
//! detached when its last container has gone and the agent has let go of it: one request to the machine each, so
//! that every layer can go alone. A position whose state is in doubt, because the machine did not answer, is never
//! used again.

use std::collections::BTreeMap;
use std::sync::Arc;

use launch::control::Segment;
use launch::layout::SLOT_LAYERS;
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tracing::{debug, warn};

use super::positions::Positions;
use super::{Description, LayerFile, LayersError};
use crate::sandbox::vm::{Vm, VmError};
use crate::status::TaskError;

/// A layer on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// Its first byte on the disk.
    pub at: u64,
    /// What it is.
    pub description: Description,
}

/// A layer that is on the disk, or about to be, and how many containers use it.
#[derive(Debug)]
struct Entry {
    placed: Placed,
    users: usize,
}

/// Which layer is where, and which containers use it.
#[derive(Debug, Default)]
struct Book {
    positions: Positions,
    /// By root hash.
    layers: BTreeMap<String, Entry>,
    /// Root hashes of each container's layers.
    containers: BTreeMap<String, Vec<String>>,
}

/// What a container's layers need.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    /// All of them, in the order in which they were asked for.
    placed: Vec<Placed>,
    /// Indices of those that have to be attached first.
    missing: Vec<usize>,
}

impl Book {
    /// Notes that `container` uses `layers` and finds positions for those that are not there.
    ///
    /// # Errors
    /// When the disk is full, or the container has layers already; nothing is noted then.
    fn take<'a>(
        &mut self,
        container: &str,
        layers: impl Iterator<Item = &'a Description>,
    ) -> Result<Plan, LayersError> {
        if self.containers.contains_key(container) {
            return Err(LayersError::InUse(container.into()));
        }
        let mut plan = Plan { placed: Vec::new(), missing: Vec::new() };
        let mut used = Vec::new();
        for (index, description) in layers.enumerate() {
            let entry = match self.layers.get_mut(&description.root_hash) {
                Some(entry) => entry,
                None => {
                    let Some(at) = self.positions.take(description.length) else {
                        self.containers.insert(container.into(), used);
                        for placed in self.release(container) {
                            self.free(&placed);
                        }
                        return Err(LayersError::Full { length: description.length });
                    };
                    plan.missing.push(index);
                    let placed = Placed { at, description: description.clone() };
                    self.layers.entry(description.root_hash.clone()).or_insert(Entry { placed, users: 0 })
                }
            };
            entry.users += 1;
            plan.placed.push(entry.placed.clone());
            used.push(description.root_hash.clone());
        }
        self.containers.insert(container.into(), used);
        Ok(plan)
    }

    /// Notes that `container` uses its layers no more, and gives those that nobody uses now. Their positions stay
    /// taken until [`Book::free`].
    fn release(&mut self, container: &str) -> Vec<Placed> {
        let mut unused = Vec::new();
        for root_hash in self.containers.remove(container).unwrap_or_default() {
            if let Some(entry) = self.layers.get_mut(&root_hash) {
                entry.users -= 1;
                if entry.users == 0 {
                    unused.extend(self.layers.remove(&root_hash).map(|entry| entry.placed));
                }
            }
        }
        unused
    }

    /// Notes that nothing is attached at a released layer's position.
    fn free(&mut self, placed: &Placed) {
        self.positions.free(placed.at);
    }
}

/// The layers disk of one machine.
pub struct LayersDisk {
    vm: Arc<dyn Vm>,
    /// Held while the machine is asked: a layer must not be detached while another container relies on it.
    book: Mutex<Book>,
}

impl LayersDisk {
    /// The empty disk of `vm`.
    #[must_use]
    pub fn new(vm: Arc<dyn Vm>) -> Self {
        Self { vm, book: Mutex::default() }
    }

    /// Shows `layers` to the machine on behalf of `container`, and says where on the disk each of them is.
    ///
    /// # Errors
    /// When the disk is full, a file is not what its description says, or the machine refuses. Nothing stays
    /// attached then that was not before.
    pub async fn attach(&self, container: &str, layers: &[LayerFile]) -> Result<Vec<Placed>, TaskError> {
        let mut book = self.book.lock().await;
        let plan = book.take(container, layers.iter().map(|layer| &layer.description))?;
        let mut attached = Vec::with_capacity(plan.missing.len());
        for index in plan.missing {
            let at = plan.placed[index].at;
            match self.attach_one(&layers[index], at).await {
                Ok(()) => attached.push(at),
                Err(error) => {
                    let in_doubt = matches!(&error, TaskError::Vm(error) if !error.is_refusal());
                    for placed in book.release(container) {
                        if attached.contains(&placed.at) {
                            self.detach_one(&mut book, &placed).await;
                        } else if placed.at != at || !in_doubt {
                            book.free(&placed);
                        }
                    }
                    return Err(error);
                }
            }
        }
        Ok(plan.placed)
    }

    /// Takes away what only `container` used. To be called when the agent has let go of it.
    pub async fn release(&self, container: &str) {
        let mut book = self.book.lock().await;
        for placed in book.release(container) {
            self.detach_one(&mut book, &placed).await;
        }
    }

    async fn attach_one(&self, layer: &LayerFile, at: u64) -> Result<(), TaskError> {
        let opened = layer.clone();
        let file = spawn_blocking(move || opened.open()).await.map_err(|_| VmError::Broken)??;
        let segment = Segment { offset: 0, length: layer.description.length };
        self.vm.attach(SLOT_LAYERS, at, vec![(file, segment)]).await?;
        debug!(root_hash = layer.description.root_hash, at, path = %layer.path.display(), "layer attached");
        Ok(())
    }

    async fn detach_one(&self, book: &mut Book, placed: &Placed) {
        match self.vm.detach(SLOT_LAYERS, placed.at).await {
            Ok(()) => book.free(placed),
            Err(error) => {
                let (root_hash, at) = (&placed.description.root_hash, placed.at);
                warn!(root_hash, at, %error, "the machine does not detach a layer: its position is lost");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use agent_protocol::storage::BLOCK_SIZE;
    use proptest::prelude::*;

    use super::super::positions::DISK_BYTES;
    use super::*;

    fn layer(number: u8, blocks: u64) -> Description {
        Description { root_hash: format!("{number:064x}"), data_blocks: 1, length: blocks * BLOCK_SIZE }
    }

    fn positions(placed: &[Placed]) -> Vec<u64> {
        placed.iter().map(|placed| placed.at / BLOCK_SIZE).collect()
    }

    #[test]
    fn a_layer_is_attached_once_and_goes_with_its_last_container() {
        let mut book = Book::default();
        let (base, one, two) = (layer(0, 4), layer(1, 2), layer(2, 3));
        let first = book.take("a", [&base, &one].into_iter()).unwrap();
        assert_eq!((positions(&first.placed), first.missing), (vec![0, 4], vec![0, 1]));
        let second = book.take("b", [&base, &two].into_iter()).unwrap();
        assert_eq!((positions(&second.placed), second.missing), (vec![0, 6], vec![1]));
        let gone = book.release("a");
        assert_eq!(positions(&gone), [4]);
        book.free(&gone[0]);
        assert_eq!(book.release("a"), []);
        assert_eq!(positions(&book.release("b")), [0, 6]);
    }

    #[test]
    fn what_was_not_freed_is_not_used_again() {
        let mut book = Book::default();
        book.take("a", [&layer(0, 2)].into_iter()).unwrap();
        assert_eq!(book.release("a").len(), 1);
        let again = book.take("a", [&layer(0, 2)].into_iter()).unwrap();
        assert_eq!((positions(&again.placed), again.missing), (vec![2], vec![0]));
    }

    #[test]
    fn a_refusal_notes_nothing() {
        let mut book = Book::default();
        let (small, large) = (layer(0, 1), layer(1, DISK_BYTES / BLOCK_SIZE));
        assert!(matches!(book.take("a", [&small, &large].into_iter()), Err(LayersError::Full { .. })));
        assert!(book.layers.is_empty() && book.containers.is_empty());
        assert_eq!(positions(&book.take("a", [&small].into_iter()).unwrap().placed), [0]);
        assert!(matches!(book.take("a", [&small].into_iter()), Err(LayersError::InUse(_))));
    }

    proptest! {
        /// The machine's view, kept beside the book: what is attached never overlaps, and every container's layers
        /// are there as long as it is.
        #[test]
        fn containers_always_have_their_layers(
            steps in prop::collection::vec((0_u8..12, prop::collection::btree_set(0_u8..30, 1..8)), 1..120)
        ) {
            let mut book = Book::default();
            let mut disk: BTreeMap<u64, Description> = BTreeMap::new();
            let mut containers: BTreeMap<String, Vec<Placed>> = BTreeMap::new();
            for (container, wanted) in steps {
                let container = container.to_string();
                if containers.remove(&container).is_some() {
                    for placed in book.release(&container) {
                        prop_assert_eq!(disk.remove(&placed.at), Some(placed.description.clone()));
                        book.free(&placed);
                    }
                } else {
                    let layers: Vec<_> = wanted.iter().map(|n| layer(*n, 1 + u64::from(*n % 5))).collect();
                    let plan = book.take(&container, layers.iter()).unwrap();
                    for index in plan.missing {
                        let placed = &plan.placed[index];
                        prop_assert_eq!(disk.insert(placed.at, placed.description.clone()), None);
                    }
                    containers.insert(container, plan.placed);
                }
                for placed in containers.values().flatten() {
                    prop_assert_eq!(disk.get(&placed.at), Some(&placed.description));
                }
                let mut end = 0;
                for (at, description) in &disk {
                    prop_assert!(*at >= end);
                    end = at + description.length;
                }
                if containers.is_empty() {
                    prop_assert!(disk.is_empty());
                }
            }
        }
    }
}
