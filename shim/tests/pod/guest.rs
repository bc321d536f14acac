//! A machine that is none: a driver whose "guest" is an agent in this process, behind a hybrid vsock socket.
//!
//! What a process of this guest does is in its arguments: `print TEXT`, `exit STATUS`, `cat`, `sleep`, `absent`
//! (the start fails), `hang` (the creation never returns), `refuse` (the creation is refused).

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent_protocol::paths;
use agent_protocol::rpc::agent::*;
use agent_protocol::rpc::agent_ttrpc::{AgentService, create_agent_service};
use agent_protocol::rpc::oci;
use async_trait::async_trait;
use launch::control::Segment;
use launch::plan::HostData;
use protobuf::well_known_types::empty::Empty;
use shim::sandbox::vm::{Launch, Vm, VmDriver, VmError};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, TtrpcContext};
use ttrpc::{Code, Result};
use vmm_client::ClientError;

/// A process of the guest.
struct Process {
    args: Vec<String>,
    stdin: Option<mpsc::UnboundedSender<Vec<u8>>>,
    stdout: Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<Vec<u8>>>>,
    output: Option<mpsc::UnboundedSender<Vec<u8>>>,
    status: watch::Sender<Option<i32>>,
}

impl Process {
    fn new(spec: &oci::Process) -> Self {
        let (output, stdout) = mpsc::unbounded_channel();
        let stdout = Arc::new(tokio::sync::Mutex::new(stdout));
        Self {
            args: spec.Args.clone(),
            stdin: None,
            stdout,
            output: Some(output),
            status: watch::Sender::new(None),
        }
    }

    fn run(&mut self) -> Result<()> {
        let argument = self.args.get(1).cloned().unwrap_or_default();
        match self.args[0].as_str() {
            "print" => {
                if let Some(output) = self.output.take() {
                    output.send(argument.into_bytes()).unwrap();
                }
                self.end(0);
            }
            "exit" => self.end(argument.parse().unwrap()),
            "cat" => {
                let (stdin, mut input) = mpsc::unbounded_channel();
                let (output, status) = (self.output.take().unwrap(), self.status.clone());
                self.stdin = Some(stdin);
                tokio::spawn(async move {
                    while let Some(bytes) = input.recv().await {
                        output.send(bytes).unwrap();
                    }
                    status.send_replace(Some(0));
                });
            }
            "sleep" => {}
            other => return Err(refusal(Code::NOT_FOUND, &format!("command not found: {other}"))),
        }
        Ok(())
    }

    fn end(&mut self, status: i32) {
        self.output = None;
        self.stdin = None;
        self.status.send_replace(Some(status));
    }
}

fn refusal(code: Code, message: &str) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, message))
}

/// What the machine and its agent were asked, in order.
#[derive(Clone, Default)]
pub struct Journal(Arc<Mutex<Vec<String>>>);

impl Journal {
    fn add(&self, entry: impl Into<String>) {
        self.0.lock().unwrap().push(entry.into());
    }

    /// All entries so far.
    pub fn entries(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

#[derive(Default)]
struct FakeAgent {
    processes: Mutex<HashMap<(String, String), Process>>,
    journal: Journal,
}

impl FakeAgent {
    fn with<T>(&self, container: &str, exec: &str, use_it: impl FnOnce(&mut Process) -> T) -> Result<T> {
        let mut processes = self.processes.lock().unwrap();
        let process = processes.get_mut(&(container.to_owned(), exec.to_owned()));
        process.map(use_it).ok_or_else(|| refusal(Code::NOT_FOUND, "no such process"))
    }

    fn add(&self, container: &str, exec: &str, spec: &oci::Process) {
        self.processes.lock().unwrap().insert((container.into(), exec.into()), Process::new(spec));
    }
}

#[async_trait]
impl AgentService for FakeAgent {
    async fn create_sandbox(&self, _: &TtrpcContext, request: CreateSandboxRequest) -> Result<Empty> {
        self.journal.add(format!("sandbox {} {}", request.sandbox_id, request.hostname));
        for storage in request.storages {
            self.journal.add(format!("{} at {}", storage.driver_options.join(" "), storage.source));
        }
        Ok(Empty::new())
    }

    async fn create_container(&self, _: &TtrpcContext, request: CreateContainerRequest) -> Result<Empty> {
        let storages = request.storages.iter().map(|storage| storage.driver.as_str()).collect::<Vec<_>>();
        self.journal.add(format!("create {} {}", request.container_id, storages.join("+")));
        for mount in &request.OCI.Mounts {
            if mount.source.starts_with(paths::SANDBOX) {
                self.journal.add(format!("bind {} {}", mount.source, mount.destination));
            }
        }
        let spec = &request.OCI.Process;
        if spec.Args[0] == "refuse" {
            return Err(refusal(Code::INVALID_ARGUMENT, "layer does not match its root hash"));
        }
        if spec.Args[0] == "hang" {
            std::future::pending::<()>().await;
        }
        self.add(&request.container_id, &request.exec_id, spec);
        Ok(Empty::new())
    }

    async fn start_container(&self, _: &TtrpcContext, request: StartContainerRequest) -> Result<Empty> {
        self.with(&request.container_id, &request.container_id, Process::run)??;
        Ok(Empty::new())
    }

    async fn remove_container(&self, _: &TtrpcContext, request: RemoveContainerRequest) -> Result<Empty> {
        self.journal.add(format!("remove {}", request.container_id));
        Ok(Empty::new())
    }

    async fn exec_process(&self, _: &TtrpcContext, request: ExecProcessRequest) -> Result<Empty> {
        self.add(&request.container_id, &request.exec_id, &request.process);
        self.with(&request.container_id, &request.exec_id, Process::run)??;
        Ok(Empty::new())
    }

    async fn signal_process(&self, _: &TtrpcContext, request: SignalProcessRequest) -> Result<Empty> {
        self.journal.add(format!("signal {} {:?} {}", request.container_id, request.exec_id, request.signal));
        let status = 128 + i32::try_from(request.signal).unwrap();
        let mut processes = self.processes.lock().unwrap();
        for ((container, exec), process) in processes.iter_mut() {
            let all = request.exec_id.is_empty();
            if *container == request.container_id && (all || *exec == request.exec_id) {
                process.end(status);
            }
        }
        Ok(Empty::new())
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        request: WaitProcessRequest,
    ) -> Result<WaitProcessResponse> {
        let ended = self.with(&request.container_id, &request.exec_id, |process| process.status.subscribe());
        let mut ended = ended?;
        let status = ended.wait_for(Option::is_some).await.unwrap().unwrap();
        Ok(WaitProcessResponse { status, ..Default::default() })
    }

    async fn read_stdout(&self, _: &TtrpcContext, request: ReadStreamRequest) -> Result<ReadStreamResponse> {
        let stdout = self.with(&request.container_id, &request.exec_id, |process| process.stdout.clone())?;
        let data = stdout.lock().await.recv().await.unwrap_or_default();
        Ok(ReadStreamResponse { data, ..Default::default() })
    }

    async fn read_stderr(&self, _: &TtrpcContext, _: ReadStreamRequest) -> Result<ReadStreamResponse> {
        Ok(ReadStreamResponse::default())
    }

    async fn write_stdin(
        &self,
        _: &TtrpcContext,
        request: WriteStreamRequest,
    ) -> Result<WriteStreamResponse> {
        // Less than was offered: whoever writes must come back with the rest.
        let taken = request.data[..request.data.len().min(3)].to_vec();
        let len = u32::try_from(taken.len()).unwrap();
        self.with(&request.container_id, &request.exec_id, |process| {
            process.stdin.as_ref().unwrap().send(taken).unwrap();
        })?;
        Ok(WriteStreamResponse { len, ..Default::default() })
    }

    async fn close_stdin(&self, _: &TtrpcContext, request: CloseStdinRequest) -> Result<Empty> {
        self.with(&request.container_id, &request.exec_id, |process| process.stdin = None)?;
        Ok(Empty::new())
    }

    async fn tty_win_resize(&self, _: &TtrpcContext, request: TtyWinResizeRequest) -> Result<Empty> {
        self.journal.add(format!("resize {} {}x{}", request.container_id, request.row, request.column));
        Ok(Empty::new())
    }

    async fn pause_container(&self, _: &TtrpcContext, request: PauseContainerRequest) -> Result<Empty> {
        self.journal.add(format!("pause {}", request.container_id));
        Ok(Empty::new())
    }

    async fn resume_container(&self, _: &TtrpcContext, request: ResumeContainerRequest) -> Result<Empty> {
        self.journal.add(format!("resume {}", request.container_id));
        Ok(Empty::new())
    }

    async fn update_container(&self, _: &TtrpcContext, request: UpdateContainerRequest) -> Result<Empty> {
        self.journal.add(format!("update {} {}", request.container_id, request.resources.Memory.Limit));
        Ok(Empty::new())
    }

    async fn stats_container(
        &self,
        _: &TtrpcContext,
        _: StatsContainerRequest,
    ) -> Result<StatsContainerResponse> {
        let mut stats = StatsContainerResponse::default();
        let memory = stats.cgroup_stats.mut_or_insert_default().memory_stats.mut_or_insert_default();
        memory.usage.mut_or_insert_default().usage = 12345;
        Ok(stats)
    }

    async fn copy_file(&self, _: &TtrpcContext, request: CopyFileRequest) -> Result<Empty> {
        self.journal.add(format!("copy {}", String::from_utf8_lossy(&request.data)));
        Ok(Empty::new())
    }

    async fn get_oom_event(&self, _: &TtrpcContext, _: GetOOMEventRequest) -> Result<OOMEvent> {
        std::future::pending().await
    }
}

/// Answers `CONNECT` and leaves the rest of the stream to the agent.
async fn handshake(stream: UnixStream) -> std::io::Result<UnixStream> {
    // A buffer of one byte, so that nothing of what follows is taken.
    let mut reader = BufReader::with_capacity(1, stream);
    let mut line = String::new();
    reader.read_line(&mut line).await?;
    assert_eq!(line, "CONNECT 1024\n");
    let mut stream = reader.into_inner();
    stream.write_all(b"OK 5\n").await?;
    Ok(stream)
}

/// Starts machines that are none.
#[derive(Clone, Default)]
pub struct FakeDriver {
    /// What they were asked.
    pub journal: Journal,
    /// Makes each launch fail.
    pub broken: bool,
    /// Makes the machine refuse to attach anything at this position.
    pub refused: Option<u64>,
    /// The machine that was started last.
    pub machine: Arc<Mutex<Option<Arc<FakeVm>>>>,
}

impl FakeDriver {
    /// Ends the machine as a crash would.
    pub async fn crash(&self) {
        let machine = self.machine.lock().unwrap().clone().unwrap();
        machine.end("guest kernel panicked").await;
    }
}

#[async_trait]
impl VmDriver for FakeDriver {
    async fn launch(&self, launch: Launch) -> std::result::Result<Arc<dyn Vm>, VmError> {
        self.journal.add(format!("launch {} {}", launch.plan.vcpus, launch.plan.memory_mib));
        if launch.plan.host_data != HostData::default() {
            self.journal.add(format!("host data {}", launch.plan.host_data));
        }
        if self.broken {
            return Err(VmError::Ended("launch refused: /dev/kvm is missing".into()));
        }
        let agent = FakeAgent { journal: self.journal.clone(), ..FakeAgent::default() };
        let listener = UnixListener::bind(&launch.plan.vsock).unwrap();
        let connections = futures::stream::unfold(listener, |listener| async move {
            let (stream, _) = listener.accept().await.ok()?;
            Some((handshake(stream).await, listener))
        });
        let service = create_agent_service(Arc::new(agent));
        let mut server = Server::new().add_listener(Listener::new(connections)).register_service(service);
        server.start().await.unwrap();
        let vm = Arc::new(FakeVm {
            vsock: launch.plan.vsock,
            journal: self.journal.clone(),
            refused: self.refused,
            server: tokio::sync::Mutex::new(server),
            ended: watch::Sender::new(None),
        });
        *self.machine.lock().unwrap() = Some(Arc::clone(&vm));
        Ok(vm)
    }
}

/// A machine that is none.
pub struct FakeVm {
    vsock: PathBuf,
    journal: Journal,
    refused: Option<u64>,
    server: tokio::sync::Mutex<Server>,
    ended: watch::Sender<Option<String>>,
}

impl FakeVm {
    async fn end(&self, why: &str) {
        if self.ended.borrow().is_none() {
            self.ended.send_replace(Some(why.into()));
            let limit = Duration::from_millis(200);
            let _ = tokio::time::timeout(limit, self.server.lock().await.disconnect()).await;
        }
    }
}

#[async_trait]
impl Vm for FakeVm {
    fn pid(&self) -> u32 {
        std::process::id()
    }

    fn vsock(&self) -> &Path {
        &self.vsock
    }

    async fn attach(
        &self,
        slot: u32,
        at: u64,
        segments: Vec<(File, Segment)>,
    ) -> std::result::Result<(), VmError> {
        let lengths: Vec<String> = segments.iter().map(|(_, segment)| segment.length.to_string()).collect();
        if self.refused == Some(at) {
            return Err(ClientError::Refused("no".into()).into());
        }
        self.journal.add(format!("attach {slot}@{at} {}", lengths.join("+")));
        Ok(())
    }

    async fn detach(&self, slot: u32, at: u64) -> std::result::Result<(), VmError> {
        self.journal.add(format!("detach {slot}@{at}"));
        Ok(())
    }

    async fn stop(&self) {
        self.journal.add("stop");
        self.end("stopped on request").await;
    }

    async fn wait(&self) -> String {
        let mut ended = self.ended.subscribe();
        ended.wait_for(Option::is_some).await.unwrap().clone().unwrap()
    }
}
