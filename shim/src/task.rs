//! The Task service: translates containerd's requests for the pod's actor and its answers back. No logic.

use std::path::PathBuf;

use agent_protocol::id;
use async_trait::async_trait;
use containerd_shim::protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest, PauseRequest,
    PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest,
    StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse, Status, UpdateTaskRequest,
    WaitRequest, WaitResponse,
};
use containerd_shim::protos::protobuf::MessageFull;
use containerd_shim::protos::protobuf::well_known_types::any::Any;
use containerd_shim::protos::shim::oci::ProcessDetails;
use containerd_shim::protos::shim_async::Task;
use oci_spec::runtime::Process;
use tokio::sync::Notify;
use ttrpc::Result;
use ttrpc::asynchronous::TtrpcContext;

use crate::agent::ProcessId;
use crate::events::timestamp;
use crate::io::Stdio;
use crate::sandbox::state::Phase;
use crate::sandbox::{Command, Create, Pod};
use crate::status::TaskError;

/// Serves one pod's tasks.
pub struct TaskService {
    pod: Pod,
    shut_down: std::sync::Arc<Notify>,
}

impl TaskService {
    /// A service for `pod`; `shut_down` is notified when containerd says that it needs it no more.
    #[must_use]
    pub fn new(pod: Pod, shut_down: std::sync::Arc<Notify>) -> Self {
        Self { pod, shut_down }
    }
}

fn pack<M: MessageFull>(message: &M) -> Result<Any> {
    let value = message.write_to_bytes().map_err(|error| ttrpc::Error::Others(error.to_string()))?;
    Ok(Any { type_url: M::descriptor().full_name().into(), value, ..Any::default() })
}

/// The bytes of an `Any` whose type is `kind`, however its URL begins.
fn unpack<'a>(
    what: &'static str,
    kind: &'static str,
    any: Option<&'a Any>,
) -> std::result::Result<&'a [u8], TaskError> {
    match any {
        Some(any) if any.type_url.rsplit('/').next() == Some(kind) => Ok(&any.value),
        other => {
            let found = other.map_or_else(|| "nothing".into(), |any| any.type_url.clone());
            Err(TaskError::Invalid { what, expected: kind, found })
        }
    }
}

/// Labels of the host's security modules mean nothing in the guest.
fn without_labels(mut process: Process) -> Process {
    process.set_apparmor_profile(None).set_selinux_label(None);
    process
}

const fn status(phase: Phase) -> Status {
    match phase {
        Phase::Creating => Status::UNKNOWN,
        Phase::Created | Phase::Starting => Status::CREATED,
        Phase::Running => Status::RUNNING,
        Phase::Pausing => Status::PAUSING,
        Phase::Paused | Phase::Resuming => Status::PAUSED,
        Phase::Stopped | Phase::Deleting => Status::STOPPED,
    }
}

#[async_trait]
impl Task for TaskService {
    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> Result<StateResponse> {
        let process = ProcessId::new(&request.id, &request.exec_id);
        let snapshot = self.pod.ask(|reply| Command::State(process, reply)).await?;
        Ok(StateResponse {
            id: request.id,
            exec_id: request.exec_id,
            bundle: snapshot.bundle.display().to_string(),
            pid: snapshot.pid,
            status: status(snapshot.phase).into(),
            stdin: snapshot.stdio.stdin,
            stdout: snapshot.stdio.stdout,
            stderr: snapshot.stdio.stderr,
            terminal: snapshot.stdio.terminal,
            exit_status: snapshot.exit.map_or(0, |exit| exit.status),
            exited_at: snapshot.exit.map(|exit| timestamp(exit.at)).into(),
            ..StateResponse::default()
        })
    }

    async fn create(&self, _: &TtrpcContext, request: CreateTaskRequest) -> Result<CreateTaskResponse> {
        if !request.checkpoint.is_empty() {
            return Err(TaskError::Unsupported("restoring a checkpoint").into());
        }
        let create = Create {
            id: request.id,
            bundle: PathBuf::from(request.bundle),
            rootfs: request.rootfs,
            stdio: Stdio {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
            },
            options: request.options.into_option(),
        };
        let pid = self.pod.ask(|reply| Command::Create(Box::new(create), reply)).await?;
        Ok(CreateTaskResponse { pid, ..CreateTaskResponse::default() })
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> Result<StartResponse> {
        let process = ProcessId::new(&request.id, &request.exec_id);
        let pid = self.pod.ask(|reply| Command::Start(process, reply)).await?;
        Ok(StartResponse { pid, ..StartResponse::default() })
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> Result<DeleteResponse> {
        let process = ProcessId::new(&request.id, &request.exec_id);
        let deleted = self.pod.ask(|reply| Command::Delete(process, reply)).await?;
        Ok(DeleteResponse {
            pid: deleted.pid,
            exit_status: deleted.exit.status,
            exited_at: Some(timestamp(deleted.exit.at)).into(),
            ..DeleteResponse::default()
        })
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> Result<PidsResponse> {
        let (pid, processes) = self.pod.ask(|reply| Command::Pids(request.id, reply)).await?;
        let process = |exec_id: String| {
            let info = if exec_id.is_empty() {
                None
            } else {
                Some(pack(&ProcessDetails { exec_id, ..ProcessDetails::default() })?)
            };
            Ok(ProcessInfo { pid, info: info.into(), ..ProcessInfo::default() })
        };
        let processes = processes.into_iter().map(process).collect::<Result<_>>()?;
        Ok(PidsResponse { processes, ..PidsResponse::default() })
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> Result<Empty> {
        self.pod.ask(|reply| Command::Pause(request.id, reply)).await?;
        Ok(Empty::default())
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> Result<Empty> {
        self.pod.ask(|reply| Command::Resume(request.id, reply)).await?;
        Ok(Empty::default())
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: CheckpointTaskRequest) -> Result<Empty> {
        Err(TaskError::Unsupported("checkpoints: a utility VM's memory never leaves it").into())
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> Result<Empty> {
        let process = ProcessId::new(&request.id, &request.exec_id);
        self.pod.ask(|reply| Command::Kill(process, request.signal, request.all, reply)).await?;
        Ok(Empty::default())
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> Result<Empty> {
        id::check(&request.exec_id).map_err(|error| TaskError::Invalid {
            what: "exec id",
            expected: "a plain name",
            found: error.to_string(),
        })?;
        let json = unpack("process of an exec", "Process", request.spec.as_ref())?;
        let mut process = agent_protocol::oci::parse_process(json).map_err(TaskError::from)?;
        process.set_terminal(request.terminal.then_some(true));
        let process = without_labels(process);
        let spec = agent_protocol::oci::encode_process(&process).map_err(TaskError::from)?;
        let stdio = Stdio {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        let process = ProcessId::new(&request.id, &request.exec_id);
        self.pod.ask(|reply| Command::Exec(process, Box::new(spec), stdio, reply)).await?;
        Ok(Empty::default())
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> Result<Empty> {
        let process = ProcessId::new(&request.id, &request.exec_id);
        self.pod.ask(|reply| Command::Resize(process, request.height, request.width, reply)).await?;
        Ok(Empty::default())
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> Result<Empty> {
        if request.stdin {
            let process = ProcessId::new(&request.id, &request.exec_id);
            self.pod.ask(|reply| Command::CloseStdin(process, reply)).await?;
        }
        Ok(Empty::default())
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> Result<Empty> {
        let json = unpack("resources of an update", "LinuxResources", request.resources.as_ref())?;
        let resources = agent_protocol::oci::parse_resources(json).map_err(TaskError::from)?;
        let resources = agent_protocol::oci::encode_resources(&resources).map_err(TaskError::from)?;
        self.pod.ask(|reply| Command::Update(request.id, Box::new(resources), reply)).await?;
        Ok(Empty::default())
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> Result<WaitResponse> {
        let process = ProcessId::new(&request.id, &request.exec_id);
        let exit = self.pod.ask(|reply| Command::Wait(process, reply)).await?;
        Ok(WaitResponse {
            exit_status: exit.status,
            exited_at: Some(timestamp(exit.at)).into(),
            ..WaitResponse::default()
        })
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> Result<StatsResponse> {
        let metrics = self.pod.ask(|reply| Command::Stats(request.id, reply)).await?;
        Ok(StatsResponse { stats: Some(pack(&metrics)?).into(), ..StatsResponse::default() })
    }

    async fn connect(&self, _: &TtrpcContext, request: ConnectRequest) -> Result<ConnectResponse> {
        let process = ProcessId::new(&request.id, "");
        let snapshot = self.pod.ask(|reply| Command::State(process, reply)).await?;
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: snapshot.pid,
            version: env!("CARGO_PKG_VERSION").into(),
            ..ConnectResponse::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> Result<Empty> {
        if self.pod.ask(Command::Shutdown).await? {
            self.shut_down.notify_one();
        }
        Ok(Empty::default())
    }
}
