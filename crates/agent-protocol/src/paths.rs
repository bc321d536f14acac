//! Fixed paths inside the guest.
//!
//! All of them are below `/run`, a tmpfs of the agent's. Container ids that appear in them have passed
//! [`crate::id::check`].

/// Root of what belongs to single containers: `<this>/<container id>/rootfs`.
pub const CONTAINERS: &str = "/run/kata-containers";
/// The only directory below which `CopyFile` writes; containers get its files by bind mounts.
pub const SHARED_CONTAINERS: &str = "/run/kata-containers/shared/containers";
/// What belongs to the whole sandbox, such as its `/dev/shm`.
pub const SANDBOX: &str = "/run/kata-containers/sandbox";
/// The sandbox's shared memory file system, the source of the containers' `/dev/shm` mounts.
pub const SANDBOX_SHM: &str = "/run/kata-containers/sandbox/shm";
/// Mounted image layers: `<this>/<container id>/<index>`.
pub const LAYERS: &str = "/run/uvm/layers";
/// The pod's encrypted writable space, where it has one.
pub const SCRATCH: &str = "/run/uvm/scratch";

/// Where the root file system of `container` is mounted.
#[must_use]
pub fn rootfs(container: &str) -> String {
    format!("{CONTAINERS}/{container}/rootfs")
}

/// Where layer `index` of `container` is mounted; layer 0 is the bottom one.
#[must_use]
pub fn layer(container: &str, index: usize) -> String {
    format!("{LAYERS}/{container}/{index}")
}

#[cfg(test)]
mod tests {
    #[test]
    fn paths_follow_the_convention() {
        assert_eq!(super::rootfs("c1"), "/run/kata-containers/c1/rootfs");
        assert_eq!(super::layer("c1", 3), "/run/uvm/layers/c1/3");
    }
}
