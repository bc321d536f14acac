//! The agent's whole way, on a real kernel: storages, containers, processes, streams, ends.
//!
//! Needs root, cgroup v2, device-mapper, erofs and overlayfs, and a spare disk `/dev/vdb` that holds two layers,
//! so it runs in a virtual machine of its own and is ignored elsewhere. `UVM_TEST_LAYERS` names a JSON file that
//! describes the layers: `[{"offset": …, "length": …, "blocks": …, "hash": "…"}, …]`, bottom first. The bottom
//! layer has busybox's commands in `/bin`, the top one a file `/top` with the text "top layer".
//!
//! The server runs in this process on a Unix socket; runtime processes are the real `uvm-agent`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use agent_protocol::rpc::agent::*;
use agent_protocol::rpc::agent_ttrpc::AgentServiceClient;
use agent_protocol::storage::{LayerStorage, OverlayStorage, VerityInfo};
use agent_protocol::tee::Tee;
use agent_protocol::{oci, paths};
use protobuf::MessageField;
use serde::Deserialize;
use serde_json::{Value, json};
use ttrpc::r#async::Client;
use ttrpc::r#async::transport::{Listener, Socket};
use ttrpc::context::{Context, with_duration};
use uvm_agent::attestation::attester;
use uvm_agent::container::Services;
use uvm_agent::expectation::OnCorruption;
use uvm_agent::oom::OomWatch;
use uvm_agent::reaper::Reaper;
use uvm_agent::runtime::Runtime;
use uvm_agent::sandbox::Sandbox;
use uvm_agent::service::{Ending, serve};
use uvm_agent::storage::PodStorage;

const SOCKET: &str = "unix:///run/uvm-agent-test.sock";

#[derive(Deserialize)]
struct Layer {
    offset: u64,
    length: u64,
    blocks: u64,
    hash: String,
}

struct Guest {
    client: AgentServiceClient,
    layers: Vec<Layer>,
}

fn limit() -> Context {
    with_duration(Duration::from_secs(60))
}

impl Guest {
    async fn start() -> Self {
        let own = rustix::process::getpid();
        rustix::process::set_child_subreaper(Some(own)).unwrap();
        uvm_agent::init::enable_controllers().unwrap();
        let reaper = Reaper::start().unwrap();
        let runtime = Runtime::new(PathBuf::from(env!("CARGO_BIN_EXE_uvm-agent")), reaper);
        let storage = PodStorage::start(OnCorruption::Fail).unwrap();
        let sandbox = Arc::new(Sandbox::new(Services { runtime, oom: OomWatch::start().unwrap(), storage }));
        let server =
            serve(Listener::bind(SOCKET).unwrap(), sandbox, attester(Tee::None), Ending::Stay).await.unwrap();
        // The server lives as long as the test.
        std::mem::forget(server);
        let client = AgentServiceClient::new(Client::new(Socket::connect(SOCKET).await.unwrap()));
        let layers =
            std::env::var("UVM_TEST_LAYERS").expect("UVM_TEST_LAYERS names the description of the layers");
        let layers = serde_json::from_slice(&std::fs::read(layers).unwrap()).unwrap();
        Self { client, layers }
    }

    fn storages(&self, id: &str) -> Vec<Storage> {
        let layer = |layer: &Layer| LayerStorage {
            device: "/dev/vdb".to_owned(),
            offset: layer.offset,
            length: layer.length,
            verity: VerityInfo::sha256(&layer.hash, layer.blocks),
        };
        let layers: Vec<LayerStorage> = self.layers.iter().map(layer).collect();
        let lower = layers.iter().rev().map(LayerStorage::mount_point).collect();
        let overlay = OverlayStorage { lower, mount_point: paths::rootfs(id) };
        let mut storages: Vec<Storage> = layers.iter().map(|layer| layer.to_message().unwrap()).collect();
        storages.push(overlay.to_message());
        storages
    }

    fn request(&self, id: &str, args: &[&str], change: impl FnOnce(&mut Value)) -> CreateContainerRequest {
        let mut config = config(id, args);
        change(&mut config);
        let spec = oci::parse_config(config.to_string().as_bytes()).unwrap();
        CreateContainerRequest {
            container_id: id.to_owned(),
            exec_id: id.to_owned(),
            storages: self.storages(id),
            OCI: MessageField::some(oci::encode(&spec).unwrap()),
            ..Default::default()
        }
    }

    async fn create(&self, id: &str, args: &[&str], change: impl FnOnce(&mut Value)) -> ttrpc::Result<()> {
        self.client.create_container(limit(), &self.request(id, args, change)).await.map(|_| ())
    }

    async fn run(&self, id: &str, args: &[&str]) {
        self.create(id, args, |_| {}).await.unwrap();
        self.start_container(id).await.unwrap();
    }

    async fn start_container(&self, id: &str) -> ttrpc::Result<()> {
        let request = StartContainerRequest { container_id: id.to_owned(), ..Default::default() };
        self.client.start_container(limit(), &request).await.map(|_| ())
    }

    async fn wait(&self, id: &str, exec: &str) -> i32 {
        let request =
            WaitProcessRequest { container_id: id.into(), exec_id: exec.into(), ..Default::default() };
        self.client.wait_process(limit(), &request).await.unwrap().status
    }

    async fn output(&self, id: &str, exec: &str, stderr: bool) -> String {
        let request = ReadStreamRequest {
            container_id: id.into(),
            exec_id: exec.into(),
            len: 4096,
            ..Default::default()
        };
        let mut text = Vec::new();
        loop {
            let answer = match stderr {
                false => self.client.read_stdout(limit(), &request).await,
                true => self.client.read_stderr(limit(), &request).await,
            };
            match answer.unwrap().data {
                data if data.is_empty() => return String::from_utf8(text).unwrap(),
                data => text.extend(data),
            }
        }
    }

    async fn write(&self, id: &str, exec: &str, data: &[u8]) {
        let request = WriteStreamRequest {
            container_id: id.into(),
            exec_id: exec.into(),
            data: data.to_vec(),
            ..Default::default()
        };
        let taken = self.client.write_stdin(limit(), &request).await.unwrap().len;
        assert_eq!(usize::try_from(taken).unwrap(), data.len());
    }

    async fn exec(&self, id: &str, exec: &str, process: Value) -> ttrpc::Result<()> {
        let process = oci::parse_process(process.to_string().as_bytes()).unwrap();
        let request = ExecProcessRequest {
            container_id: id.into(),
            exec_id: exec.into(),
            process: MessageField::some(oci::encode_process(&process).unwrap()),
            ..Default::default()
        };
        self.client.exec_process(limit(), &request).await.map(|_| ())
    }

    async fn signal(&self, id: &str, exec: &str, signal: u32) -> ttrpc::Result<()> {
        let request = SignalProcessRequest {
            container_id: id.into(),
            exec_id: exec.into(),
            signal,
            ..Default::default()
        };
        self.client.signal_process(limit(), &request).await.map(|_| ())
    }

    async fn remove(&self, id: &str) {
        let request = RemoveContainerRequest { container_id: id.into(), timeout: 10, ..Default::default() };
        self.client.remove_container(limit(), &request).await.unwrap();
    }
}

fn process(args: &[&str]) -> Value {
    json!({
        "user": {"uid": 0, "gid": 0}, "args": args, "cwd": "/",
        "env": ["PATH=/bin", "COLOUR=blue"],
        "capabilities": {
            "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_MKNOD"],
            "effective": ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_MKNOD"],
            "permitted": ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_MKNOD"]
        },
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1000, "soft": 900}],
        "noNewPrivileges": false
    })
}

fn config(id: &str, args: &[&str]) -> Value {
    json!({
        "ociVersion": "1.0.2-dev",
        "process": process(args),
        "root": {"path": paths::rootfs(id)},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
                "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}
        ],
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "cgroupsPath": "/somewhere/else",
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}],
            "maskedPaths": ["/proc/kcore", "/proc/keys"],
            "readonlyPaths": ["/proc/sys"]
        }
    })
}

fn words(error: &ttrpc::Error) -> String {
    match error {
        ttrpc::Error::RpcStatus(status) => status.message().to_owned(),
        other => other.to_string(),
    }
}

#[tokio::test]
#[ignore = "needs a virtual machine with the layers on /dev/vdb"]
async fn containers_live_and_die() {
    let guest = Guest::start().await;
    let early = guest.create("early", &["true"], |_| {}).await.unwrap_err();
    assert!(words(&early).contains("sandbox has not been created"), "{early}");
    let request = CreateSandboxRequest {
        hostname: "pod-under-test".into(),
        sandbox_id: "pod".into(),
        ..Default::default()
    };
    guest.client.create_sandbox(limit(), &request).await.unwrap();
    assert!(guest.client.create_sandbox(limit(), &request).await.is_err());

    exit_codes_and_streams(&guest).await;
    eprintln!("ok: exit codes and streams");
    environment_of_a_process(&guest).await;
    eprintln!("ok: environment of a process");
    errors_in_words(&guest).await;
    eprintln!("ok: errors in words");
    further_processes(&guest).await;
    eprintln!("ok: further processes");
    terminals(&guest).await;
    eprintln!("ok: terminals");
    signals_and_freezing(&guest).await;
    eprintln!("ok: signals and freezing");
    memory_limit(&guest).await;
    eprintln!("ok: memory limit");
    shared_processes(&guest).await;
    eprintln!("ok: shared PID namespace");
    seccomp_holds_for_all(&guest).await;
    eprintln!("ok: seccomp");
    nothing_remains();
}

async fn exit_codes_and_streams(guest: &Guest) {
    guest.run("codes", &["sh", "-c", "cat /top; echo err >&2; exit 42"]).await;
    assert_eq!(guest.output("codes", "codes", false).await, "top layer\n");
    assert_eq!(guest.output("codes", "codes", true).await, "err\n");
    assert_eq!(guest.wait("codes", "codes").await, 42);
    assert_eq!(guest.wait("codes", "codes").await, 42);
    let again = guest.start_container("codes").await.unwrap_err();
    assert!(words(&again).contains("it ended with 42"), "{again}");
    guest.remove("codes").await;

    guest.run("cat", &["cat"]).await;
    guest.write("cat", "cat", b"through the pipe\n").await;
    let close = CloseStdinRequest { container_id: "cat".into(), exec_id: "cat".into(), ..Default::default() };
    guest.client.close_stdin(limit(), &close).await.unwrap();
    assert_eq!(guest.output("cat", "cat", false).await, "through the pipe\n");
    assert_eq!(guest.wait("cat", "cat").await, 0);
    guest.remove("cat").await;
}

async fn environment_of_a_process(guest: &Guest) {
    let script = "id -u; id -g; pwd; echo $COLOUR; hostname; ulimit -n; cat /proc/self/cgroup; \
        touch /x 2>/dev/null && echo written || echo refused; mknod /dev/y c 1 3 2>/dev/null && echo made || echo denied; \
        ps | wc -l";
    let change = |config: &mut Value| {
        config["process"]["user"] = json!({"uid": 1000, "gid": 100});
        config["process"]["cwd"] = json!("/tmp");
        config["root"]["readonly"] = json!(true);
    };
    guest.create("env", &["sh", "-c", script], change).await.unwrap();
    guest.start_container("env").await.unwrap();
    let output = guest.output("env", "env", false).await;
    let lines: Vec<&str> = output.lines().collect();
    let expected = ["1000", "100", "/tmp", "blue", "pod-under-test", "900", "0::/", "refused", "denied"];
    assert_eq!(lines[..9], expected, "{output}");
    // Its own PID namespace: the shell, ps, wc and a header, not the guest.
    assert!(lines[9].trim().parse::<u32>().unwrap() <= 5, "{output}");
    assert_eq!(guest.wait("env", "env").await, 0);
    guest.remove("env").await;

    // Without the right to make device nodes even root cannot.
    guest.run("root", &["sh", "-c", "mknod /dev/y c 1 3 2>/dev/null && echo made || echo denied"]).await;
    assert_eq!(guest.output("root", "root", false).await, "denied\n");
    guest.remove("root").await;
}

async fn errors_in_words(guest: &Guest) {
    let cases: [(&[&str], &str); 3] = [
        (&["no-such-command"], "executable file not found in $PATH"),
        (&["/no/such/file"], "No such file"),
        (&["/other-arch"], "another architecture"),
    ];
    for (args, expected) in cases {
        let error = guest.create("bad", args, |_| {}).await.unwrap_err();
        assert!(words(&error).contains(expected), "{error}");
    }
    let error = guest.create("../bad", &["true"], |_| {}).await.unwrap_err();
    assert!(words(&error).contains("id has"), "{error}");
    let wrong_hash = |storages: &mut Vec<Storage>, hash: &str| {
        let mut layer = LayerStorage::parse(&storages[0]).unwrap();
        layer.verity.hash = hash.to_owned();
        storages[0] = layer.to_message().unwrap();
    };
    let mut request = guest.request("bad", &["true"], |_| {});
    wrong_hash(&mut request.storages, &"0".repeat(64));
    let error = guest.client.create_container(limit(), &request).await.unwrap_err();
    assert!(words(&error).contains("does not match its root hash"), "{error}");
    // All of that left nothing behind: the same name works.
    guest.run("bad", &["true"]).await;
    let twice = guest.create("bad", &["true"], |_| {}).await.unwrap_err();
    assert!(words(&twice).contains("exists already"), "{twice}");
    assert_eq!(guest.wait("bad", "bad").await, 0);
    guest.remove("bad").await;
}

async fn further_processes(guest: &Guest) {
    guest.run("host", &["sleep", "1000"]).await;
    guest.exec("host", "e1", process(&["sh", "-c", "cat; echo $COLOUR; exit 7"])).await.unwrap();
    guest.write("host", "e1", b"typed\n").await;
    let close = CloseStdinRequest { container_id: "host".into(), exec_id: "e1".into(), ..Default::default() };
    guest.client.close_stdin(limit(), &close).await.unwrap();
    assert_eq!(guest.output("host", "e1", false).await, "typed\nblue\n");
    assert_eq!(guest.wait("host", "e1").await, 7);
    let missing = guest.exec("host", "e2", process(&["no-such-command"])).await.unwrap_err();
    assert!(words(&missing).contains("executable file not found"), "{missing}");
    // Many short processes in a row: no end is lost, and the agent forgets the old ones.
    for round in 0..20 {
        guest
            .exec("host", &format!("p{round}"), process(&["sh", "-c", &format!("exit {round}")]))
            .await
            .unwrap();
        assert_eq!(guest.wait("host", &format!("p{round}")).await, round);
    }
    let stats = StatsContainerRequest { container_id: "host".into(), ..Default::default() };
    let stats = guest.client.stats_container(limit(), &stats).await.unwrap();
    assert!(stats.cgroup_stats.cpu_stats.cpu_usage.total_usage > 0);
    assert!(stats.cgroup_stats.memory_stats.usage.usage > 0);
    assert_eq!(stats.cgroup_stats.pids_stats.current, 1);
    guest.remove("host").await;
}

async fn terminals(guest: &Guest) {
    let change = |config: &mut Value| {
        config["process"]["terminal"] = json!(true);
        config["process"]["consoleSize"] = json!({"height": 33, "width": 77});
    };
    guest.create("tty", &["sh", "-c", "tty; stty size; read line; echo got $line"], change).await.unwrap();
    let resize = TtyWinResizeRequest {
        container_id: "tty".into(),
        exec_id: "tty".into(),
        row: 44,
        column: 99,
        ..Default::default()
    };
    guest.start_container("tty").await.unwrap();
    guest.client.tty_win_resize(limit(), &resize).await.unwrap();
    guest.write("tty", "tty", b"words\n").await;
    let output = guest.output("tty", "tty", false).await;
    assert!(output.contains("/dev/") && output.contains("got words"), "{output}");
    assert!(output.contains("33 77") || output.contains("44 99"), "{output}");
    assert_eq!(guest.output("tty", "tty", true).await, "");
    assert_eq!(guest.wait("tty", "tty").await, 0);
    guest.remove("tty").await;

    guest.run("host", &["sleep", "1000"]).await;
    let mut shell = process(&["sh", "-c", "tty; exit 3"]);
    shell["terminal"] = json!(true);
    guest.exec("host", "t1", shell).await.unwrap();
    assert!(guest.output("host", "t1", false).await.contains("/dev/pts/"));
    assert_eq!(guest.wait("host", "t1").await, 3);
    guest.remove("host").await;
}

async fn signals_and_freezing(guest: &Guest) {
    guest.run("sig", &["sh", "-c", "trap 'exit 9' TERM; while true; do sleep 0.1; done"]).await;
    let pause = PauseContainerRequest { container_id: "sig".into(), ..Default::default() };
    guest.client.pause_container(limit(), &pause).await.unwrap();
    let refused = guest.exec("sig", "e", process(&["true"])).await.unwrap_err();
    assert!(words(&refused).contains("it is Paused"), "{refused}");
    let resume = ResumeContainerRequest { container_id: "sig".into(), ..Default::default() };
    guest.client.resume_container(limit(), &resume).await.unwrap();
    assert!(guest.client.resume_container(limit(), &resume).await.is_err());
    // The shell needs a moment to set its trap; until then the signal has no effect on a first process.
    tokio::time::sleep(Duration::from_secs(1)).await;
    guest.signal("sig", "sig", 15).await.unwrap();
    assert_eq!(guest.wait("sig", "sig").await, 9);
    guest.remove("sig").await;

    guest.run("kill", &["sleep", "1000"]).await;
    guest.exec("kill", "e1", process(&["sleep", "1000"])).await.unwrap();
    assert!(guest.signal("kill", "kill", 99).await.is_err());
    guest.signal("kill", "", 9).await.unwrap();
    assert_eq!((guest.wait("kill", "kill").await, guest.wait("kill", "e1").await), (137, 137));
    guest.remove("kill").await;

    // Created and never started; and removed while running.
    guest.create("fresh", &["true"], |_| {}).await.unwrap();
    guest.remove("fresh").await;
    guest.run("busy", &["sh", "-c", "while true; do :; done"]).await;
    guest.remove("busy").await;
}

async fn memory_limit(guest: &Guest) {
    let change = |config: &mut Value| {
        config["linux"]["resources"]["memory"] = json!({"limit": 16 << 20, "swap": 16 << 20});
    };
    // The root file system's writable part is memory, charged to whoever writes.
    guest.create("oom", &["dd", "if=/dev/zero", "of=/fill", "bs=1M", "count=64"], change).await.unwrap();
    guest.start_container("oom").await.unwrap();
    let event = guest.client.get_oom_event(limit(), &GetOOMEventRequest::new()).await.unwrap();
    assert_eq!(event.container_id, "oom");
    assert_eq!(guest.wait("oom", "oom").await, 137);
    guest.remove("oom").await;

    guest.run("upd", &["sleep", "1000"]).await;
    let resources = oci::parse_resources(
        json!({"memory": {"limit": 32 << 20}, "pids": {"limit": 50}}).to_string().as_bytes(),
    );
    let update = UpdateContainerRequest {
        container_id: "upd".into(),
        resources: MessageField::some(oci::encode_resources(&resources.unwrap()).unwrap()),
        ..Default::default()
    };
    guest.client.update_container(limit(), &update).await.unwrap();
    let stats = StatsContainerRequest { container_id: "upd".into(), ..Default::default() };
    let stats = guest.client.stats_container(limit(), &stats).await.unwrap();
    assert_eq!(
        (stats.cgroup_stats.memory_stats.usage.limit, stats.cgroup_stats.pids_stats.limit),
        (32 << 20, 50)
    );
    guest.remove("upd").await;
}

async fn shared_processes(guest: &Guest) {
    for id in ["one", "two"] {
        let mut request = guest.request(id, &["sh", "-c", "sleep 1000 & exec sleep 2000"], |_| {});
        request.sandbox_pidns = true;
        guest.client.create_container(limit(), &request).await.unwrap();
        guest.start_container(id).await.unwrap();
    }
    guest.exec("two", "ps", process(&["ps"])).await.unwrap();
    let output = guest.output("two", "ps", false).await;
    assert!(output.matches("sleep 2000").count() >= 2, "{output}");
    guest.wait("two", "ps").await;
    guest.remove("one").await;
    guest.remove("two").await;
}

async fn seccomp_holds_for_all(guest: &Guest) {
    let filter = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]
    });
    let change = |config: &mut Value| config["linux"]["seccomp"] = filter;
    let try_it = "mkdir /tmp/d 2>&1; sleep 1000";
    guest.create("sec", &["sh", "-c", try_it], change).await.unwrap();
    guest.start_container("sec").await.unwrap();
    guest.exec("sec", "e1", process(&["mkdir", "/tmp/e"])).await.unwrap();
    let output = guest.output("sec", "e1", true).await;
    assert!(output.contains("Function not implemented"), "{output}");
    assert_ne!(guest.wait("sec", "e1").await, 0);
    guest.signal("sec", "", 9).await.unwrap();
    let output = guest.output("sec", "sec", false).await;
    assert!(output.contains("Function not implemented"), "{output}");
    guest.remove("sec").await;
}

/// Mounts, devices, groups and directories are all gone.
fn nothing_remains() {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let ours: Vec<&str> =
        mounts.lines().filter(|line| line.contains("/run/uvm/") || line.contains("/rootfs")).collect();
    assert!(ours.is_empty(), "{ours:?}");
    let list = |path: &str| -> HashMap<String, bool> {
        let Ok(entries) = std::fs::read_dir(path) else { return HashMap::new() };
        let entry =
            |entry: std::fs::DirEntry| (entry.file_name().into_string().unwrap(), entry.path().is_dir());
        entries.flatten().map(entry).collect()
    };
    let groups = list("/sys/fs/cgroup/uvm");
    assert!(groups.values().all(|is_directory| !is_directory), "{groups:?}");
    let devices = list("/sys/class/block");
    assert!(devices.keys().all(|name| !name.starts_with("dm-")), "{devices:?}");
    for directory in
        ["/run/uvm/runtime", "/run/uvm/bundles", "/run/uvm/console", "/run/uvm/layers", "/run/uvm/upper"]
    {
        assert!(list(directory).is_empty(), "{directory}");
    }
}
