//! Volumes that the pod's containers share (`emptyDir`), and where writable files live.
//!
//! A volume is made when the first container names it and stays as long as the pod: the guest's end is its end,
//! so nothing here is taken down. Each volume is a mount of its own at the place that its name decides, so that
//! one that runs full leaves the agent's own files alone.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use agent_protocol::storage::{Medium, VolumeStorage};

use crate::error::{AgentError, Context, Result};
use crate::layers::mount;
use crate::layers::steps::Steps;

/// Where containers' root file systems keep what is written, in guest memory.
const UPPER: &str = "/run/uvm/upper";

/// Where the pod's writable files live.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum WritableSpace {
    /// In guest memory: a tmpfs for each container and each volume.
    #[default]
    Memory,
    /// On the file system at this directory.
    Directory(PathBuf),
}

impl WritableSpace {
    /// Makes the directories for what `container` writes; returns the one for files and the one that overlayfs
    /// works in. `steps` has what undoes them.
    ///
    /// # Errors
    /// If they exist or cannot be made.
    pub fn upper(&self, container: &str, steps: &mut Steps) -> Result<(PathBuf, PathBuf)> {
        let upper = match self {
            Self::Memory => {
                let upper = Path::new(UPPER).join(container);
                steps.directory(&upper)?;
                mount::tmpfs(&upper, &[("mode", "0755".to_owned())])?;
                steps.mounted(&upper);
                upper
            }
            Self::Directory(root) => {
                let upper = root.join("upper").join(container);
                steps.tree(&upper)?;
                upper
            }
        };
        let (files, work) = (upper.join("upper"), upper.join("work"));
        for directory in [&files, &work] {
            // They go with the directory above.
            fs::create_dir(directory).doing(|| format!("make {}", directory.display()))?;
            // The container's root directory is everybody's to enter, whatever the agent's mask.
            set_mode(directory, 0o755)?;
        }
        Ok((files, work))
    }

    /// Mounts a new volume at its place.
    async fn mount(&self, volume: &VolumeStorage) -> Result<()> {
        let mut steps = Steps::default();
        let result = self.try_mount(volume, &mut steps);
        if result.is_err() {
            // Directories at most: the mount is the last step.
            steps.undo().await?;
        }
        result
    }

    fn try_mount(&self, volume: &VolumeStorage, steps: &mut Steps) -> Result<()> {
        let target = PathBuf::from(volume.mount_point());
        steps.directory(&target)?;
        match (volume.medium, self) {
            (Medium::Local, Self::Directory(root)) => {
                let files = root.join("volumes").join(&volume.name);
                steps.tree(&files)?;
                chown(&files, Some(0), volume.group.or(Some(0)))
                    .doing(|| format!("own {}", files.display()))?;
                set_mode(&files, mode(volume))?;
                mount::bind(&files, &target)
            }
            (Medium::Local, Self::Memory) => mount::tmpfs(&target, &options(volume, None)),
            (Medium::Memory { size }, _) => mount::tmpfs(&target, &options(volume, size)),
        }
    }
}

/// Everybody's, and where a group is asked for, what is made in it is the group's.
fn mode(volume: &VolumeStorage) -> u32 {
    if volume.group.is_some() { 0o2777 } else { 0o777 }
}

fn options(volume: &VolumeStorage, size: Option<u64>) -> Vec<(&'static str, String)> {
    let mut options = vec![("mode", format!("{:04o}", mode(volume)))];
    options.extend(size.map(|size| ("size", size.to_string())));
    options.extend(volume.group.map(|group| ("gid", group.to_string())));
    options
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .doing(|| format!("set the mode of {}", path.display()))
}

/// The pod's volumes.
#[derive(Debug, Default)]
pub struct Volumes {
    /// By mount point.
    made: BTreeMap<String, VolumeStorage>,
}

impl Volumes {
    /// Makes `volume` in `space`, unless the pod has it already.
    ///
    /// # Errors
    /// If the pod has it with other properties, or it cannot be made.
    pub async fn provide(&mut self, volume: &VolumeStorage, space: &WritableSpace) -> Result<()> {
        if self.has(volume)? {
            return Ok(());
        }
        space.mount(volume).await?;
        self.made.insert(volume.mount_point(), volume.clone());
        Ok(())
    }

    /// Whether the pod has `volume`.
    ///
    /// # Errors
    /// If it has it with other properties.
    pub fn has(&self, volume: &VolumeStorage) -> Result<bool> {
        match self.made.get(&volume.mount_point()) {
            None => Ok(false),
            Some(made) if made == volume => Ok(true),
            Some(made) => Err(AgentError::Invalid(format!(
                "volume {}: the pod has it with {:?} and group {:?}, found {:?} and group {:?}",
                volume.name, made.medium, made.group, volume.medium, volume.group
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(medium: Medium, group: Option<u32>) -> VolumeStorage {
        VolumeStorage { name: "cache".to_owned(), medium, group }
    }

    #[test]
    fn a_tmpfs_has_the_volumes_properties() {
        let text = |volume: &VolumeStorage, size| {
            let options = options(volume, size);
            options.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
        };
        assert_eq!(text(&volume(Medium::Local, None), None), "mode=0777");
        let memory = volume(Medium::Memory { size: Some(65536) }, Some(2000));
        assert_eq!(text(&memory, Some(65536)), "mode=2777,size=65536,gid=2000");
    }

    #[test]
    fn a_volume_has_one_set_of_properties() {
        let local = volume(Medium::Local, Some(7));
        let mut volumes = Volumes::default();
        assert!(!volumes.has(&local).unwrap());
        volumes.made.insert(local.mount_point(), local.clone());
        assert!(volumes.has(&local).unwrap());
        for group in [None, Some(0), Some(8)] {
            let error = volumes.has(&volume(Medium::Local, group)).unwrap_err();
            assert!(matches!(error, AgentError::Invalid(_)), "{error}");
        }
        // One in memory of the same name is another volume.
        let memory = volume(Medium::Memory { size: None }, Some(7));
        assert!(!volumes.has(&memory).unwrap());
        volumes.made.insert(memory.mount_point(), memory);
        assert!(volumes.has(&volume(Medium::Memory { size: Some(4096) }, Some(7))).is_err());
    }

    #[tokio::test]
    async fn what_a_container_writes_on_a_directory_goes_with_it() {
        let root = tempfile::tempdir().unwrap();
        let space = WritableSpace::Directory(root.path().to_owned());
        let mut steps = Steps::default();
        let (files, work) = space.upper("c1", &mut steps).unwrap();
        assert_eq!(files, root.path().join("upper/c1/upper"));
        assert_eq!(fs::metadata(&files).unwrap().permissions().mode() & 0o7777, 0o755);
        fs::create_dir_all(files.join("a/b")).unwrap();
        fs::write(work.join("index"), "").unwrap();
        // Nobody gets somebody else's files.
        assert!(space.upper("c1", &mut Steps::default()).is_err());
        steps.undo().await.unwrap();
        assert!(!root.path().join("upper/c1").exists());
        space.upper("c1", &mut Steps::default()).unwrap();
    }
}
