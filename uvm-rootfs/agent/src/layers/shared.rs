//! The layers of the pod: each one set up once, by its root hash, for all containers that have it.
//!
//! A layer is here from the moment at which its set-up begins until everything done for it is undone. It goes
//! when the last container lets go of it; if that fails, the container still counts as its user, so the failure
//! is not forgotten and another attempt finds what remains.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::future::Future;

use agent_protocol::storage::LayerStorage;

use crate::error::{AgentError, Result};

/// Sets layers up, and takes them down.
pub trait Mounter: Debug + Send + Sync {
    /// A record of what has been done for one layer.
    type Done: Debug + Default + Send;

    /// Sets `layer` up. What is done is in `done`, after a failure too.
    fn mount(&self, layer: &LayerStorage, done: &mut Self::Done) -> impl Future<Output = Result<()>> + Send;

    /// Undoes what is in `done`; what cannot be undone stays there.
    fn unmount(&self, done: &mut Self::Done) -> impl Future<Output = Result<()>> + Send;
}

/// All layers that are set up.
#[derive(Debug)]
pub struct SharedLayers<M: Mounter> {
    mounter: M,
    /// By root hash.
    layers: BTreeMap<String, Shared<M::Done>>,
}

#[derive(Debug)]
struct Shared<D> {
    layer: LayerStorage,
    /// Containers; never empty.
    users: BTreeSet<String>,
    /// False from the beginning of the set-up to its success.
    ready: bool,
    done: D,
}

impl<D> Shared<D> {
    fn users(&self) -> String {
        self.users.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
    }
}

impl<M: Mounter> SharedLayers<M> {
    /// No layers.
    pub fn new(mounter: M) -> Self {
        Self { mounter, layers: BTreeMap::new() }
    }

    /// Makes `container` a user of `layer`, which is set up if it is not yet.
    ///
    /// # Errors
    /// If the pod has the layer with other parameters, or the set-up fails. The container may be a user all the
    /// same: [`SharedLayers::release`] undoes whatever was done.
    pub async fn acquire(&mut self, container: &str, layer: &LayerStorage) -> Result<()> {
        let hash = &layer.verity.hash;
        if let Some(shared) = self.layers.get_mut(hash) {
            if shared.layer != *layer {
                return Err(AgentError::Invalid(format!(
                    "layer {hash} at {} of {}, {} bytes, {} blocks: container {} has it with other parameters",
                    layer.offset,
                    layer.device,
                    layer.length,
                    layer.verity.blocknum,
                    shared.users()
                )));
            }
            if !shared.ready {
                let users = shared.users();
                return Err(AgentError::State(format!("layer {hash}: its set-up for {users} has failed")));
            }
            shared.users.insert(container.to_owned());
            return Ok(());
        }
        let users = BTreeSet::from([container.to_owned()]);
        let shared = Shared { layer: layer.clone(), users, ready: false, done: M::Done::default() };
        let shared = self.layers.entry(hash.clone()).or_insert(shared);
        let mounted = self.mounter.mount(layer, &mut shared.done).await;
        mounted.map_err(|error| error.of_layer(hash))?;
        shared.ready = true;
        Ok(())
    }

    /// Ends `container`'s use of the layer; the last user's end takes it down. Not being a user is what was
    /// wanted.
    ///
    /// # Errors
    /// If the layer is in use by something else than containers. The container then remains its user.
    pub async fn release(&mut self, container: &str, hash: &str) -> Result<()> {
        let Some(shared) = self.layers.get_mut(hash).filter(|shared| shared.users.contains(container)) else {
            return Ok(());
        };
        if shared.users.len() > 1 {
            shared.users.remove(container);
            return Ok(());
        }
        self.mounter.unmount(&mut shared.done).await.map_err(|error| {
            AgentError::Runtime(format!("layer {hash}, last used by container {container}, is kept: {error}"))
        })?;
        self.layers.remove(hash);
        Ok(())
    }

    /// The containers that have the layer.
    pub fn users(&self, hash: &str) -> Vec<String> {
        let shared = self.layers.get(hash);
        shared.map(|shared| shared.users.iter().cloned().collect()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Mutex;

    use agent_protocol::storage::VerityInfo;

    use super::*;

    /// Counts what is set up; fails where it is told to.
    #[derive(Debug, Default)]
    struct Fake {
        up: Mutex<HashSet<String>>,
        mounts: Mutex<usize>,
        broken: Mutex<HashSet<String>>,
        busy: Mutex<HashSet<String>>,
    }

    impl Mounter for Fake {
        type Done = Option<String>;

        async fn mount(&self, layer: &LayerStorage, done: &mut Self::Done) -> Result<()> {
            let hash = layer.verity.hash.clone();
            *self.mounts.lock().unwrap() += 1;
            assert!(self.up.lock().unwrap().insert(hash.clone()), "{hash} is set up twice");
            *done = Some(hash.clone());
            if self.broken.lock().unwrap().contains(&hash) {
                return Err(AgentError::Corrupt(hash));
            }
            Ok(())
        }

        async fn unmount(&self, done: &mut Self::Done) -> Result<()> {
            let Some(hash) = done.clone() else { return Ok(()) };
            if self.busy.lock().unwrap().contains(&hash) {
                return Err(AgentError::Runtime("busy".to_owned()));
            }
            assert!(self.up.lock().unwrap().remove(&hash), "{hash} is taken down twice");
            *done = None;
            Ok(())
        }
    }

    fn layer(number: u64) -> LayerStorage {
        LayerStorage {
            device: "/dev/vdb".to_owned(),
            offset: number * 16384,
            length: 16384,
            verity: VerityInfo::sha256(&format!("{number:064x}"), 2),
        }
    }

    fn hash(number: u64) -> String {
        layer(number).verity.hash
    }

    #[tokio::test]
    async fn a_thousand_containers_share_what_they_have_in_common() {
        let mut layers = SharedLayers::new(Fake::default());
        // Three common layers, one for each ten containers, and one for each container.
        let stack = |container: u64| [0, 1, 2, 100 + container / 10, 10_000 + container];
        for container in 0..1000 {
            for number in stack(container) {
                layers.acquire(&container.to_string(), &layer(number)).await.unwrap();
            }
        }
        assert_eq!((*layers.mounter.mounts.lock().unwrap(), layers.layers.len()), (1103, 1103));
        assert_eq!(layers.users(&hash(0)).len(), 1000);
        // In an order of their own.
        for container in (0..1000).map(|at| (at * 377) % 1000) {
            for number in stack(container).into_iter().rev() {
                assert!(layers.mounter.up.lock().unwrap().contains(&hash(number)));
                layers.release(&container.to_string(), &hash(number)).await.unwrap();
            }
        }
        assert!(layers.mounter.up.lock().unwrap().is_empty() && layers.layers.is_empty());
    }

    #[tokio::test]
    async fn one_root_hash_has_one_set_of_parameters() {
        let mut layers = SharedLayers::new(Fake::default());
        layers.acquire("a", &layer(1)).await.unwrap();
        let changes: [fn(&mut LayerStorage); 5] = [
            |layer| layer.device = "/dev/vdc".to_owned(),
            |layer| layer.offset += 4096,
            |layer| layer.length += 4096,
            |layer| layer.verity.blocknum = 1,
            |layer| layer.verity.offset += 4096,
        ];
        for change in changes {
            let mut other = layer(1);
            change(&mut other);
            let error = layers.acquire("b", &other).await.unwrap_err();
            assert!(error.to_string().contains("container a has it with other parameters"), "{error}");
        }
        assert_eq!(layers.users(&hash(1)), ["a"]);
    }

    #[tokio::test]
    async fn what_fails_half_way_is_undone_by_its_user() {
        let mut layers = SharedLayers::new(Fake::default());
        layers.mounter.broken.lock().unwrap().insert(hash(1));
        assert!(matches!(layers.acquire("a", &layer(1)).await, Err(AgentError::Corrupt(_))));
        // Nobody else gets at the unfinished one meanwhile.
        assert!(matches!(layers.acquire("b", &layer(1)).await, Err(AgentError::State(_))));
        layers.release("b", &hash(1)).await.unwrap();
        assert_eq!(layers.users(&hash(1)), ["a"]);
        layers.release("a", &hash(1)).await.unwrap();
        layers.mounter.broken.lock().unwrap().clear();
        layers.acquire("b", &layer(1)).await.unwrap();
        assert_eq!(layers.users(&hash(1)), ["b"]);
    }

    #[tokio::test]
    async fn what_is_in_use_is_kept_and_still_recorded() {
        let mut layers = SharedLayers::new(Fake::default());
        layers.acquire("a", &layer(1)).await.unwrap();
        layers.acquire("b", &layer(1)).await.unwrap();
        layers.mounter.busy.lock().unwrap().insert(hash(1));
        layers.release("a", &hash(1)).await.unwrap();
        let error = layers.release("b", &hash(1)).await.unwrap_err().to_string();
        assert!(error.contains(&hash(1)) && error.contains("container b"), "{error}");
        assert_eq!(layers.users(&hash(1)), ["b"]);
        layers.mounter.busy.lock().unwrap().clear();
        layers.release("b", &hash(1)).await.unwrap();
        layers.release("b", &hash(1)).await.unwrap();
        assert!(layers.layers.is_empty());
    }
}
