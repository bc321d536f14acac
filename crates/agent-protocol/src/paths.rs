//! Fixed paths inside the guest.
//!
//! All of them are below `/run`, a tmpfs of the agent's. Names of containers and volumes that appear in them have
//! passed [`crate::id::check`], root hashes [`crate::storage::LayerStorage::parse`].

/// Root of what belongs to single containers: `<this>/<container id>/rootfs`.
pub const CONTAINERS: &str = "/run/kata-containers";
/// The only directory below which `CopyFile` writes; containers get its files by bind mounts.
pub const SHARED_CONTAINERS: &str = "/run/kata-containers/shared/containers";
/// What belongs to the whole sandbox, such as its `/dev/shm`.
pub const SANDBOX: &str = "/run/kata-containers/sandbox";
/// The sandbox's shared memory file system, the source of the containers' `/dev/shm` mounts.
pub const SANDBOX_SHM: &str = "/run/kata-containers/sandbox/shm";
/// Mounted image layers, shared by all containers of the pod: `<this>/<root hash>`.
pub const LAYERS: &str = "/run/uvm/layers";
/// Volumes that live as long as the pod: `<this>/<name>`.
pub const LOCAL_VOLUMES: &str = "/run/kata-containers/sandbox/local";
/// Volumes in guest memory that live as long as the pod: `<this>/<name>`.
pub const EPHEMERAL_VOLUMES: &str = "/run/kata-containers/sandbox/ephemeral";
/// The pod's encrypted writable space, where it has one.
pub const SCRATCH: &str = "/run/uvm/scratch";

/// Where the root file system of `container` is mounted.
#[must_use]
pub fn rootfs(container: &str) -> String {
    format!("{CONTAINERS}/{container}/rootfs")
}

/// Where the layer with this root hash (64 lower-case hexadecimal digits) is mounted.
#[must_use]
pub fn layer(root_hash: &str) -> String {
    format!("{LAYERS}/{root_hash}")
}

/// Where the volume `name` on the pod's writable space is.
#[must_use]
pub fn local_volume(name: &str) -> String {
    format!("{LOCAL_VOLUMES}/{name}")
}

/// Where the volume `name` in guest memory is.
#[must_use]
pub fn ephemeral_volume(name: &str) -> String {
    format!("{EPHEMERAL_VOLUMES}/{name}")
}

#[cfg(test)]
mod tests {
    #[test]
    fn paths_follow_the_convention() {
        assert_eq!(super::rootfs("c1"), "/run/kata-containers/c1/rootfs");
        assert_eq!(super::layer("ab12"), "/run/uvm/layers/ab12");
        assert_eq!(super::local_volume("v"), "/run/kata-containers/sandbox/local/v");
        assert_eq!(super::ephemeral_volume("v"), "/run/kata-containers/sandbox/ephemeral/v");
    }
}
