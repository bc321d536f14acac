//! From the storages of a CreateContainer request to a mounted root file system, and back.
//!
//! The storages must be exactly the container's layers, bottom first, each at its place and with its verity root
//! hash, followed by the one overlay that stacks them: the shape is checked before anything is mounted. Every
//! step records how it is undone; [`Layers::undo`] goes back in reverse, and what cannot be undone stays recorded
//! and is an error, so that a second attempt knows where it stands.

pub mod dm;
pub mod mount;

use std::fs;
use std::path::{Path, PathBuf};

use agent_protocol::paths;
use agent_protocol::rpc::agent::Storage;
use agent_protocol::storage::{LayerStorage, MAX_LAYERS, OverlayStorage};

use crate::error::{AgentError, Context, Result};
use dm::DeviceMapper;

/// Where the writable parts of root file systems live, in guest memory.
const UPPER: &str = "/run/uvm/upper";

/// A container's mounted storages.
#[derive(Debug, Default)]
pub struct Layers {
    done: Vec<Step>,
}

/// Something done, named by what undoes it.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Directory(PathBuf),
    Mount(PathBuf),
    Device(String),
}

/// The storages of one container, checked as a whole.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    layers: Vec<LayerStorage>,
    rootfs: String,
}

impl Plan {
    /// Checks that `storages` are the layers of `container` and their overlay.
    ///
    /// # Errors
    /// Names the first storage that is out of place.
    pub fn parse(container: &str, storages: &[Storage]) -> Result<Self> {
        let Some((last, first)) = storages.split_last() else {
            return Err(AgentError::Invalid("no storages: expected layers and an overlay".to_owned()));
        };
        if first.is_empty() || first.len() > MAX_LAYERS {
            return Err(AgentError::Invalid(format!("{} layers: expected 1 to {MAX_LAYERS}", first.len())));
        }
        let layers = first.iter().map(LayerStorage::parse).collect::<std::result::Result<Vec<_>, _>>()?;
        for (index, layer) in layers.iter().enumerate() {
            expect_at("layer", &layer.mount_point, &paths::layer(container, index))?;
        }
        let overlay = OverlayStorage::parse(last)?;
        let rootfs = paths::rootfs(container);
        expect_at("overlay", &overlay.mount_point, &rootfs)?;
        let stacked: Vec<&str> = layers.iter().rev().map(|layer| layer.mount_point.as_str()).collect();
        if overlay.lower != stacked {
            return Err(AgentError::Invalid(
                "the overlay does not stack exactly the layers, top first".to_owned(),
            ));
        }
        Ok(Self { layers, rootfs })
    }
}

fn expect_at(what: &str, found: &str, expected: &str) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(AgentError::Invalid(format!("{what} at {found}: expected {expected}")))
}

impl Layers {
    /// Mounts what `plan` says for `container`. Device files on the result are dead unless `devices` is set.
    ///
    /// # Errors
    /// Says which step failed; the caller then undoes the steps before it.
    pub async fn mount(&mut self, container: &str, plan: &Plan, devices: bool) -> Result<()> {
        let mapper = DeviceMapper::open()?;
        for layer in &plan.layers {
            self.mount_layer(&mapper, layer).await?;
        }
        let upper = Path::new(UPPER).join(container);
        self.directory(&upper)?;
        mount::tmpfs(&upper, "mode=0755")?;
        self.done.push(Step::Mount(upper.clone()));
        let (writes, work) = (upper.join("upper"), upper.join("work"));
        for directory in [&writes, &work] {
            // They go with the tmpfs.
            fs::create_dir(directory).doing(|| format!("make {}", directory.display()))?;
        }
        let rootfs = PathBuf::from(&plan.rootfs);
        self.directory(&rootfs)?;
        let lower: Vec<&str> = plan.layers.iter().rev().map(|layer| layer.mount_point.as_str()).collect();
        mount::overlay(&lower, &writes, &work, &rootfs, devices)?;
        self.done.push(Step::Mount(rootfs));
        Ok(())
    }

    async fn mount_layer(&mut self, mapper: &DeviceMapper, layer: &LayerStorage) -> Result<()> {
        let end = layer.offset.saturating_add(layer.length);
        let disk = mount::wait_for_disk(&layer.device, end).await?;
        let slice = mapper.create(&dm::linear(&disk, layer.offset, layer.length))?;
        self.done.push(Step::Device(slice.name.clone()));
        let verified = mapper.create(&dm::verity(&slice.number, &layer.verity))?;
        self.done.push(Step::Device(verified.name.clone()));
        let target = PathBuf::from(&layer.mount_point);
        self.directory(&target)?;
        mount::erofs(&verified.node, &target)?;
        self.done.push(Step::Mount(target));
        Ok(())
    }

    /// Makes a directory and records those of its parents that are new.
    fn directory(&mut self, path: &Path) -> Result<()> {
        let missing: Vec<&Path> = path.ancestors().take_while(|parent| !parent.exists()).collect();
        for directory in missing.into_iter().rev() {
            fs::create_dir(directory).doing(|| format!("make {}", directory.display()))?;
            self.done.push(Step::Directory(directory.to_owned()));
        }
        Ok(())
    }

    /// Undoes everything, last step first. It may be called again after a failure.
    ///
    /// # Errors
    /// If a step cannot be undone; it and those before it remain.
    pub fn undo(&mut self) -> Result<()> {
        while let Some(step) = self.done.last() {
            match step {
                Step::Mount(target) => mount::unmount(target)?,
                Step::Device(name) => DeviceMapper::open()?.remove(name)?,
                Step::Directory(path) => remove_if_empty(path)?,
            }
            self.done.pop();
        }
        Ok(())
    }
}

/// Directories above a container's own are shared: the last one to leave removes them.
fn remove_if_empty(path: &Path) -> Result<()> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result.doing(|| format!("remove {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use agent_protocol::storage::VerityInfo;

    use super::*;

    fn storages() -> Vec<Storage> {
        let layer = |index: usize| LayerStorage {
            device: "/dev/vdb".to_owned(),
            offset: 0,
            length: 16384,
            verity: VerityInfo::sha256(&"0".repeat(64), 2),
            mount_point: paths::layer("c1", index),
        };
        let overlay = OverlayStorage {
            lower: vec![paths::layer("c1", 1), paths::layer("c1", 0)],
            mount_point: paths::rootfs("c1"),
        };
        vec![layer(0).to_message().unwrap(), layer(1).to_message().unwrap(), overlay.to_message()]
    }

    #[test]
    fn the_expected_shape_is_accepted() {
        let plan = Plan::parse("c1", &storages()).unwrap();
        assert_eq!((plan.layers.len(), plan.rootfs.as_str()), (2, "/run/kata-containers/c1/rootfs"));
    }

    #[test]
    fn reordered_missing_extra_and_foreign_storages_are_refused() {
        type Change = fn(&mut Vec<Storage>);
        let changes: [Change; 8] = [
            Vec::clear,
            |all| all.swap(0, 1),
            |all| drop(all.remove(0)),
            |all| drop(all.remove(2)),
            |all| all.insert(0, all[0].clone()),
            |all| all.push(all[2].clone()),
            |all| all[2].options = vec!["lowerdir=/run/uvm/layers/c1/0:/run/uvm/layers/c1/1".to_owned()],
            |all| all[2].mount_point = "/run/kata-containers/c2/rootfs".to_owned(),
        ];
        for (at, change) in changes.into_iter().enumerate() {
            let mut changed = storages();
            change(&mut changed);
            assert!(Plan::parse("c1", &changed).is_err(), "change {at}");
        }
        assert!(Plan::parse("c2", &storages()).is_err());
    }

    #[test]
    fn directories_are_undone_in_reverse_unless_in_use() {
        let root = tempfile::tempdir().unwrap();
        let mut layers = Layers::default();
        layers.directory(&root.path().join("a/b")).unwrap();
        assert_eq!(layers.done.len(), 2);
        fs::write(root.path().join("a/other"), "").unwrap();
        layers.undo().unwrap();
        assert!(root.path().join("a/other").exists() && !root.path().join("a/b").exists());
    }
}
