//! The storages of one container, checked as a whole.
//!
//! First the volumes that the container uses, then exactly its layers, bottom first, and at last the one overlay
//! that stacks them. Places follow from names and root hashes; nothing may be named twice.

use std::collections::HashSet;

use agent_protocol::paths;
use agent_protocol::rpc::agent::Storage;
use agent_protocol::storage::{LayerStorage, MAX_LAYERS, OverlayStorage, VolumeStorage};

use crate::error::{AgentError, Result};

/// Most volumes of one container, well above what pods have.
const MAX_VOLUMES: usize = 128;

/// The storages of one container.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    /// What it shares with the other containers of the pod.
    pub volumes: Vec<VolumeStorage>,
    /// The layers of its root file system, bottom first.
    pub layers: Vec<LayerStorage>,
    /// Where its root file system is mounted.
    pub rootfs: String,
}

impl Plan {
    /// Checks that `storages` are the volumes and layers of `container` and the layers' overlay.
    ///
    /// # Errors
    /// Names the first storage that is out of place.
    pub fn parse(container: &str, storages: &[Storage]) -> Result<Self> {
        let end = storages.iter().take_while(|storage| VolumeStorage::is_volume(storage)).count();
        let (volumes, rest) = storages.split_at(end);
        if volumes.len() > MAX_VOLUMES {
            return Err(invalid(format!("{} volumes: expected at most {MAX_VOLUMES}", volumes.len())));
        }
        let volumes = volumes.iter().map(VolumeStorage::parse).collect::<std::result::Result<Vec<_>, _>>()?;
        let Some((last, first)) = rest.split_last() else {
            return Err(invalid("no storages: expected layers and an overlay"));
        };
        if first.is_empty() || first.len() > MAX_LAYERS {
            return Err(invalid(format!("{} layers: expected 1 to {MAX_LAYERS}", first.len())));
        }
        let layers = first.iter().map(LayerStorage::parse).collect::<std::result::Result<Vec<_>, _>>()?;
        let overlay = OverlayStorage::parse(last)?;
        let rootfs = paths::rootfs(container);
        if overlay.mount_point != rootfs {
            return Err(invalid(format!("overlay at {}: expected {rootfs}", overlay.mount_point)));
        }
        let places = volumes.iter().map(VolumeStorage::mount_point);
        let places: Vec<String> = places.chain(layers.iter().map(LayerStorage::mount_point)).collect();
        let mut seen = HashSet::new();
        if let Some(twice) = places.iter().find(|place| !seen.insert(place.as_str())) {
            return Err(invalid(format!("storage at {twice}: named twice")));
        }
        if !overlay.lower.iter().eq(places.iter().skip(volumes.len()).rev()) {
            return Err(invalid("the overlay does not stack exactly the layers, top first"));
        }
        Ok(Self { volumes, layers, rootfs })
    }
}

fn invalid(message: impl Into<String>) -> AgentError {
    AgentError::Invalid(message.into())
}

#[cfg(test)]
mod tests {
    use agent_protocol::storage::{Medium, VerityInfo};

    use super::*;

    fn layer(hash: &str) -> LayerStorage {
        LayerStorage {
            device: "/dev/vdb".to_owned(),
            offset: 0,
            length: 16384,
            verity: VerityInfo::sha256(&hash.repeat(32), 2),
        }
    }

    fn place(hash: &str) -> String {
        layer(hash).mount_point()
    }

    /// Two volumes, two layers, their overlay.
    fn storages() -> Vec<Storage> {
        let volume = |name: &str, medium| VolumeStorage { name: name.to_owned(), medium, group: None };
        let overlay =
            OverlayStorage { lower: vec![place("bb"), place("aa")], mount_point: paths::rootfs("c1") };
        vec![
            volume("v", Medium::Local).to_message().unwrap(),
            volume("v", Medium::Memory { size: None }).to_message().unwrap(),
            layer("aa").to_message().unwrap(),
            layer("bb").to_message().unwrap(),
            overlay.to_message(),
        ]
    }

    #[test]
    fn the_expected_shape_is_accepted() {
        let plan = Plan::parse("c1", &storages()).unwrap();
        assert_eq!((plan.volumes.len(), plan.layers.len()), (2, 2));
        assert_eq!(plan.rootfs, "/run/kata-containers/c1/rootfs");
        assert!(Plan::parse("c1", &storages()[2..]).unwrap().volumes.is_empty());
    }

    #[test]
    fn reordered_missing_repeated_and_foreign_storages_are_refused() {
        type Change = fn(&mut Vec<Storage>);
        let changes: [Change; 16] = [
            Vec::clear,
            |all| all.truncate(2),
            // Layers in another order, one missing, one more, one twice.
            |all| all.swap(2, 3),
            |all| drop(all.remove(2)),
            |all| all.insert(2, layer("cc").to_message().unwrap()),
            |all| {
                all.insert(2, all[2].clone());
                all[5].options = vec![format!("lowerdir={}:{}:{}", place("bb"), place("aa"), place("aa"))];
            },
            // No overlay, two of them, one of another order, of another container, of foreign places.
            |all| drop(all.remove(4)),
            |all| all.push(all[4].clone()),
            |all| all[4].options = vec![format!("lowerdir={}:{}", place("aa"), place("bb"))],
            |all| all[4].options = vec![format!("lowerdir={}:{}:/etc", place("bb"), place("aa"))],
            |all| all[4].mount_point = paths::rootfs("c2"),
            |all| all[2].mount_point = place("cc"),
            |all| all[2].mount_point = "/run/uvm/layers/c1/0".to_owned(),
            // Volumes behind layers, twice, of another kind.
            |all| all.swap(1, 2),
            |all| all[1] = all[0].clone(),
            |all| all[1].driver = "virtio-fs".to_owned(),
        ];
        for (at, change) in changes.into_iter().enumerate() {
            let mut changed = storages();
            change(&mut changed);
            assert!(Plan::parse("c1", &changed).is_err(), "change {at}");
        }
        assert!(Plan::parse("c2", &storages()).is_err());
    }

    #[test]
    fn numbers_are_bounded() {
        let volume = |number: usize| {
            let name = format!("v{number}");
            VolumeStorage { name, medium: Medium::Local, group: None }.to_message().unwrap()
        };
        let with = |count: usize| (0..count).map(volume).chain(storages().drain(2..)).collect::<Vec<_>>();
        assert!(Plan::parse("c1", &with(MAX_VOLUMES)).is_ok());
        assert!(Plan::parse("c1", &with(MAX_VOLUMES + 1)).is_err());
        let layers: Vec<LayerStorage> = (0..=MAX_LAYERS)
            .map(|at| {
                let verity = VerityInfo::sha256(&format!("{at:064x}"), 2);
                LayerStorage { verity, ..layer("aa") }
            })
            .collect();
        let with = |count: usize| {
            let lower = layers[..count].iter().rev().map(LayerStorage::mount_point).collect();
            let overlay = OverlayStorage { lower, mount_point: paths::rootfs("c1") };
            let layers = layers[..count].iter().map(|layer| layer.to_message().unwrap());
            layers.chain([overlay.to_message()]).collect::<Vec<_>>()
        };
        assert!(Plan::parse("c1", &with(MAX_LAYERS)).is_ok());
        assert!(Plan::parse("c1", &with(MAX_LAYERS + 1)).is_err());
    }
}
