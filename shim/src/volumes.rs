//! Kubernetes' `emptyDir` volumes: directories that the containers of a pod share and that end with it.
//!
//! A bind mount's source says what it is: `<kubelet root>/pods/<uid>/volumes/kubernetes.io~empty-dir/<name>`. Such a
//! volume is not copied but made in the guest, on the pod's writable space, or in guest memory if the kubelet has
//! mounted a tmpfs there (`medium: Memory`), with its size. The group that the kubelet gave the directory
//! (`fsGroup`) goes along. The host's directory is only looked at; what containers write never reaches it, so that
//! one with something in it cannot be shown and is refused. A part of a volume (`subPath`) is refused too: a copy of
//! it would look like a volume and not be shared.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use agent_protocol::id::{self, IdError};
use agent_protocol::storage::{Medium, VolumeStorage};
use oci_spec::runtime::Spec;

/// The kubelet's name for the kind of volume.
const EMPTY_DIR: &str = "kubernetes.io~empty-dir";
/// Type of a tmpfs (statfs(2), `TMPFS_MAGIC`).
const TMPFS: i64 = 0x0102_1994;
/// Type of a hugetlbfs (`HUGETLBFS_MAGIC`).
const HUGETLBFS: i64 = 0x9584_58F6;

/// Why a volume cannot be had in the guest.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// It cannot be looked at.
    #[error("cannot look at volume {path}: {source}", path = .path.display())]
    Look {
        /// Where it is on the host.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Its name is none for the guest.
    #[error("volume {path}: {source}", path = .path.display())]
    Name {
        /// Where it is on the host.
        path: PathBuf,
        /// What is wrong with the name.
        source: IdError,
    },
    /// There is something in it.
    #[error(
        "volume {path}: expected an empty directory: an emptyDir is made inside the utility VM, where {found:?} on the \
         host would be missing",
        path = .path.display()
    )]
    Full {
        /// Where it is on the host.
        path: PathBuf,
        /// What is in it.
        found: PathBuf,
    },
    /// A part of a volume.
    #[error("{path}: a subPath of an emptyDir is not supported", path = .0.display())]
    Part(PathBuf),
    /// A volume of huge pages.
    #[error("volume {path}: huge pages are not supported", path = .0.display())]
    HugePages(PathBuf),
    /// Another volume of the pod has the name.
    #[error("volume {path}: the pod has a volume of this name already: {other}", path = .path.display(), other = .other.display())]
    Taken {
        /// Where it is on the host.
        path: PathBuf,
        /// Where the other one is.
        other: PathBuf,
    },
}

/// What the source of a bind mount is, by its path alone.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Named {
    /// A whole volume.
    Volume(String),
    /// A part of what is a volume, if this directory exists.
    Part(PathBuf),
}

/// A volume on the host and what stands for it in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// The source of bind mounts.
    pub host: PathBuf,
    /// The volume in the guest.
    pub storage: VolumeStorage,
}

/// The volumes of a pod. All its containers see a volume as it was when the first of them came.
#[derive(Debug, Clone, Default)]
pub struct Volumes {
    kubelet_root: PathBuf,
    /// Memory of the machine: a tmpfs that may be larger has no limit of its own.
    memory_bytes: u64,
    known: BTreeMap<PathBuf, VolumeStorage>,
}

impl Volumes {
    /// No volumes yet, in a machine with `memory_bytes`.
    #[must_use]
    pub fn new(kubelet_root: PathBuf, memory_bytes: u64) -> Self {
        Self { kubelet_root, memory_bytes, known: BTreeMap::new() }
    }

    /// The volumes among the sources of `spec`'s bind mounts, each once. Looks at the host's file system.
    ///
    /// # Errors
    /// When a volume cannot be had in the guest.
    pub fn of(&mut self, spec: &Spec) -> Result<Vec<Volume>, VolumeError> {
        let mut volumes: Vec<Volume> = Vec::new();
        for mount in spec.mounts().iter().flatten() {
            let Some(host) = mount.source() else { continue };
            let Some(named) = named(&self.kubelet_root, host) else { continue };
            if volumes.iter().any(|volume| volume.host == *host) {
                continue;
            }
            let name = match named {
                Named::Volume(name) => name,
                Named::Part(whole) if fs::symlink_metadata(&whole).is_ok() => {
                    return Err(VolumeError::Part(host.clone()));
                }
                // A part of another kind of volume: of a ConfigMap, say, which is copied.
                Named::Part(_) => continue,
            };
            let storage = match self.known.get(host) {
                Some(storage) => storage.clone(),
                None => self.look(name, host)?,
            };
            volumes.push(Volume { host: host.clone(), storage });
        }
        Ok(volumes)
    }

    fn look(&mut self, name: String, host: &Path) -> Result<VolumeStorage, VolumeError> {
        id::check(&name).map_err(|source| VolumeError::Name { path: host.into(), source })?;
        if let Some((other, _)) = self.known.iter().find(|(_, storage)| storage.name == name) {
            return Err(VolumeError::Taken { path: host.into(), other: other.clone() });
        }
        let failed = |source| VolumeError::Look { path: host.into(), source };
        if let Some(entry) = fs::read_dir(host).map_err(failed)?.next() {
            let found = entry.map_err(failed)?.file_name().into();
            return Err(VolumeError::Full { path: host.into(), found });
        }
        let stat = fs::metadata(host).map_err(failed)?;
        let parent = fs::metadata(host.join("..")).map_err(failed)?;
        let files = rustix::fs::statfs(host).map_err(|errno| failed(errno.into()))?;
        let medium = match files.f_type {
            HUGETLBFS => return Err(VolumeError::HugePages(host.into())),
            // The kubelet's own directory may be on a tmpfs: what counts is one that is mounted here.
            TMPFS if stat.dev() != parent.dev() => {
                let size = u64::try_from(files.f_bsize).unwrap_or(0).saturating_mul(files.f_blocks);
                Medium::Memory { size: Some(size).filter(|size| (1..self.memory_bytes).contains(size)) }
            }
            _ => Medium::Local,
        };
        let group = Some(stat.gid()).filter(|gid| *gid != 0);
        let storage = VolumeStorage { name, medium, group };
        self.known.insert(host.into(), storage.clone());
        Ok(storage)
    }
}

/// What `source` is by the kubelet's way of naming.
fn named(kubelet_root: &Path, source: &Path) -> Option<Named> {
    let pods = kubelet_root.join("pods");
    let mut rest = source.strip_prefix(&pods).ok()?.iter();
    let pod = pods.join(rest.next()?);
    let text = |name: &OsStr| name.to_string_lossy().into_owned();
    match rest.next()?.to_str()? {
        "volumes" if rest.next()? == EMPTY_DIR => {
            let name = rest.next()?;
            let whole = pod.join("volumes").join(EMPTY_DIR).join(name);
            Some(if rest.next().is_none() { Named::Volume(text(name)) } else { Named::Part(whole) })
        }
        "volume-subpaths" => Some(Named::Part(pod.join("volumes").join(EMPTY_DIR).join(rest.next()?))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::chown;

    use serde_json::json;

    use super::*;

    fn spec(sources: &[&Path]) -> Spec {
        let mount = |source: &&Path| json!({ "destination": "/d", "type": "bind", "source": source, "options": ["rbind"] });
        let mounts: Vec<_> = sources.iter().map(mount).collect();
        serde_json::from_value(json!({ "ociVersion": "1.0.2", "mounts": mounts })).unwrap()
    }

    fn kubelet() -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let volume = root.path().join("pods/u1/volumes").join(EMPTY_DIR).join("cache");
        fs::create_dir_all(&volume).unwrap();
        (root, volume)
    }

    #[test]
    fn sources_are_named_by_the_kubelet() {
        let of = |path: &str| named(Path::new("/k"), Path::new(path));
        let volume = |name: &str| Some(Named::Volume(name.into()));
        let part = Some(Named::Part("/k/pods/u/volumes/kubernetes.io~empty-dir/v".into()));
        assert_eq!(of("/k/pods/u/volumes/kubernetes.io~empty-dir/v"), volume("v"));
        assert_eq!(of("/k/pods/u/volumes/kubernetes.io~empty-dir/v/"), volume("v"));
        assert_eq!(of("/k/pods/u/volumes/kubernetes.io~empty-dir/v/sub"), part);
        assert_eq!(of("/k/pods/u/volume-subpaths/v/c/0"), part);
        for other in [
            "/k/pods/u/volumes/kubernetes.io~configmap/v",
            "/k/pods/u/volumes/kubernetes.io~empty-dir",
            "/k/pods/u/etc-hosts",
            "/k/pods",
            "/l/pods/u/volumes/kubernetes.io~empty-dir/v",
            "k/pods/u/volumes/kubernetes.io~empty-dir/v",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn a_volume_is_looked_at_once_for_all_containers() {
        let (root, host) = kubelet();
        let mut volumes = Volumes::new(root.path().into(), 1 << 30);
        let other = root.path().join("elsewhere");
        let found = volumes.of(&spec(&[&host, &other, &host])).unwrap();
        let storage = VolumeStorage { name: "cache".into(), medium: Medium::Local, group: None };
        assert_eq!(found, [Volume { host: host.clone(), storage }]);
        // What happens to the host's directory later changes nothing.
        fs::write(host.join("late"), "").unwrap();
        assert_eq!(volumes.of(&spec(&[&host])).unwrap(), found);
    }

    #[test]
    fn the_group_of_the_directory_goes_along() {
        let (root, host) = kubelet();
        if chown(&host, None, Some(2000)).is_err() {
            return; // Only root may give a directory away.
        }
        let found = Volumes::new(root.path().into(), 1 << 30).of(&spec(&[&host])).unwrap();
        assert_eq!(found[0].storage.group, Some(2000));
    }

    #[test]
    fn what_would_not_be_there_is_refused() {
        let (root, host) = kubelet();
        let refusal = |host: &Path| {
            let mut volumes = Volumes::new(root.path().into(), 1 << 30);
            volumes.of(&spec(&[host])).unwrap_err().to_string()
        };
        fs::write(host.join("seed"), "").unwrap();
        assert!(refusal(&host).contains("cache: expected an empty directory"), "{}", refusal(&host));
        assert!(refusal(&host.with_file_name("gone")).contains("cannot look at volume"));
        assert!(refusal(&host.with_file_name("a b")).contains("id has ' '"));
        assert!(refusal(&host.join("seed")).contains("subPath"));
        assert!(refusal(&root.path().join("pods/u1/volume-subpaths/cache/c/0")).contains("subPath"));
        // A part of a volume of another kind is nobody's business here.
        let mut volumes = Volumes::new(root.path().into(), 1 << 30);
        assert_eq!(volumes.of(&spec(&[&root.path().join("pods/u1/volume-subpaths/conf/c/0")])).unwrap(), []);
    }

    #[test]
    fn two_volumes_do_not_share_a_name() {
        let (root, host) = kubelet();
        let foreign = root.path().join("pods/u2/volumes").join(EMPTY_DIR).join("cache");
        fs::create_dir_all(&foreign).unwrap();
        let error = Volumes::new(root.path().into(), 1 << 30).of(&spec(&[&host, &foreign])).unwrap_err();
        assert!(matches!(error, VolumeError::Taken { .. }), "{error}");
    }
}
