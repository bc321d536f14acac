//! A shim's task service with everything around it: containerd's event socket, bundles, a layer, FIFOs.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use containerd_shim::protos::api::{
    CreateTaskRequest, DeleteRequest, DeleteResponse, Empty, Mount, StartRequest, StateRequest, Status,
    WaitRequest,
};
use containerd_shim::protos::events::task::{TaskExecAdded, TaskExecStarted, TaskExit};
use containerd_shim::protos::protobuf::Message;
use containerd_shim::protos::protobuf::well_known_types::any::Any;
use containerd_shim::protos::shim::events::ForwardRequest;
use containerd_shim::protos::shim_async::{Events, TaskClient, create_events};
use protobuf::CodedOutputStream;
use serde_json::{Value, json};
use shim::events::Publisher;
use shim::sandbox::{Pod, Settings};
use shim::state_dir::StateDir;
use shim::task::TaskService;
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::Notify;
use ttrpc::asynchronous::{Client, Server, TtrpcContext};
use ttrpc::context::{Context, with_duration};
use ttrpc::{Code, Result};

use crate::guest::FakeDriver;

/// Longest time for anything in these tests.
pub const LIMIT: Duration = Duration::from_secs(20);

#[derive(Clone, Default)]
struct EventLog(Arc<Mutex<Vec<String>>>);

#[async_trait]
impl Events for EventLog {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> Result<Empty> {
        let envelope = request.envelope.unwrap();
        let topic = envelope.topic.strip_prefix("/tasks/").unwrap();
        let bytes = &envelope.event.value;
        let entry = match topic {
            "exit" => {
                let exit = TaskExit::parse_from_bytes(bytes).unwrap();
                format!("exit {} {}", exit.id, exit.exit_status)
            }
            "exec-added" => format!("exec-added {}", TaskExecAdded::parse_from_bytes(bytes).unwrap().exec_id),
            "exec-started" => {
                format!("exec-started {}", TaskExecStarted::parse_from_bytes(bytes).unwrap().exec_id)
            }
            // The container's id is field 1 of every other event.
            other => format!("{other} {}", TaskExecAdded::parse_from_bytes(bytes).unwrap().container_id),
        };
        self.0.lock().unwrap().push(entry);
        Ok(Empty::default())
    }
}

pub struct Harness {
    pub client: TaskClient,
    pub raw: Client,
    pub driver: FakeDriver,
    pub dir: TempDir,
    pub shut_down: Arc<Notify>,
    /// More of the runtime's configuration.
    pub config: String,
    publisher: Publisher,
    events: EventLog,
    _servers: Vec<Server>,
}

impl Harness {
    /// A shim that serves the pod `pod`.
    pub async fn new(pod: &str, driver: FakeDriver) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layer = dir.path().join("layer");
        fs::create_dir(&layer).unwrap();
        fs::write(layer.join("file"), "content").unwrap();

        let events = EventLog::default();
        let address = format!("unix://{}", dir.path().join("events").display());
        let service = create_events(Arc::new(events.clone()));
        let mut containerd = Server::new().bind(&address).unwrap().register_service(service);
        containerd.start().await.unwrap();

        let publisher = Publisher::new("ns", &address);
        let state = StateDir::new(&dir.path().join("s"), "ns", pod);
        let shut_down = Arc::new(Notify::new());
        let settings = Settings {
            driver: Arc::new(driver.clone()),
            publisher: publisher.clone(),
            id: pod.into(),
            state,
        };
        let task = TaskService::new(Pod::start(settings), Arc::clone(&shut_down));
        let address = format!("unix://{}", dir.path().join("shim").display());
        let services = shim::bootstrap::services(Arc::new(task));
        let mut server = Server::new().bind(&address).unwrap().register_service(services);
        server.start().await.unwrap();

        let raw = Client::connect(&address).await.unwrap();
        let client = TaskClient::new(raw.clone());
        Self {
            client,
            raw,
            driver,
            dir,
            shut_down,
            config: String::new(),
            publisher,
            events,
            _servers: vec![containerd, server],
        }
    }

    pub fn context() -> Context {
        with_duration(LIMIT)
    }

    /// Events so far, delivered.
    pub async fn events(&self) -> Vec<String> {
        self.publisher.flush(LIMIT).await;
        self.events.0.lock().unwrap().clone()
    }

    /// Whether anything of the pod is left on the host.
    pub fn state_is_gone(&self) -> bool {
        fs::read_dir(self.dir.path().join("s")).is_ok_and(|mut entries| entries.next().is_none())
    }

    pub fn fifo(&self, name: &str) -> String {
        let path = self.dir.path().join(name);
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
        path.display().to_string()
    }

    fn options(&self) -> Any {
        let cache = self.dir.path().join("cache");
        let dir = self.dir.path().display();
        let text = format!(
            "image = \"/i\"\nrootfs = \"/r\"\ncache = {:?}\nscratch_dir = \"{dir}/scratch\"\n\
             kubelet_root = \"{dir}/kubelet\"\n{}",
            cache.display().to_string(),
            self.config
        );
        let mut value = Vec::new();
        let mut out = CodedOutputStream::vec(&mut value);
        out.write_string(3, &text).unwrap();
        out.flush().unwrap();
        drop(out);
        Any { type_url: "runtimeoptions.v1.Options".into(), value, ..Any::default() }
    }

    /// A request to create `id` running `args`, with a bundle to go with it.
    pub fn request(&self, id: &str, args: &[&str], annotations: Value) -> CreateTaskRequest {
        let bundle = self.dir.path().join("bundles").join(id);
        fs::create_dir_all(&bundle).unwrap();
        let hosts = self.dir.path().join("hosts");
        fs::write(&hosts, "127.0.0.1 localhost").unwrap();
        let spec = json!({
            "ociVersion": "1.0.2",
            "process": { "user": { "uid": 0, "gid": 0 }, "args": args, "cwd": "/" },
            "root": { "path": "rootfs" },
            "hostname": "name",
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/etc/hosts", "type": "bind", "source": hosts, "options": ["rbind", "ro"] }
            ],
            "linux": { "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "network" }] },
            "annotations": annotations
        });
        fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
        let layer = self.dir.path().join("layer").display().to_string();
        let rootfs = Mount {
            type_: "bind".into(),
            source: layer,
            options: vec!["ro".into(), "rbind".into()],
            ..Mount::default()
        };
        CreateTaskRequest {
            id: id.into(),
            bundle: bundle.display().to_string(),
            rootfs: vec![rootfs],
            options: Some(self.options()).into(),
            ..CreateTaskRequest::default()
        }
    }

    /// Layers as the snapshotter keeps them, stacked; the first is at the bottom. A layer's number says what it is
    /// and how many blocks it has.
    pub fn snapshot(&self, layers: &[u64]) -> Mount {
        let lower = layers.iter().rev().map(|number| {
            let directory = self.dir.path().join(format!("store/layers/{number}"));
            fs::create_dir_all(directory.join("fs")).unwrap();
            let length = number * 4096;
            fs::File::create(directory.join("layer")).unwrap().set_len(length).unwrap();
            let json = json!({
                "version": 1, "diff_id": null, "root_hash": format!("{number:064x}"), "data_blocks": 1, "length": length
            });
            fs::write(directory.join("layer.json"), json.to_string()).unwrap();
            directory.join("fs").display().to_string()
        });
        let lower = lower.collect::<Vec<_>>().join(":");
        let options = vec![format!("lowerdir={lower}")];
        Mount { type_: "overlay".into(), source: "overlay".into(), options, ..Mount::default() }
    }

    /// Adds a bind mount to the spec in `request`'s bundle.
    pub fn bind(&self, request: &CreateTaskRequest, source: &Path, destination: &str) {
        let path = Path::new(&request.bundle).join("config.json");
        let mut spec: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let mount =
            json!({ "destination": destination, "type": "bind", "source": source, "options": ["rbind"] });
        spec["mounts"].as_array_mut().unwrap().push(mount);
        fs::write(&path, spec.to_string()).unwrap();
    }

    /// A request to create a sandbox.
    pub fn sandbox(&self, id: &str) -> CreateTaskRequest {
        let annotations =
            json!({ "io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": id });
        self.request(id, &["pause"], annotations)
    }

    /// A request to create a container in a sandbox.
    pub fn member(&self, id: &str, sandbox: &str, args: &[&str]) -> CreateTaskRequest {
        let annotations = json!({ "io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": sandbox });
        self.request(id, args, annotations)
    }

    pub async fn create(&self, request: &CreateTaskRequest) {
        self.client.create(Self::context(), request).await.unwrap();
    }

    pub async fn start(&self, id: &str, exec: &str) -> Result<u32> {
        let request = StartRequest { id: id.into(), exec_id: exec.into(), ..StartRequest::default() };
        self.client.start(Self::context(), &request).await.map(|response| response.pid)
    }

    pub async fn run(&self, request: &CreateTaskRequest) {
        self.create(request).await;
        self.start(&request.id, "").await.unwrap();
    }

    pub async fn wait(&self, id: &str, exec: &str) -> u32 {
        let request = WaitRequest { id: id.into(), exec_id: exec.into(), ..WaitRequest::default() };
        self.client.wait(Self::context(), &request).await.unwrap().exit_status
    }

    pub async fn delete(&self, id: &str, exec: &str) -> Result<DeleteResponse> {
        let request = DeleteRequest { id: id.into(), exec_id: exec.into(), ..DeleteRequest::default() };
        self.client.delete(Self::context(), &request).await
    }

    pub async fn status(&self, id: &str, exec: &str) -> Status {
        let request = StateRequest { id: id.into(), exec_id: exec.into(), ..StateRequest::default() };
        self.client.state(Self::context(), &request).await.unwrap().status.unwrap()
    }
}

/// The code of a refusal.
pub fn code<T: std::fmt::Debug>(result: Result<T>) -> Code {
    match result.unwrap_err() {
        ttrpc::Error::RpcStatus(status) => status.code(),
        other => panic!("expected a status, found {other}"),
    }
}

/// Reads a FIFO to its end.
pub fn reader(path: &str) -> tokio::task::JoinHandle<String> {
    let mut fifo = pipe::OpenOptions::new().open_receiver(path).unwrap();
    tokio::spawn(async move {
        let mut text = String::new();
        tokio::time::timeout(LIMIT, fifo.read_to_string(&mut text)).await.unwrap().unwrap();
        text
    })
}
