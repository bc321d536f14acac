//! The actor: the pod's state, and where each request and each notice goes.
//!
//! How processes begin and are removed is in `lifecycle`, how they end in `ending`.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;

use agent_protocol::rpc::oci;
use containerd_shim::event::Event;
use containerd_shim::protos::cgroups_v2::metrics::Metrics;
use containerd_shim::protos::events::task::{TaskExecAdded, TaskOOM};
use tokio::sync::mpsc;

use super::effects;
use super::notice::Notice;
use super::process::{Process, Reply, Streams};
use super::state::Step;
use super::{Command, Settings, Snapshot};
use crate::agent::ProcessId;
use crate::container::Guest;
use crate::identity::Role;
use crate::io::Stdio;
use crate::metrics;
use crate::status::TaskError;

/// The pod's machine.
pub(super) enum Machine {
    /// No container has asked for it yet.
    Absent,
    /// It boots.
    Booting,
    /// It runs.
    Up(Guest),
    /// It has ended, for this reason.
    Ended(String),
}

/// A container of the pod.
pub(super) struct Container {
    pub(super) role: Role,
    pub(super) bundle: PathBuf,
    pub(super) first: Process,
    pub(super) execs: BTreeMap<String, Process>,
}

impl Container {
    pub(super) fn process(&mut self, exec: &str) -> Option<&mut Process> {
        if exec.is_empty() { Some(&mut self.first) } else { self.execs.get_mut(exec) }
    }
}

/// Owns a pod's state.
pub struct Actor {
    pub(super) settings: Settings,
    pub(super) notices: mpsc::UnboundedSender<Notice>,
    news: mpsc::UnboundedReceiver<Notice>,
    pub(super) machine: Machine,
    /// Process id of the machine on the host; zero before there is one.
    pub(super) pid: u32,
    /// Exit status of a sandbox that was asked to end.
    pub(super) asked_to_end: Option<u32>,
    /// Whether the machine is about to end because its only container has.
    pub(super) winding_down: bool,
    pub(super) containers: BTreeMap<String, Container>,
}

/// Answers a request.
pub(super) fn answer<T>(reply: Reply<T>, result: Result<T, TaskError>) {
    // Whoever asked may have gone; what was done stays done.
    drop(reply.send(result));
}

impl Actor {
    /// An actor for a pod without a machine.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let (notices, news) = mpsc::unbounded_channel();
        Self {
            settings,
            notices,
            news,
            machine: Machine::Absent,
            pid: 0,
            asked_to_end: None,
            winding_down: false,
            containers: BTreeMap::new(),
        }
    }

    /// Serves requests until it is told to shut down, or nobody can ask any more.
    pub async fn run(mut self, mut requests: mpsc::Receiver<Command>) {
        loop {
            tokio::select! {
                biased;
                Some(notice) = self.news.recv() => self.note(notice),
                request = requests.recv() => match request {
                    None => break,
                    Some(Command::Shutdown(reply)) => {
                        let last = self.containers.is_empty();
                        answer(reply, Ok(last));
                        if last {
                            break;
                        }
                    }
                    Some(command) => self.obey(command),
                },
            }
        }
        if let Machine::Up(guest) = self.machine {
            effects::end_pod(&guest).await;
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Create(create, reply) => self.create(create, reply),
            Command::Exec(process, spec, stdio, reply) => answer(reply, self.exec(process, *spec, stdio)),
            Command::Start(process, reply) => self.start(process, reply),
            Command::Delete(process, reply) => self.delete(process, reply),
            Command::State(process, reply) => answer(reply, self.snapshot(&process)),
            Command::Wait(process, reply) => match self.process(&process) {
                Ok(process) => process.wait(reply),
                Err(error) => answer(reply, Err(error)),
            },
            Command::Kill(process, signal, all, reply) => self.kill(process, signal, all, reply),
            Command::Pause(container, reply) => self.freeze(container, Step::Pause, reply),
            Command::Resume(container, reply) => self.freeze(container, Step::Resume, reply),
            Command::Resize(process, rows, columns, reply) => {
                let guest = self.live(&process);
                self.consult(guest, reply, async move |guest| {
                    Ok(guest.agent.resize(&process, rows, columns).await?)
                });
            }
            Command::CloseStdin(process, reply) => answer(reply, self.close_stdin(&process)),
            Command::Update(container, resources, reply) => {
                let guest = self.in_guest(&ProcessId::new(&container, ""));
                self.consult(guest, reply, async move |guest| {
                    Ok(guest.agent.update(&container, *resources).await?)
                });
            }
            Command::Stats(container, reply) => self.stats(container, reply),
            Command::Pids(container, reply) => answer(reply, self.pids(&container)),
            // The loop takes it before it gets here.
            Command::Shutdown(reply) => answer(reply, Ok(false)),
        }
    }

    fn note(&mut self, notice: Notice) {
        match notice {
            Notice::Created(create, created, reply) => {
                let result = self.created(*create, created);
                answer(reply, result);
            }
            Notice::Started(process, started, reply) => {
                let result = self.started(&process, started);
                answer(reply, result);
            }
            Notice::Exited(process, status) => self.exited(&process, status),
            Notice::KillOverdue(process) => self.kill_overdue(&process),
            Notice::Frozen(container, step, result, reply) => {
                let result = self.frozen(&container, step, result);
                answer(reply, result);
            }
            Notice::Deleted(process, deleted, reply) => {
                self.deleted(&process, deleted);
                answer(reply, Ok(deleted));
            }
            Notice::OutOfMemory(container) => {
                // The guest chooses the name: only one that is known is passed on.
                if self.containers.contains_key(&container) {
                    self.publish(&TaskOOM { container_id: container, ..TaskOOM::default() });
                }
            }
            Notice::MachineEnded(why) => self.machine_ended(why),
        }
    }

    pub(super) fn publish<E: Event>(&self, event: &E) {
        self.settings.publisher.publish(event);
    }

    /// Runs `effect` on its own and brings its notice back.
    pub(super) fn spawn(&self, effect: impl Future<Output = Notice> + Send + 'static) {
        let notices = self.notices.clone();
        tokio::spawn(async move {
            // Nobody listens when the shim is shutting down.
            let _ = notices.send(effect.await);
        });
    }

    /// Runs `question`, which changes nothing that is kept here, and answers with its outcome.
    pub(super) fn consult<T: Send + 'static, F>(
        &self,
        guest: Result<Guest, TaskError>,
        reply: Reply<T>,
        question: impl FnOnce(Guest) -> F,
    ) where
        F: Future<Output = Result<T, TaskError>> + Send + 'static,
    {
        match guest {
            Ok(guest) => {
                let question = question(guest);
                tokio::spawn(async move { answer(reply, question.await) });
            }
            Err(error) => answer(reply, Err(error)),
        }
    }

    pub(super) fn container(&mut self, id: &str) -> Result<&mut Container, TaskError> {
        self.containers.get_mut(id).ok_or_else(|| TaskError::NoContainer(id.into()))
    }

    pub(super) fn process(&mut self, id: &ProcessId) -> Result<&mut Process, TaskError> {
        self.container(&id.container)?.process(&id.exec).ok_or_else(|| TaskError::NoProcess(id.clone()))
    }

    pub(super) fn guest(&self) -> Result<Guest, TaskError> {
        match &self.machine {
            Machine::Up(guest) => Ok(guest.clone()),
            Machine::Ended(why) => Err(TaskError::Ended(why.clone())),
            Machine::Absent | Machine::Booting => Err(TaskError::NoContainer(self.settings.id.clone())),
        }
    }

    /// The guest of a process that exists there: a sandbox has none.
    pub(super) fn in_guest(&mut self, id: &ProcessId) -> Result<Guest, TaskError> {
        if self.container(&id.container)?.role == Role::Sandbox {
            return Err(TaskError::Unsupported("a pod's sandbox has no process in the utility VM"));
        }
        self.process(id)?;
        self.guest()
    }

    /// The guest of a process that has not ended.
    fn live(&mut self, id: &ProcessId) -> Result<Guest, TaskError> {
        let guest = self.in_guest(id)?;
        if self.process(id)?.phase().is_over() { Err(TaskError::Finished(id.clone())) } else { Ok(guest) }
    }

    fn exec(&mut self, id: ProcessId, spec: oci::Process, stdio: Stdio) -> Result<(), TaskError> {
        let first = ProcessId::new(&id.container, "");
        self.live(&first)?;
        let container = self.container(&id.container)?;
        if container.process(&id.exec).is_some() {
            return Err(TaskError::Exists(id));
        }
        let mut process = Process::creating(id.clone(), stdio);
        // Nothing is created in the guest before the start, which does both.
        process.step(Step::Created)?;
        process.exec_spec = Some(spec);
        container.execs.insert(id.exec.clone(), process);
        let ProcessId { container: container_id, exec: exec_id } = id;
        self.publish(&TaskExecAdded { container_id, exec_id, ..TaskExecAdded::default() });
        Ok(())
    }

    fn close_stdin(&mut self, id: &ProcessId) -> Result<(), TaskError> {
        let process = self.process(id)?;
        let over = process.phase().is_over();
        match &mut process.streams {
            Streams::Relayed(relays) => relays.close_stdin(),
            Streams::Open(open) => open.close_stdin(),
            Streams::None if over => {}
            Streams::None => return Err(TaskError::Busy(id.clone())),
        }
        Ok(())
    }

    fn stats(&mut self, container: String, reply: Reply<Metrics>) {
        let id = ProcessId::new(&container, "");
        if self.container(&container).is_ok_and(|container| container.role == Role::Sandbox) {
            let gone = |error: std::io::Error| TaskError::Ended(error.to_string());
            return answer(reply, self.guest().and_then(|_| metrics::of_process(self.pid).map_err(gone)));
        }
        let guest = self.live(&id);
        self.consult(guest, reply, async move |guest| {
            Ok(metrics::from_agent(guest.agent.stats(&container).await?))
        });
    }

    fn pids(&mut self, container: &str) -> Result<(u32, Vec<String>), TaskError> {
        let pid = self.pid;
        let container = self.container(container)?;
        let all = std::iter::once(&container.first).chain(container.execs.values());
        let running = all.filter(|process| process.phase().takes_signals());
        Ok((pid, running.map(|process| process.id().exec.clone()).collect()))
    }

    fn snapshot(&mut self, id: &ProcessId) -> Result<Snapshot, TaskError> {
        let (pid, bundle) = (self.pid, self.container(&id.container)?.bundle.clone());
        let process = self.process(id)?;
        let (phase, stdio, exit) = (process.phase(), process.stdio.clone(), process.exit());
        Ok(Snapshot { bundle, pid, phase, stdio, exit })
    }
}
