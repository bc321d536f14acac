//! One container: its life from creation to removal.
//!
//! ```text
//! create ─► Created ─ start ─► Running ⇄ Paused
//!              └────── init ends ──┴──► Stopped ─ remove ─► gone
//! ```
//! Operations that change the phase exclude each other; waiting, streams and signals do not. "Stopped" is not
//! stored: it is the end of the init process, which nobody has to report.

mod console;
mod processes;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use agent_protocol::id;
use agent_protocol::rpc::agent::{CreateContainerRequest, ExecProcessRequest};
use oci_spec::runtime::{Process as OciProcess, Spec};
use tokio::sync::{Mutex, RwLock};
use tokio::time::Instant;

use crate::cgroup::Cgroup;
use crate::error::{AgentError, Context, Result};
use crate::files;
use crate::layers::Plan;
use crate::note;
use crate::oom::OomWatch;
use crate::process::{self, Process};
use crate::runtime::{Created, Runtime, Task};
use crate::spec::{self, Setting};
use crate::stdio::{ProcessEnds, Stdio};
use crate::storage::{Held, PodStorage};

use console::Console;
use processes::Processes;

/// How long a process that was created in vain may take to die.
const ABANDONED: Duration = Duration::from_secs(5);
const SIGKILL: u32 = 9;
/// Where `libcontainer` keeps its state.
const RUNTIME_STATE: &str = "/run/uvm/runtime";
/// Where the adapted configurations are.
const BUNDLES: &str = "/run/uvm/bundles";

/// How long killed processes may take to end when the caller sets no limit that means anything.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// What containers need from the agent.
#[derive(Debug, Clone)]
pub struct Services {
    /// Creates processes.
    pub runtime: Runtime,
    /// Reports kills for lack of memory.
    pub oom: OomWatch,
    /// Has their layers and volumes.
    pub storage: PodStorage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Created,
    Running,
    Paused,
}

/// A container.
#[derive(Debug)]
pub struct Container {
    id: String,
    services: Services,
    group: Cgroup,
    spec: Spec,
    processes: Processes,
    /// Held by the operation that changes it.
    life: Mutex<Life>,
}

#[derive(Debug)]
struct Life {
    phase: Phase,
    held: Held,
}

/// A container that could not be created, and whether what had been done for it is undone.
#[derive(Debug)]
pub struct CreateFailure {
    /// Why.
    pub error: AgentError,
    /// Why the undoing failed as well, if it did.
    pub left_behind: Option<AgentError>,
}

impl Container {
    /// Creates a container. Its init process exists afterwards and waits to be started.
    ///
    /// # Errors
    /// Says why, and what remains.
    pub async fn create(
        services: Services,
        request: CreateContainerRequest,
        pid_namespace: Option<PathBuf>,
    ) -> std::result::Result<Arc<Self>, CreateFailure> {
        let id = request.container_id.clone();
        let mut held = Held::default();
        let shares_pids = pid_namespace.is_some();
        match prepare_and_create(&services, &request, pid_namespace, &mut held).await {
            Ok((spec, process)) => {
                let container = Arc::new(Self {
                    group: Cgroup::of(&id),
                    processes: Processes::new(&id, process),
                    life: Mutex::new(Life { phase: Phase::Created, held }),
                    id,
                    services,
                    spec,
                });
                container.follow(shares_pids);
                Ok(container)
            }
            Err(error) => {
                let group = Cgroup::of(&id);
                // The process may exist already, waiting to be let run; if it does not end, `clear` says so.
                let _ = group.kill();
                let _ = group.wait_empty(Instant::now() + ABANDONED).await;
                let left_behind = clear(&id, &group, &services.storage, &mut held).await.err();
                Err(CreateFailure { error, left_behind })
            }
        }
    }

    /// Lets the init process run.
    ///
    /// # Errors
    /// If it has been started before, or has ended.
    pub async fn start(&self) -> Result<()> {
        let mut life = self.life.lock().await;
        self.expect(life.phase, &[Phase::Created], "start")?;
        let task = Task::Start { id: self.id.clone(), root: RUNTIME_STATE.into() };
        self.services.runtime.run(&task).await?;
        life.phase = Phase::Running;
        Ok(())
    }

    /// Adds a process.
    ///
    /// # Errors
    /// If the container is not running, the name is taken, or the process cannot run.
    pub async fn exec(&self, request: ExecProcessRequest) -> Result<()> {
        let ports = [request.stdin_port, request.stdout_port, request.stderr_port];
        refuse("stream ports", ports.iter().any(Option::is_some))?;
        refuse("string_user", request.string_user.is_some())?;
        id::check(&request.exec_id)?;
        let process = request.process.as_ref();
        let process = process.ok_or_else(|| AgentError::Invalid("ExecProcess has no process".to_owned()))?;
        let process = spec::adapt_exec(agent_protocol::oci::decode_process(process)?, &self.spec)?;
        let life = self.life.lock().await;
        self.expect(life.phase, &[Phase::Running], "exec in")?;
        self.processes.check_free(&request.exec_id)?;
        let created = self.create_exec(&process).await?;
        self.processes.add(&request.exec_id, created);
        Ok(())
    }

    async fn create_exec(&self, process: &OciProcess) -> Result<Process> {
        let file = Path::new(BUNDLES).join(&self.id).join("process.json");
        let json = serde_json::to_vec(process)
            .map_err(std::io::Error::from)
            .doing(|| "write a process".to_owned())?;
        fs::write(&file, json).doing(|| format!("write {}", file.display()))?;
        let result = spawn(&self.services.runtime, process, |console| Task::Exec {
            id: self.id.clone(),
            root: RUNTIME_STATE.into(),
            process: file.clone(),
            console,
        })
        .await;
        fs::remove_file(&file).doing(|| format!("remove {}", file.display()))?;
        result
    }

    /// Finds a process; the init process has the container's name.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn process(&self, exec_id: &str) -> Result<Arc<Process>> {
        self.processes.find(exec_id)
    }

    /// Waits until a process ends; returns how.
    ///
    /// # Errors
    /// If there is none of that name.
    pub async fn wait(&self, exec_id: &str) -> Result<i32> {
        let process = self.processes.find(exec_id)?;
        let status = process.exit().wait().await;
        // A kill for lack of memory is to be known no later than the end that it caused.
        self.services.oom.look(&self.id);
        self.processes.waited(exec_id);
        Ok(status)
    }

    /// Sends a signal to one process, or with an empty name to all.
    ///
    /// # Errors
    /// If there is none of that name, it has ended, or the number is no signal.
    pub fn signal(&self, exec_id: &str, signal: u32) -> Result<()> {
        if exec_id.is_empty() {
            self.group.signal(signal)
        } else {
            self.processes.find(exec_id)?.signal(signal)
        }
    }

    /// Stops or resumes all processes.
    ///
    /// # Errors
    /// If the container is not in the opposite phase, or the kernel does not manage in time.
    pub async fn freeze(&self, frozen: bool) -> Result<()> {
        let (from, to, what) = match frozen {
            true => (Phase::Running, Phase::Paused, "pause"),
            false => (Phase::Paused, Phase::Running, "resume"),
        };
        let mut life = self.life.lock().await;
        self.expect(life.phase, &[from], what)?;
        self.group.freeze(frozen).await?;
        life.phase = to;
        Ok(())
    }

    /// Changes limits.
    ///
    /// # Errors
    /// If a limit is wrong or cannot be changed.
    pub fn update(&self, resources: &oci_spec::runtime::LinuxResources) -> Result<()> {
        self.group.update(resources)
    }

    /// The container's group.
    #[must_use]
    pub fn group(&self) -> &Cgroup {
        &self.group
    }

    /// Ends all processes and undoes everything. May be called again after a failure.
    ///
    /// # Errors
    /// If processes do not end within `limit`, or something cannot be undone.
    pub async fn remove(&self, limit: Option<Duration>, files: &RwLock<()>) -> Result<()> {
        let mut life = self.life.lock().await;
        self.group.kill()?;
        let deadline = Instant::now() + limit.unwrap_or(FOREVER);
        let init = self.processes.find(&self.id)?;
        let ended = tokio::time::timeout_at(deadline, init.exit().wait()).await.is_ok();
        if !ended || !self.group.wait_empty(deadline).await? {
            return Err(AgentError::State(format!(
                "container {}: processes still run after SIGKILL",
                self.id
            )));
        }
        self.services.oom.look(&self.id);
        self.services.oom.remove(&self.id);
        // A container that is just being created holds copies of every mount until it has pivoted its root.
        let _files = files.write().await;
        clear(&self.id, &self.group, &self.services.storage, &mut life.held).await
    }

    fn expect(&self, phase: Phase, allowed: &[Phase], what: &str) -> Result<()> {
        let ended = self.processes.find(&self.id)?.exit().now();
        match ended {
            Some(status) => {
                Err(AgentError::State(format!("cannot {what} container {}: it ended with {status}", self.id)))
            }
            None if allowed.contains(&phase) => Ok(()),
            None => Err(AgentError::State(format!("cannot {what} container {}: it is {phase:?}", self.id))),
        }
    }

    /// What follows from the init process's end.
    fn follow(self: &Arc<Self>, shares_pids: bool) {
        if let Err(error) = self.services.oom.add(&self.id, &self.group) {
            note!("container {}: no notice of memory kills: {error}", self.id);
        }
        let container = self.clone();
        tokio::spawn(async move {
            let Ok(init) = container.processes.find(&container.id) else { return };
            init.exit().wait().await;
            container.services.oom.look(&container.id);
            // In a PID namespace of its own the kernel does this.
            if shares_pids && let Err(error) = container.group.kill() {
                note!("container {}: {error}", container.id);
            }
        });
    }
}

/// Checks the whole request before the first step that has an effect, then mounts and creates.
async fn prepare_and_create(
    services: &Services,
    request: &CreateContainerRequest,
    pid_namespace: Option<PathBuf>,
    held: &mut Held,
) -> Result<(Spec, Process)> {
    let id = &request.container_id;
    let ports = [request.stdin_port, request.stdout_port, request.stderr_port];
    refuse("stream ports", ports.iter().any(Option::is_some))?;
    refuse("string_user", request.string_user.is_some())?;
    refuse("devices", !request.devices.is_empty())?;
    refuse("shared_mounts", !request.shared_mounts.is_empty())?;
    let config =
        request.OCI.as_ref().ok_or_else(|| AgentError::Invalid("CreateContainer has no OCI".to_owned()))?;
    let config = agent_protocol::oci::decode(config)?;
    let plan = Plan::parse(id, &request.storages)?;
    let (spec, sysctl) =
        spec::adapt(config, &Setting { container: id, pid_namespace, volumes: &plan.volumes })?;
    for source in spec.mounts().iter().flatten().filter_map(|mount| mount.source().as_deref()) {
        files::check_source(source)?;
    }
    for (name, value) in &sysctl {
        let file = Path::new("/proc/sys").join(name.replace('.', "/"));
        fs::write(&file, value).doing(|| format!("set {name}"))?;
    }
    let devices = spec.linux().as_ref().is_some_and(spec::allows_all_devices);
    services.storage.mount(id, &plan, devices, held).await?;
    let bundle = Path::new(BUNDLES).join(id);
    fs::create_dir_all(&bundle).doing(|| format!("make {}", bundle.display()))?;
    let config = bundle.join("config.json");
    let json = serde_json::to_vec(&spec)
        .map_err(std::io::Error::from)
        .doing(|| "write a configuration".to_owned())?;
    fs::write(&config, json).doing(|| format!("write {}", config.display()))?;
    let process = spec.process().as_ref().ok_or_else(|| AgentError::Invalid("no process".to_owned()))?;
    let process = spawn(&services.runtime, process, |console| Task::Create {
        id: id.clone(),
        bundle: bundle.clone(),
        root: RUNTIME_STATE.into(),
        console,
    })
    .await?;
    Ok((spec, process))
}

/// Creates a process with a terminal or with pipes, as its configuration says.
async fn spawn(
    runtime: &Runtime,
    process: &OciProcess,
    task: impl FnOnce(Option<PathBuf>) -> Task,
) -> Result<Process> {
    if process.terminal() == Some(true) {
        let console = Console::listen()?;
        let created = runtime.create(&task(Some(console.path().to_owned())), None).await?;
        let stdio = terminal(console, process).await.inspect_err(|_| {
            // A process that nobody can name must not go on.
            if created.exit.now().is_none() {
                let _ = process::send(created.pid, SIGKILL);
            }
        })?;
        return Ok(Process::new(created, stdio));
    }
    let (stdio, ends): (Stdio, ProcessEnds) = Stdio::pipes(process.user().uid(), process.user().gid())?;
    let created: Created = runtime.create(&task(None), Some(ends)).await?;
    Ok(Process::new(created, stdio))
}

/// The terminal that a created process hands over, in the size that its configuration names.
async fn terminal(console: Console, process: &OciProcess) -> Result<Stdio> {
    let stdio = Stdio::terminal(console.receive().await?)?;
    if let Some(size) = process.console_size() {
        let fit = |size: u64| u32::try_from(size).unwrap_or(u32::MAX);
        stdio.resize(fit(size.height()), fit(size.width()))?;
    }
    Ok(stdio)
}

/// Removes what a container without processes leaves: group, state, configuration, mounts.
async fn clear(id: &str, group: &Cgroup, storage: &PodStorage, held: &mut Held) -> Result<()> {
    group.remove()?;
    for root in [RUNTIME_STATE, BUNDLES] {
        let directory = Path::new(root).join(id);
        match fs::remove_dir_all(&directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            result => result.doing(|| format!("remove {}", directory.display()))?,
        }
    }
    storage.unmount(id, held).await
}

fn refuse(what: &str, present: bool) -> Result<()> {
    if present {
        Err(AgentError::Unsupported(format!("{what}: not supported by this agent")))
    } else {
        Ok(())
    }
}
