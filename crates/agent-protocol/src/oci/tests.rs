//! Round trips of the kind of configuration that containerd writes, and what must be refused.

use serde_json::{Value, json};

use super::*;

/// As `ctr run` and CRI of containerd 1.6 write it, with each list cut to what differs.
fn config() -> Value {
    json!({
        "ociVersion": "1.0.2-dev",
        "process": {
            "terminal": true,
            "consoleSize": {"height": 24, "width": 80},
            "user": {"uid": 1000, "gid": 0, "additionalGids": [10, 20], "username": "app"},
            "args": ["redis-server", "--save", ""],
            "env": ["PATH=/usr/bin", "EMPTY="],
            "cwd": "/data",
            "capabilities": {
                "bounding": ["CAP_CHOWN", "CAP_NET_BIND_SERVICE"], "effective": ["CAP_CHOWN"],
                "permitted": ["CAP_CHOWN"], "inheritable": ["CAP_KILL"], "ambient": []
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 0}],
            "noNewPrivileges": true,
            "apparmorProfile": "cri-containerd.apparmor.d",
            "oomScoreAdj": -998,
            "selinuxLabel": "x"
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "pod",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec"]},
            {"destination": "/etc/hosts", "type": "bind", "source": "/h", "options": ["rbind", "rprivate", "rw"]}
        ],
        "hooks": {"poststop": [{"path": "/bin/true", "args": ["a"], "env": ["B=c"], "timeout": 3}]},
        "annotations": {"io.kubernetes.cri.container-type": "container"},
        "linux": {
            "uidMappings": [{"hostID": 0, "containerID": 0, "size": 1}],
            "sysctl": {"net.ipv4.ip_unprivileged_port_start": "0"},
            "resources": {
                "devices": [
                    {"allow": false, "access": "rwm"},
                    {"allow": true, "type": "c", "major": 1, "minor": 0, "access": "rwm"},
                    {"allow": true, "type": "b", "major": 8, "access": "m"}
                ],
                "memory": {"limit": 134217728, "swap": -1, "reservation": 5},
                "cpu": {"shares": 2, "quota": -1, "period": 100000, "cpus": "0-1", "mems": "0"},
                "pids": {"limit": 100},
                "blockIO": {"weight": 10, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 7}]},
                "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
                "unified": {"memory.oom.group": "1"}
            },
            "cgroupsPath": "/k8s.io/c1",
            "namespaces": [{"type": "pid"}, {"type": "ipc", "path": "/proc/1/ns/ipc"}, {"type": "mount"},
                {"type": "network"}, {"type": "uts"}, {"type": "cgroup"}],
            "devices": [{"path": "/dev/x", "type": "c", "major": 10, "minor": 0, "fileMode": 438, "uid": 0, "gid": 5}],
            "seccomp": {
                "defaultAction": "SCMP_ACT_ERRNO",
                "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
                "flags": ["SECCOMP_FILTER_FLAG_LOG"],
                "syscalls": [
                    {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"},
                    {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
                    {"names": ["x"], "action": "SCMP_ACT_ERRNO", "errnoRet": 0},
                    {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [
                        {"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]}
                ]
            },
            "rootfsPropagation": "rslave",
            "maskedPaths": ["/proc/kcore"],
            "readonlyPaths": ["/proc/sys"],
            "intelRdt": {"l3CacheSchema": "L3:0=f"}
        }
    })
}

fn parsed(config: &Value) -> Spec {
    parse_config(config.to_string().as_bytes()).unwrap()
}

#[test]
fn a_containerd_configuration_survives_the_wire() {
    let spec = parsed(&config());
    let message = encode(&spec).unwrap();
    let back = decode(&message).unwrap();
    // Empty and absent are the same on the wire; everything else must be equal.
    assert_eq!(
        loss::find(&serde_json::to_value(&spec).unwrap(), &serde_json::to_value(&back).unwrap()),
        None
    );
    assert_eq!(loss::find(&config(), &serde_json::to_value(&back).unwrap()), None);
    // And nothing is invented on the way: a second trip gives the same message.
    assert_eq!(encode(&back).unwrap(), message);
    assert_eq!(message.Linux.Resources.Devices[0].Major, -1);
}

#[test]
fn a_zero_limit_stays_unset() {
    let spec = parsed(&json!({"ociVersion": "1.0.2", "linux": {"resources": {"memory": {"limit": 0}}}}));
    let back = decode(&encode(&spec).unwrap()).unwrap();
    let memory =
        back.linux().as_ref().and_then(|linux| linux.resources().as_ref()?.memory().as_ref().cloned());
    assert_eq!(memory.unwrap().limit(), None);
}

#[test]
fn what_the_protocol_cannot_carry_is_named() {
    let cases: [(&str, Value); 8] = [
        ("/domainname", json!("example")),
        ("/process/user/umask", json!(18)),
        ("/process/scheduler", json!({"policy": "SCHED_BATCH", "nice": 3})),
        ("/hooks/createRuntime", json!([{"path": "/bin/x"}])),
        ("/linux/seccomp/defaultErrnoRet", json!(38)),
        ("/linux/personality", json!({"domain": "LINUX32"})),
        ("/linux/resources/cpu/burst", json!(5)),
        ("/linux/timeOffsets", json!({"boottime": {"secs": 3}})),
    ];
    for (pointer, value) in cases {
        let mut changed = config();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        changed.pointer_mut(parent).unwrap()[key] = value;
        match encode(&parsed(&changed)) {
            Err(OciError::Lost { field, .. }) => assert!(field.starts_with(pointer), "{field} for {pointer}"),
            other => panic!("{pointer}: {other:?}"),
        }
    }
}

#[test]
fn unknown_keys_and_values_are_refused() {
    let mut unknown = config();
    unknown["linux"]["futureField"] = json!({"x": 1});
    let error = parse_config(unknown.to_string().as_bytes()).unwrap_err();
    assert!(matches!(&error, OciError::Lost { field, .. } if field == "/linux/futureField"), "{error}");

    let mut message = encode(&parsed(&config())).unwrap();
    message.Linux.mut_or_insert_default().Namespaces[0].Type = "solar".to_owned();
    assert!(matches!(decode(&message), Err(OciError::Json { .. })));
    let mut message = encode(&parsed(&config())).unwrap();
    message.Windows = protobuf::MessageField::some(rpc::oci::Windows::new());
    assert!(matches!(decode(&message), Err(OciError::Platform("Windows"))));
    assert!(matches!(parse_config(&vec![b' '; MAX_CONFIG + 1]), Err(OciError::Length(_))));
    assert!(matches!(parse_config(b"{"), Err(OciError::Json { .. })));
}

#[test]
fn a_console_size_that_does_not_fit_is_refused() {
    let mut changed = config();
    changed["process"]["consoleSize"]["width"] = json!(1_u64 << 32);
    assert!(matches!(encode(&parsed(&changed)), Err(OciError::Range { field: "consoleSize.width", .. })));
}

#[test]
fn processes_and_resources_travel_alone() {
    let process = parse_process(config()["process"].to_string().as_bytes()).unwrap();
    assert_eq!(decode_process(&encode_process(&process).unwrap()).unwrap().args(), process.args());
    let resources = parse_resources(config()["linux"]["resources"].to_string().as_bytes()).unwrap();
    assert_eq!(
        decode_resources(&encode_resources(&resources).unwrap()).unwrap().memory(),
        resources.memory()
    );
}
