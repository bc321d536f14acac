//! What is adapted, and that everything else is refused.

use serde_json::{Value, json};

use agent_protocol::storage::Medium;

use super::*;

fn config() -> Value {
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0}, "args": ["sh"], "env": ["PATH=/bin"], "cwd": "/",
            "noNewPrivileges": false, "apparmorProfile": "x",
            "capabilities": {"bounding": ["CAP_MKNOD", "CAP_CHOWN", "CAP_SYS_RAWIO"], "effective": ["CAP_MKNOD"]}
        },
        "root": {"path": "/run/kata-containers/c1/rootfs"},
        "hostname": "pod",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/etc/hosts", "type": "bind", "source": "/run/kata-containers/shared/containers/c1-hosts",
                "options": ["rbind", "rprivate"]}
        ],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "network", "path": "/proc/7/ns/net"}, {"type": "ipc"},
                {"type": "uts"}, {"type": "mount"}],
            "cgroupsPath": "/kubepods/x",
            "rootfsPropagation": "rslave",
            "sysctl": {"net.ipv4.ping_group_range": "0 0"},
            "resources": {
                "devices": [{"allow": false, "access": "rwm"}],
                "memory": {"limit": 4096, "swap": 4096}, "cpu": {"shares": 2, "cpus": "7"},
                "hugepageLimits": [{"pageSize": "2MB", "limit": 0}]
            }
        }
    })
}

fn volumes() -> [VolumeStorage; 2] {
    let volume = |medium| VolumeStorage { name: "cache".to_owned(), medium, group: None };
    [volume(Medium::Local), volume(Medium::Memory { size: None })]
}

fn adapted(config: &Value) -> Result<(Spec, Vec<(String, String)>)> {
    let spec = serde_json::from_value(config.clone()).unwrap();
    adapt(spec, &Setting { container: "c1", pid_namespace: None, volumes: &volumes() })
}

#[test]
fn the_pods_namespaces_and_the_hosts_settings_go() {
    let (spec, sysctl) = adapted(&config()).unwrap();
    assert_eq!(sysctl, [("net.ipv4.ping_group_range".to_owned(), "0 0".to_owned())]);
    assert_eq!((spec.hostname(), spec.hooks()), (&None, &None));
    let linux = spec.linux().as_ref().unwrap();
    let kinds: Vec<_> =
        linux.namespaces().iter().flatten().map(|one| (one.typ(), one.path().clone())).collect();
    use LinuxNamespaceType::{Cgroup, Mount, Pid};
    assert_eq!(kinds, [(Pid, None), (Mount, None), (Cgroup, None)]);
    assert_eq!(linux.cgroups_path().as_deref(), Some(Path::new("/uvm/c1")));
    assert_eq!((linux.rootfs_propagation().as_deref(), linux.sysctl()), (Some("slave"), &None));
    let resources = linux.resources().as_ref().unwrap();
    let memory = resources.memory().as_ref().unwrap();
    assert_eq!((memory.limit(), memory.swap()), (Some(4096), None));
    assert_eq!(resources.cpu().as_ref().unwrap().cpus(), &None);
    assert_eq!(resources.hugepage_limits(), &None);
    let process = spec.process().as_ref().unwrap();
    assert_eq!((process.no_new_privileges(), process.apparmor_profile()), (None, &None));
}

#[test]
fn only_a_privileged_container_may_make_devices_and_none_reaches_ports() {
    let bounding = |process: &Process| {
        let sets = process.capabilities().as_ref().unwrap();
        let mut names: Vec<_> = sets.bounding().iter().flatten().map(ToString::to_string).collect();
        names.sort_unstable();
        names
    };
    let (spec, _) = adapted(&config()).unwrap();
    assert_eq!(bounding(spec.process().as_ref().unwrap()), ["CHOWN"]);
    let mut privileged = config();
    privileged["linux"]["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}]);
    let (spec, _) = adapted(&privileged).unwrap();
    let process = spec.process().clone().unwrap();
    assert_eq!(bounding(&process), ["CHOWN", "MKNOD"]);
    // A further process may ask for more than the container has.
    let process: Process = serde_json::from_value(config()["process"].clone()).unwrap();
    assert_eq!(bounding(&adapt_exec(process, &spec).unwrap()), ["CHOWN", "MKNOD"]);
}

#[test]
fn a_shared_pid_namespace_is_joined() {
    let spec = serde_json::from_value(config()).unwrap();
    let path = PathBuf::from("/proc/9/ns/pid");
    let (spec, _) =
        adapt(spec, &Setting { container: "c1", pid_namespace: Some(path.clone()), volumes: &[] }).unwrap();
    let namespaces = spec.linux().as_ref().unwrap().namespaces().clone().unwrap();
    assert_eq!(namespaces[0].path(), &Some(path));
}

#[test]
fn volumes_of_the_request_are_bind_mounted() {
    for volume in volumes() {
        let mut config = config();
        config["mounts"][1]["source"] = json!(volume.mount_point());
        adapted(&config).unwrap();
        let spec = serde_json::from_value(config).unwrap();
        assert!(adapt(spec, &Setting { container: "c1", pid_namespace: None, volumes: &[] }).is_err());
    }
}

#[test]
fn what_is_unsafe_or_unknown_is_refused() {
    let cases: [(&str, Value); 26] = [
        ("/root/path", json!("/")),
        ("/root/path", json!("/run/kata-containers/c2/rootfs")),
        ("/hooks", json!({"poststart": [{"path": "/bin/x"}]})),
        ("/process/args", json!([])),
        ("/process/args", json!(["a\u{0}b"])),
        ("/process/env", json!(["=x"])),
        ("/process/env", json!(["NAME"])),
        ("/process/cwd", json!("relative")),
        ("/mounts/1/source", json!("/etc/shadow")),
        ("/mounts/1/source", json!("/run/kata-containers/shared/containers")),
        ("/mounts/1/source", json!("/run/kata-containers/shared/containers/../../c2/rootfs")),
        ("/mounts/1/source", json!("/run/kata-containers/sandbox/local/other")),
        ("/mounts/1/source", json!("/run/kata-containers/sandbox/local/cache/below")),
        ("/mounts/1/source", json!("/run/kata-containers/sandbox/local/cache/../other")),
        ("/mounts/1/source", json!("/run/kata-containers/sandbox/local")),
        ("/mounts/1/source", json!("/run/uvm/scratch/volumes/cache")),
        ("/mounts/1/options", json!(["rbind", "rshared"])),
        ("/mounts/0/type", json!("ext4")),
        ("/linux/uidMappings", json!([{"hostID": 0, "containerID": 0, "size": 1}])),
        ("/linux/namespaces/0/path", json!("/proc/1/ns/pid")),
        ("/linux/namespaces/1/type", json!("user")),
        ("/linux/namespaces/1/type", json!("pid")),
        ("/linux/devices", json!([{"path": "/dev/mem", "type": "c", "major": 1, "minor": 1}])),
        ("/linux/sysctl", json!({"kernel.core_pattern": "|/bin/x"})),
        ("/linux/sysctl", json!({"net/../kernel.x": "1"})),
        ("/linux/resources/memory/disableOOMKiller", json!(true)),
    ];
    for (pointer, value) in cases {
        let mut changed = config();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let parent = changed.pointer_mut(parent).unwrap();
        match parent {
            Value::Array(items) => items[key.parse::<usize>().unwrap()] = value.clone(),
            parent => parent[key] = value.clone(),
        }
        let result = adapted(&changed);
        let refused = matches!(result, Err(AgentError::Invalid(_) | AgentError::Unsupported(_)));
        assert!(refused, "{pointer} = {value}: {result:?}");
    }
}
