//! How the pod's processes come to be, run, and are removed.

use std::collections::BTreeMap;

use containerd_shim::protos::events::task::{
    TaskCreate, TaskDelete, TaskExecStarted, TaskIO, TaskPaused, TaskResumed, TaskStart,
};
use tracing::warn;

use super::actor::{Actor, Container, Machine, answer};
use super::effects::{self, Creation};
use super::ending::{KILLED_STATUS, UNKNOWN_STATUS};
use super::notice::{Created, Notice};
use super::process::{Process, Reply, Streams};
use super::state::{Exit, Step};
use super::{Create, Deleted};
use crate::agent::{AgentError, ProcessId};
use crate::events::timestamp;
use crate::identity::{self, Identity, Role};
use crate::io::{Relays, Stdio};
use crate::spec;
use crate::status::TaskError;

impl Actor {
    pub(super) fn create(&mut self, create: Box<Create>, reply: Reply<u32>) {
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
        if guest.is_none() {
            self.machine = Machine::Booting;
        }
        let first = Process::creating(process, create.stdio.clone());
        let bundle = create.bundle.clone();
        let container = Container { role, bundle, first, execs: BTreeMap::new() };
        self.containers.insert(create.id.clone(), container);
        let (driver, state) = (self.settings.driver.clone(), self.settings.state.clone());
        Ok(Creation { driver, state, role, spec, guest })
    }

    pub(super) fn created(&mut self, create: Create, created: Created) -> Result<u32, TaskError> {
        match created {
            Created::Ok { booted, stdio } => {
                if let Some(guest) = booted {
                    self.pid = guest.vm.pid();
                    tokio::spawn(effects::watch_machine(guest.clone(), self.notices.clone()));
                    tokio::spawn(effects::watch_memory(guest.agent.clone(), self.notices.clone()));
                    tokio::spawn(effects::watch_layers(guest.agent.clone(), self.settings.id.clone()));
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
            Created::Failed(error) => {
                let led = self.containers.remove(&create.id).is_some_and(|container| container.role.leads());
                if led {
                    self.machine = Machine::Absent;
                }
                Err(error)
            }
        }
    }

    pub(super) fn start(&mut self, id: ProcessId, reply: Reply<u32>) {
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
            let started = match started {
                Err(error) => Err(effects::explain(&guest, error).await),
                started => started,
            };
            Notice::Started(id, started, reply)
        });
        Ok(())
    }

    pub(super) fn started(
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
                if status.as_ref().is_ok_and(|status| *status == KILLED_STATUS) {
                    tokio::time::sleep(effects::OOM_GRACE).await;
                }
                Notice::Exited(id, status)
            });
        }
    }

    pub(super) fn delete(&mut self, id: ProcessId, reply: Reply<Deleted>) {
        let pid = self.pid;
        let guest = self.guest().ok();
        let prepared = self.container(&id.container).map(|container| container.role);
        let prepared = prepared.and_then(|role| {
            let process = self.process(&id)?;
            process.step(Step::Delete)?;
            let exit = process.exit().unwrap_or_else(|| Exit::now(0));
            let streams = std::mem::replace(&mut process.streams, Streams::None);
            Ok((role, streams, Deleted { pid, exit }))
        });
        let (role, streams, deleted) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return answer(reply, Err(error)),
        };
        let (state, winding_down) = (self.settings.state.clone(), self.winding_down);
        self.spawn(async move {
            let limit = if guest.is_some() { effects::DRAIN } else { effects::DRAIN_AFTER_END };
            effects::drain(vec![streams], limit).await;
            match guest {
                _ if !id.exec.is_empty() => {}
                Some(guest) if role.leads() => {
                    if winding_down {
                        // Its last output is still on its way; the wait is as long as that may take.
                        let _ = tokio::time::timeout(effects::DRAIN, guest.vm.wait()).await;
                    }
                    effects::end_pod(&guest).await;
                }
                Some(guest) => guest.remove(&id.container).await,
                None if role.leads() => {
                    if let Err(error) = state.remove() {
                        warn!(path = %state.path().display(), %error, "the pod's directory is not removed");
                    }
                }
                None => {}
            }
            Notice::Deleted(id, deleted, reply)
        });
    }

    pub(super) fn deleted(&mut self, id: &ProcessId, deleted: Deleted) {
        if !id.exec.is_empty() {
            let exec = self.container(&id.container).ok().and_then(|it| it.execs.remove(&id.exec));
            if let Some(mut process) = exec {
                process.conclude(deleted.exit);
            }
            return;
        }
        // Additional processes died with the first one; whoever watches them learns of it before the removal.
        let execs = self.containers.get(&id.container).into_iter().flat_map(|it| it.execs.values());
        let running: Vec<_> =
            execs.filter(|exec| !exec.phase().is_over()).map(|exec| exec.id().clone()).collect();
        for exec in running {
            self.conclude(&exec, KILLED_STATUS);
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

    pub(super) fn freeze(&mut self, container: String, step: Step, reply: Reply<()>) {
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

    pub(super) fn frozen(
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
