//! The actor: the pod's state, and what each request and each notice does to it.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::PathBuf;

use agent_protocol::rpc::oci;
use containerd_shim::event::Event;
use containerd_shim::protos::cgroups_v2::metrics::Metrics;
use containerd_shim::protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIO, TaskOOM, TaskPaused,
    TaskResumed, TaskStart,
};
use launch::layout::BLOCK_SLOTS;
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::effects::{self, Creation, SIGKILL};
use super::notice::{Created, Notice};
use super::process::{Process, Reply, Streams};
use super::state::{Exit, Phase, Step};
use super::{Command, Create, Deleted, Settings, Snapshot};
use crate::agent::{AgentError, ProcessId};
use crate::container::{Guest, Slot};
use crate::events::timestamp;
use crate::identity::{self, Identity, Role};
use crate::io::{Relays, Stdio};
use crate::metrics;
use crate::spec;
use crate::status::TaskError;

const SIGINT: u32 = 2;
const SIGTERM: u32 = 15;
/// Largest signal number on Linux.
const MAX_SIGNAL: u32 = 64;
/// Exit status of a process whose end nobody saw.
const UNKNOWN_STATUS: u32 = 255;

enum Machine {
    Absent,
    Booting,
    Up(Guest),
    Ended(String),
}

struct Container {
    role: Role,
    bundle: PathBuf,
    slot: Option<u32>,
    first: Process,
    execs: BTreeMap<String, Process>,
}

impl Container {
    fn process(&mut self, exec: &str) -> Option<&mut Process> {
        if exec.is_empty() { Some(&mut self.first) } else { self.execs.get_mut(exec) }
    }
}

/// Owns a pod's state.
pub struct Actor {
    settings: Settings,
    notices: mpsc::UnboundedSender<Notice>,
    news: mpsc::UnboundedReceiver<Notice>,
    machine: Machine,
    /// Process id of the machine on the host; zero before there is one.
    pid: u32,
    /// Exit status of a sandbox that was asked to end.
    asked_to_end: Option<u32>,
    containers: BTreeMap<String, Container>,
    free_slots: BTreeSet<u32>,
}

fn answer<T>(reply: Reply<T>, result: Result<T, TaskError>) {
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
            containers: BTreeMap::new(),
            free_slots: (1..BLOCK_SLOTS).collect(),
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
            Notice::Frozen(container, step, result, reply) => {
                let result = self.frozen(&container, step, result);
                answer(reply, result);
            }
            Notice::Deleted(process, slot, deleted, reply) => {
                self.deleted(&process, slot, deleted);
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

    fn publish<E: Event>(&self, event: &E) {
        self.settings.publisher.publish(event);
    }

    /// Runs `effect` on its own and brings its notice back.
    fn spawn(&self, effect: impl Future<Output = Notice> + Send + 'static) {
        let notices = self.notices.clone();
        tokio::spawn(async move {
            // Nobody listens when the shim is shutting down.
            let _ = notices.send(effect.await);
        });
    }

    /// Runs `question`, which changes nothing that is kept here, and answers with its outcome.
    fn consult<T: Send + 'static, F>(
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

    fn container(&mut self, id: &str) -> Result<&mut Container, TaskError> {
        self.containers.get_mut(id).ok_or_else(|| TaskError::NoContainer(id.into()))
    }

    fn process(&mut self, id: &ProcessId) -> Result<&mut Process, TaskError> {
        self.container(&id.container)?.process(&id.exec).ok_or_else(|| TaskError::NoProcess(id.clone()))
    }

    fn guest(&self) -> Result<Guest, TaskError> {
        match &self.machine {
            Machine::Up(guest) => Ok(guest.clone()),
            Machine::Ended(why) => Err(TaskError::Ended(why.clone())),
            Machine::Absent | Machine::Booting => Err(TaskError::NoContainer(self.settings.id.clone())),
        }
    }

    /// The guest of a process that exists there: a sandbox has none.
    fn in_guest(&mut self, id: &ProcessId) -> Result<Guest, TaskError> {
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

    fn create(&mut self, create: Box<Create>, reply: Reply<u32>) {
        match self.begin_creation(&create) {
            Ok(creation) => self.spawn(async move {
                let created = creation.run(&create).await;
                Notice::Created(create, created, reply)
            }),
            Err(error) => answer(reply, Err(error)),
        }
    }

    /// Checks a creation and notes that it has begun.
    fn begin_creation(&mut self, create: &Create) -> Result<Creation, TaskError> {
        let process = ProcessId::new(&create.id, "");
        if self.containers.contains_key(&create.id) {
            return Err(TaskError::Exists(process));
        }
        let config = identity::read_spec(&create.bundle.join("config.json"))?;
        let spec = agent_protocol::oci::parse_config(&config)?;
        let annotations = spec.annotations().clone().unwrap_or_default();
        let Identity { pod, role } = Identity::from_annotations(&create.id, &annotations)?;
        if pod != self.settings.id {
            let (what, expected) = ("pod of the container", "the pod that this shim serves");
            return Err(TaskError::Invalid { what, expected, found: pod });
        }
        if role == Role::Sandbox {
            spec::check_sandbox(&spec)?;
        }
        let guest = match &self.machine {
            Machine::Absent if role.leads() => None,
            _ if role.leads() => return Err(TaskError::Exists(process)),
            _ => Some(self.guest()?),
        };
        let slot = if role == Role::Sandbox {
            None
        } else {
            Some(self.free_slots.pop_first().ok_or(TaskError::NoSlot { slots: BLOCK_SLOTS - 1 })?)
        };
        if guest.is_none() {
            self.machine = Machine::Booting;
        }
        let first = Process::creating(process, create.stdio.clone());
        let bundle = create.bundle.clone();
        let container = Container { role, bundle, slot, first, execs: BTreeMap::new() };
        self.containers.insert(create.id.clone(), container);
        let (driver, state) = (self.settings.driver.clone(), self.settings.state.clone());
        Ok(Creation { driver, state, role, spec, guest, slot })
    }

    fn created(&mut self, create: Create, created: Created) -> Result<u32, TaskError> {
        match created {
            Created::Ok { booted, stdio } => {
                if let Some(guest) = booted {
                    self.pid = guest.vm.pid();
                    tokio::spawn(effects::watch_machine(guest.clone(), self.notices.clone()));
                    tokio::spawn(effects::watch_memory(guest.agent.clone(), self.notices.clone()));
                    self.machine = Machine::Up(guest);
                }
                if let Machine::Ended(why) = &self.machine {
                    let why = why.clone();
                    self.containers.remove(&create.id);
                    return Err(TaskError::Ended(why));
                }
                let first = &mut self.container(&create.id)?.first;
                first.step(Step::Created)?;
                first.streams = Streams::Open(stdio);
                let pid = self.pid;
                self.publish(&task_create(create, pid));
                Ok(pid)
            }
            Created::Failed { error, slot } => {
                let led = self.containers.remove(&create.id).is_some_and(|container| container.role.leads());
                if led {
                    self.machine = Machine::Absent;
                }
                self.release(slot);
                Err(error)
            }
        }
    }

    fn release(&mut self, slot: Option<Slot>) {
        if let Some(Slot::Free(slot)) = slot {
            self.free_slots.insert(slot);
        }
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

    fn start(&mut self, id: ProcessId, reply: Reply<u32>) {
        if let Err((error, reply)) = self.begin_start(id, reply) {
            answer(reply, Err(error));
        }
    }

    fn begin_start(&mut self, id: ProcessId, reply: Reply<u32>) -> Result<(), (TaskError, Reply<u32>)> {
        let prepared = self.guest().and_then(|guest| {
            let container = self.container(&id.container)?;
            let role = container.role;
            if !id.exec.is_empty() && !container.first.phase().takes_signals() {
                return Err(TaskError::Finished(ProcessId::new(&id.container, "")));
            }
            let process = self.process(&id)?;
            process.step(Step::Start)?;
            let streams = std::mem::replace(&mut process.streams, Streams::None);
            Ok((guest, role, streams, process.exec_spec.take(), process.stdio.clone()))
        });
        let (guest, role, streams, exec_spec, stdio) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return Err((error, reply)),
        };
        if role == Role::Sandbox {
            let result = self.started(&id, Ok(None));
            answer(reply, result);
            return Ok(());
        }
        self.spawn(async move {
            let open = if let Streams::Open(open) = streams { Some(open) } else { None };
            let started = match exec_spec {
                Some(spec) => effects::start_exec(&guest.agent, &id, spec, stdio).await,
                None => effects::start_first(&guest.agent, &id, open).await,
            };
            Notice::Started(id, started, reply)
        });
        Ok(())
    }

    fn started(
        &mut self,
        id: &ProcessId,
        started: Result<Option<Relays>, TaskError>,
    ) -> Result<u32, TaskError> {
        let pid = self.pid;
        let ended = self.guest().err();
        let role = self.container(&id.container)?.role;
        let process = self.process(id)?;
        let relays = match started {
            Ok(relays) => relays,
            Err(error) => {
                // It may be over already, because its machine is.
                if process.step(Step::StartFailed).is_ok() {
                    process.conclude(Exit::now(UNKNOWN_STATUS));
                }
                return Err(error);
            }
        };
        if let Err(error) = process.step(Step::Started) {
            return Err(ended.unwrap_or(error));
        }
        process.streams = relays.map_or(Streams::None, Streams::Relayed);
        process.start_published = true;
        let ProcessId { container, exec } = id.clone();
        if exec.is_empty() {
            self.publish(&TaskStart { container_id: container, pid, ..TaskStart::default() });
        } else {
            let event = TaskExecStarted { container_id: container, exec_id: exec, pid, ..Default::default() };
            self.publish(&event);
        }
        if role != Role::Sandbox {
            self.await_exit(id.clone());
        }
        Ok(pid)
    }

    fn await_exit(&self, id: ProcessId) {
        if let Machine::Up(guest) = &self.machine {
            let agent = guest.agent.clone();
            self.spawn(async move {
                let status = agent.wait(&id).await;
                Notice::Exited(id, status)
            });
        }
    }

    fn exited(&mut self, id: &ProcessId, status: Result<u32, AgentError>) {
        match status {
            Ok(status) => self.conclude(id, status),
            Err(error) if error.is_refusal() => {
                warn!(process = %id, %error, "the agent does not know how the process ended");
                self.conclude(id, UNKNOWN_STATUS);
            }
            // Without its agent a pod is lost: its machine's end then ends what is left.
            Err(error) => {
                if let Machine::Up(guest) = &self.machine {
                    warn!(process = %id, %error, "the agent is lost: the machine is stopped");
                    let guest = guest.clone();
                    tokio::spawn(async move { guest.vm.stop().await });
                }
            }
        }
    }

    /// A process has ended: notes it, publishes it, and ends the pod with its only container.
    fn conclude(&mut self, id: &ProcessId, status: u32) {
        let pid = self.pid;
        let Ok(process) = self.process(id) else { return };
        if process.phase().is_over() || process.step(Step::Exit).is_err() {
            return;
        }
        let exit = Exit::now(status);
        process.conclude(exit);
        if process.start_published {
            let event = TaskExit {
                container_id: id.container.clone(),
                id: if id.exec.is_empty() { id.container.clone() } else { id.exec.clone() },
                pid,
                exit_status: status,
                exited_at: Some(timestamp(exit.at)).into(),
                ..TaskExit::default()
            };
            self.publish(&event);
        }
        if id.exec.is_empty() {
            self.wind_down(&id.container);
        }
    }

    /// Ends the machine of a pod of one whose container has ended, after its output.
    fn wind_down(&mut self, id: &str) {
        let Machine::Up(guest) = &self.machine else { return };
        let guest = guest.clone();
        let Ok(container) = self.container(id) else { return };
        if container.role != Role::Single {
            return;
        }
        let all = std::iter::once(&mut container.first).chain(container.execs.values_mut());
        let streams = all.map(|process| std::mem::replace(&mut process.streams, Streams::None)).collect();
        tokio::spawn(async move {
            effects::drain(streams).await;
            guest.vm.stop().await;
        });
    }

    fn machine_ended(&mut self, why: String) {
        info!(why, "the machine has ended");
        self.machine = Machine::Ended(why);
        let asked = self.asked_to_end;
        let mut ended: Vec<(bool, ProcessId)> = Vec::new();
        for container in self.containers.values() {
            let leads = container.role.leads();
            ended.extend(container.execs.values().map(|exec| (false, exec.id().clone())));
            ended.push((leads, container.first.id().clone()));
        }
        // The pod's own end is told last.
        ended.sort_by_key(|(leads, _)| *leads);
        for (leads, id) in ended {
            let status = match asked {
                Some(status) if leads => status,
                Some(_) => 128 + SIGKILL,
                None => UNKNOWN_STATUS,
            };
            self.conclude(&id, status);
        }
    }

    fn kill(&mut self, id: ProcessId, signal: u32, all: bool, reply: Reply<()>) {
        match self.check_kill(&id, signal) {
            Ok(Target::Guest { guest, leads }) => self.consult(Ok(guest), reply, async move |guest| {
                effects::signal(&guest, &id, signal, all, leads).await
            }),
            Ok(Target::Machine(guest)) => {
                self.asked_to_end = Some(128 + signal);
                self.consult(Ok(guest), reply, async move |guest| {
                    guest.vm.stop().await;
                    Ok(())
                });
            }
            Ok(Target::Unstarted) => {
                self.conclude(&id, 128 + signal);
                answer(reply, Ok(()));
            }
            Err(error) => answer(reply, Err(error)),
        }
    }

    fn check_kill(&mut self, id: &ProcessId, signal: u32) -> Result<Target, TaskError> {
        if !(1..=MAX_SIGNAL).contains(&signal) {
            let (what, expected) = ("signal", "1 to 64");
            return Err(TaskError::Invalid { what, expected, found: signal.to_string() });
        }
        let role = self.container(&id.container)?.role;
        let phase = self.process(id)?.phase();
        let ends = [SIGINT, SIGTERM, SIGKILL].contains(&signal);
        match phase {
            phase if phase.is_over() => Err(TaskError::Finished(id.clone())),
            Phase::Creating | Phase::Starting => Err(TaskError::Busy(id.clone())),
            _ if role == Role::Sandbox && !ends => {
                Err(TaskError::Unsupported("signals to a pod's sandbox other than INT, TERM and KILL"))
            }
            _ if role == Role::Sandbox => Ok(Target::Machine(self.guest()?)),
            Phase::Created if ends => Ok(Target::Unstarted),
            Phase::Created => Err(TaskError::Unsupported("signals to a process that was not started")),
            _ => Ok(Target::Guest { guest: self.guest()?, leads: role.leads() }),
        }
    }

    fn delete(&mut self, id: ProcessId, reply: Reply<Deleted>) {
        let pid = self.pid;
        let guest = self.guest().ok();
        let prepared = self.container(&id.container).map(|container| (container.role, container.slot));
        let prepared = prepared.and_then(|(role, slot)| {
            let process = self.process(&id)?;
            process.step(Step::Delete)?;
            let exit = process.exit().unwrap_or_else(|| Exit::now(0));
            let streams = std::mem::replace(&mut process.streams, Streams::None);
            Ok((role, slot, streams, Deleted { pid, exit }))
        });
        let (role, slot, streams, deleted) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return answer(reply, Err(error)),
        };
        let state = self.settings.state.clone();
        self.spawn(async move {
            effects::drain(vec![streams]).await;
            let slot = match (guest, slot) {
                _ if !id.exec.is_empty() => None,
                (Some(guest), _) if role.leads() => {
                    effects::end_pod(&guest).await;
                    None
                }
                (Some(guest), Some(slot)) => Some(guest.remove(&id.container, slot).await),
                (None, _) if role.leads() => {
                    if let Err(error) = state.remove() {
                        warn!(path = %state.path().display(), %error, "the pod's directory is not removed");
                    }
                    None
                }
                _ => None,
            };
            Notice::Deleted(id, slot, deleted, reply)
        });
    }

    fn deleted(&mut self, id: &ProcessId, slot: Option<Slot>, deleted: Deleted) {
        self.release(slot);
        if !id.exec.is_empty() {
            let exec = self.container(&id.container).ok().and_then(|it| it.execs.remove(&id.exec));
            if let Some(mut process) = exec {
                process.conclude(deleted.exit);
            }
            return;
        }
        if let Some(mut container) = self.containers.remove(&id.container) {
            container.first.conclude(deleted.exit);
            for exec in container.execs.values_mut() {
                exec.conclude(deleted.exit);
            }
            self.publish(&TaskDelete {
                container_id: id.container.clone(),
                pid: deleted.pid,
                exit_status: deleted.exit.status,
                exited_at: Some(timestamp(deleted.exit.at)).into(),
                ..TaskDelete::default()
            });
        }
    }

    fn freeze(&mut self, container: String, step: Step, reply: Reply<()>) {
        let id = ProcessId::new(&container, "");
        let guest = self.in_guest(&id).and_then(|guest| {
            self.process(&id)?.step(step)?;
            Ok(guest)
        });
        let guest = match guest {
            Ok(guest) => guest,
            Err(error) => return answer(reply, Err(error)),
        };
        self.spawn(async move {
            let (result, done, failed) = if step == Step::Pause {
                (guest.agent.pause(&container).await, Step::Paused, Step::PauseFailed)
            } else {
                (guest.agent.resume(&container).await, Step::Resumed, Step::ResumeFailed)
            };
            let step = if result.is_ok() { done } else { failed };
            Notice::Frozen(container, step, result, reply)
        });
    }

    fn frozen(
        &mut self,
        container: &str,
        step: Step,
        result: Result<(), AgentError>,
    ) -> Result<(), TaskError> {
        let stepped = self.container(container)?.first.step(step);
        result?;
        stepped?;
        let container_id = container.to_owned();
        if step == Step::Paused {
            self.publish(&TaskPaused { container_id, ..TaskPaused::default() });
        } else {
            self.publish(&TaskResumed { container_id, ..TaskResumed::default() });
        }
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

/// Whom a signal concerns.
enum Target {
    /// A process in the guest.
    Guest { guest: Guest, leads: bool },
    /// The pod itself.
    Machine(Guest),
    /// A process that never ran, and now never will.
    Unstarted,
}

fn task_create(create: Create, pid: u32) -> TaskCreate {
    let Stdio { stdin, stdout, stderr, terminal } = create.stdio;
    TaskCreate {
        container_id: create.id,
        bundle: create.bundle.display().to_string(),
        rootfs: create.rootfs,
        io: Some(TaskIO { stdin, stdout, stderr, terminal, ..TaskIO::default() }).into(),
        pid,
        ..TaskCreate::default()
    }
}
