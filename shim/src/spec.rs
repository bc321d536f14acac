//! From the OCI spec that containerd wrote for a host to the one that the guest gets.
//!
//! Pure code. What only means something on the host is dropped or rewritten: network, IPC and UTS namespaces
//! (the pod's own are the guest's), the cgroup path, AppArmor and SELinux labels. What the guest cannot have
//! is refused: hooks, host devices, host namespaces, user namespaces, mounts that propagate back. Bind mounts
//! of the host's files become bind mounts of copies: the caller copies what [`GuestSpec::shared`] names. Bind mounts of
//! the pod's volumes become bind mounts of what stands for them in the guest.

use std::path::{Path, PathBuf};

use agent_protocol::paths;
use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};
use sha2::{Digest, Sha256};

use crate::volumes::Volume;

/// Cgroup of all containers in the guest; each has one below.
const GUEST_CGROUP: &str = "/uvm";
/// File systems that the guest's kernel provides itself.
const GUEST_FILE_SYSTEMS: [&str; 7] = ["proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2"];
/// Devices that every container has anyway (OCI runtime specification, "Default Devices").
const DEFAULT_DEVICES: [&str; 6] =
    ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"];
/// Mount options by which changes inside would reach the host.
const PROPAGATING: [&str; 2] = ["shared", "rshared"];

/// Why a spec cannot be run in a guest.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// Hooks are programs of the host.
    #[error("hooks are not supported: they would run on the host, outside of the utility VM")]
    Hooks,
    /// There is no Linux section, or no process.
    #[error("the spec has no {0:?}")]
    Missing(&'static str),
    /// A namespace of the host.
    #[error("{0} namespace of the host: a container in a utility VM cannot share it")]
    HostNamespace(&'static str),
    /// A namespace that is not supported.
    #[error("{0} namespaces are not supported")]
    Namespace(&'static str),
    /// A device of the host.
    #[error("device {0}: devices of the host are not available in a utility VM")]
    Device(PathBuf),
    /// A mount that is not supported.
    #[error("mount at {destination}: {why}", destination = .destination.display())]
    Mount {
        /// Where it would be.
        destination: PathBuf,
        /// Why not.
        why: String,
    },
    /// Kernel parameters of a pod, which has no process that they could be set for.
    #[error("sysctl {0} of a pod is not supported")]
    Sysctl(String),
}

/// A spec for the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestSpec {
    /// The spec.
    pub spec: Spec,
    /// Whether the container shares the pod's PID namespace.
    pub shared_pids: bool,
    /// What the spec's mounts need of the host's files.
    pub shared: Vec<SharedPath>,
}

/// A file or directory of the host that a container gets a copy of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SharedPath {
    /// Where it is on the host.
    pub host: PathBuf,
    /// Where its copy is in the guest. All containers of a pod that name the same file share one copy.
    pub guest: PathBuf,
}

/// Rewrites `spec` for container `id` in the guest, where `volumes` are.
///
/// # Errors
/// When the spec asks for something that a container in a guest cannot have.
pub fn for_guest(id: &str, mut spec: Spec, volumes: &[Volume]) -> Result<GuestSpec, SpecError> {
    refuse_hooks(&spec)?;
    let process = spec.process_mut().as_mut().ok_or(SpecError::Missing("process"))?;
    process.set_apparmor_profile(None).set_selinux_label(None);
    let readonly = spec.root().as_ref().and_then(oci_spec::runtime::Root::readonly);
    let root = spec.root_mut().get_or_insert_default();
    root.set_path(paths::rootfs(id).into()).set_readonly(readonly);

    let linux = spec.linux_mut().as_mut().ok_or(SpecError::Missing("linux"))?;
    for device in linux.devices().iter().flatten() {
        if !DEFAULT_DEVICES.iter().any(|default| device.path() == Path::new(default)) {
            return Err(SpecError::Device(device.path().clone()));
        }
    }
    linux.set_cgroups_path(Some(format!("{GUEST_CGROUP}/{id}").into())).set_mount_label(None);
    let shared_pids = rewrite_namespaces(linux)?;

    let mut shared = Vec::new();
    let mounts = spec.mounts_mut().take().unwrap_or_default();
    let mounts = mounts.into_iter().map(|mount| rewrite_mount(mount, volumes, &mut shared));
    let mounts = mounts.collect::<Result<Vec<_>, _>>()?;
    spec.set_mounts(Some(mounts));
    Ok(GuestSpec { spec, shared_pids, shared })
}

/// Refuses what a sandbox's spec asks for and nothing in the guest would obey: the pod has no process.
///
/// # Errors
/// When the spec has hooks or kernel parameters.
pub fn check_sandbox(spec: &Spec) -> Result<(), SpecError> {
    refuse_hooks(spec)?;
    let sysctl = spec.linux().as_ref().and_then(|linux| linux.sysctl().as_ref());
    match sysctl.and_then(|sysctl| sysctl.keys().min()) {
        Some(key) => Err(SpecError::Sysctl(key.clone())),
        None => Ok(()),
    }
}

fn refuse_hooks(spec: &Spec) -> Result<(), SpecError> {
    // Compared with the absence of hooks, so that a kind which a later specification adds is refused too.
    match spec.hooks() {
        Some(hooks) if *hooks != oci_spec::runtime::Hooks::default() => {
            let lists = [
                hooks.prestart(),
                hooks.create_runtime(),
                hooks.create_container(),
                hooks.start_container(),
                hooks.poststart(),
                hooks.poststop(),
            ];
            if lists.into_iter().flatten().any(|list| !list.is_empty()) {
                Err(SpecError::Hooks)
            } else {
                Ok(())
            }
        }
        _ => Ok(()),
    }
}

/// Keeps the namespaces that a container has of its own in the guest; says whether it shares the pod's PIDs.
fn rewrite_namespaces(linux: &mut oci_spec::runtime::Linux) -> Result<bool, SpecError> {
    let mut kept = Vec::new();
    let mut pid = None;
    for mut namespace in linux.namespaces_mut().take().unwrap_or_default() {
        match namespace.typ() {
            LinuxNamespaceType::Network | LinuxNamespaceType::Ipc | LinuxNamespaceType::Uts => {}
            LinuxNamespaceType::Pid => {
                // A path names the sandbox's namespace on the host: the pod shares its PIDs.
                pid = Some(namespace.path().is_some());
                namespace.set_path(None);
                kept.push(namespace);
            }
            LinuxNamespaceType::Mount | LinuxNamespaceType::Cgroup => {
                if namespace.path().is_some() {
                    return Err(SpecError::HostNamespace("mount or cgroup"));
                }
                kept.push(namespace);
            }
            LinuxNamespaceType::User => return Err(SpecError::Namespace("user")),
            LinuxNamespaceType::Time => return Err(SpecError::Namespace("time")),
        }
    }
    linux.set_namespaces(Some(kept));
    // Without a PID namespace of its own a container would see all of the host's processes.
    pid.ok_or(SpecError::HostNamespace("PID"))
}

fn rewrite_mount(
    mut mount: Mount,
    volumes: &[Volume],
    shared: &mut Vec<SharedPath>,
) -> Result<Mount, SpecError> {
    let options = mount.options().clone().unwrap_or_default();
    let refuse =
        |mount: &Mount, why: String| SpecError::Mount { destination: mount.destination().clone(), why };
    if let Some(option) = options.iter().find(|option| PROPAGATING.contains(&option.as_str())) {
        return Err(refuse(&mount, format!("{option}: mounts cannot propagate to the host")));
    }
    let is_bind = mount.typ().as_deref() == Some("bind")
        || options.iter().any(|option| option == "bind" || option == "rbind");
    if !is_bind {
        let kind = mount.typ().clone().unwrap_or_default();
        if !GUEST_FILE_SYSTEMS.contains(&kind.as_str()) {
            return Err(refuse(&mount, format!("file system type {kind:?} is not supported")));
        }
        return Ok(mount);
    }
    if mount.destination() == Path::new("/dev/shm") {
        // What the pod shares on the host, it shares in the guest.
        mount.set_source(Some(paths::SANDBOX_SHM.into()));
        return Ok(mount);
    }
    let source = mount.source().clone().unwrap_or_default();
    if !source.is_absolute() {
        return Err(refuse(&mount, format!("expected an absolute source, found {:?}", source.display())));
    }
    if let Some(volume) = volumes.iter().find(|volume| volume.host == source) {
        mount.set_typ(Some("bind".into())).set_source(Some(volume.storage.mount_point().into()));
        return Ok(mount);
    }
    let path = SharedPath { guest: guest_path(&source), host: source };
    mount.set_typ(Some("bind".into())).set_source(Some(path.guest.clone()));
    shared.push(path);
    Ok(mount)
}

/// Where the copy of a host path is: a name made of its digest, so that no path of the host is a path of the
/// guest, and of its last component, for whoever debugs.
fn guest_path(host: &Path) -> PathBuf {
    let digest = hex::encode(Sha256::digest(host.as_os_str().as_encoded_bytes()));
    let mut name: String = digest.chars().take(16).collect();
    if let Some(last) = host.file_name().and_then(|last| last.to_str()) {
        name.push('-');
        name.extend(last.chars().filter(|c| c.is_ascii_alphanumeric() || "._-".contains(*c)).take(64));
    }
    Path::new(paths::SHARED_CONTAINERS).join(name)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// What matters of a spec as containerd 1.6 writes it for Kubernetes.
    fn cri_spec() -> Value {
        json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": { "uid": 0, "gid": 0 }, "args": ["sh"], "cwd": "/",
                "apparmorProfile": "cri-containerd.apparmor.d", "selinuxLabel": "x:y"
            },
            "root": { "path": "rootfs", "readonly": true },
            "hostname": "pod",
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"] },
                { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"] },
                { "destination": "/etc/hosts", "type": "bind", "source": "/var/pods/x/etc-hosts",
                  "options": ["rbind", "rprivate", "rw"] },
                { "destination": "/dev/shm", "type": "bind", "source": "/run/x/shm", "options": ["rbind"] }
            ],
            "linux": {
                "cgroupsPath": "kubepods-x.slice:cri-containerd:c1",
                "mountLabel": "z",
                "resources": { "memory": { "limit": 1048576 } },
                "namespaces": [
                    { "type": "pid" }, { "type": "ipc", "path": "/proc/7/ns/ipc" },
                    { "type": "uts", "path": "/proc/7/ns/uts" }, { "type": "mount" },
                    { "type": "network", "path": "/proc/7/ns/net" }
                ],
                "seccomp": { "defaultAction": "SCMP_ACT_ERRNO" },
                "maskedPaths": ["/proc/kcore"]
            }
        })
    }

    fn guest(json: Value) -> Result<GuestSpec, SpecError> {
        for_guest("c1", serde_json::from_value(json).unwrap(), &[])
    }

    #[test]
    fn host_only_things_are_dropped_and_the_rest_stays() {
        let GuestSpec { spec, shared_pids, .. } = guest(cri_spec()).unwrap();
        let process = spec.process().as_ref().unwrap();
        assert_eq!((process.apparmor_profile(), process.selinux_label()), (&None, &None));
        let root = spec.root().as_ref().unwrap();
        assert_eq!(root.path(), Path::new("/run/kata-containers/c1/rootfs"));
        assert_eq!(root.readonly(), Some(true));
        let linux = spec.linux().as_ref().unwrap();
        assert_eq!(linux.cgroups_path().as_deref(), Some(Path::new("/uvm/c1")));
        assert_eq!(linux.mount_label(), &None);
        assert!(linux.seccomp().is_some() && linux.resources().is_some());
        assert_eq!(linux.masked_paths().as_ref().unwrap(), &["/proc/kcore"]);
        let kinds: Vec<_> = linux.namespaces().iter().flatten().map(|namespace| namespace.typ()).collect();
        assert_eq!(kinds, [LinuxNamespaceType::Pid, LinuxNamespaceType::Mount]);
        assert!(!shared_pids);
    }

    #[test]
    fn host_files_become_copies_and_shm_the_pods() {
        let GuestSpec { spec, shared, .. } = guest(cri_spec()).unwrap();
        let mounts = spec.mounts().as_ref().unwrap();
        assert_eq!(mounts[0].typ().as_deref(), Some("proc"));
        assert_eq!(shared.len(), 1);
        assert_eq!(shared[0].host, Path::new("/var/pods/x/etc-hosts"));
        assert_eq!(mounts[2].source().as_ref(), Some(&shared[0].guest));
        assert!(shared[0].guest.starts_with("/run/kata-containers/shared/containers"));
        assert_eq!(mounts[3].source().as_deref(), Some(Path::new("/run/kata-containers/sandbox/shm")));
    }

    #[test]
    fn volumes_are_those_of_the_guest() {
        let spec: Spec = serde_json::from_value(cri_spec()).unwrap();
        let medium = agent_protocol::storage::Medium::Local;
        let storage = agent_protocol::storage::VolumeStorage { name: "v".into(), medium, group: None };
        let volume = Volume { host: "/var/pods/x/etc-hosts".into(), storage };
        let GuestSpec { spec, shared, .. } = for_guest("c1", spec, &[volume]).unwrap();
        assert_eq!(shared, []);
        let mount = &spec.mounts().as_ref().unwrap()[2];
        assert_eq!(mount.source().as_deref(), Some(Path::new("/run/kata-containers/sandbox/local/v")));
        assert_eq!(mount.options().as_ref().unwrap(), &["rbind", "rprivate", "rw"]);
    }

    #[test]
    fn a_shared_pid_namespace_is_the_pods() {
        let mut json = cri_spec();
        json["linux"]["namespaces"][0]["path"] = "/proc/7/ns/pid".into();
        let GuestSpec { spec, shared_pids, .. } = guest(json).unwrap();
        assert!(shared_pids);
        let namespaces = spec.linux().as_ref().unwrap().namespaces().clone().unwrap();
        assert!(namespaces.iter().all(|namespace| namespace.path().is_none()));
    }

    #[test]
    fn what_a_guest_cannot_have_is_refused() {
        type Change = fn(&mut Value);
        let cases: [(Change, &str); 8] = [
            (|s| s["hooks"] = json!({ "prestart": [{ "path": "/bin/true" }] }), "hooks"),
            (
                |s| {
                    s["linux"]["devices"] =
                        json!([{ "path": "/dev/kvm", "type": "c", "major": 10, "minor": 232 }])
                },
                "/dev/kvm",
            ),
            (|s| s["linux"]["namespaces"] = json!([{ "type": "mount" }]), "PID namespace"),
            (|s| s["linux"]["namespaces"][0]["type"] = "user".into(), "user namespaces"),
            (|s| s["mounts"][2]["options"] = json!(["rbind", "rshared"]), "rshared"),
            (|s| s["mounts"][0]["type"] = "nfs".into(), "\"nfs\""),
            (|s| s["mounts"][2]["source"] = "relative".into(), "absolute source"),
            (|s| s["process"] = Value::Null, "process"),
        ];
        for (change, message) in cases {
            let mut json = cri_spec();
            change(&mut json);
            let error = guest(json).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn default_devices_and_empty_hooks_pass() {
        let mut json = cri_spec();
        json["linux"]["devices"] = json!([{ "path": "/dev/null", "type": "c", "major": 1, "minor": 3 }]);
        json["hooks"] = json!({ "prestart": [] });
        guest(json).unwrap();
    }

    #[test]
    fn a_pods_kernel_parameters_are_refused() {
        let spec = json!({ "ociVersion": "1.0.2", "linux": { "sysctl": { "net.core.somaxconn": "9" } } });
        let error = check_sandbox(&serde_json::from_value(spec).unwrap()).unwrap_err().to_string();
        assert!(error.contains("net.core.somaxconn"), "{error}");
    }

    #[test]
    fn guest_paths_are_plain_and_distinct() {
        let odd = guest_path(Path::new("/a/b c\n..é"));
        assert!(odd.file_name().unwrap().to_str().unwrap().ends_with("-bc.."), "{odd:?}");
        assert_ne!(guest_path(Path::new("/a/x")), guest_path(Path::new("/b/x")));
    }
}
