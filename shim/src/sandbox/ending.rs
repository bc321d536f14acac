//! How the pod's processes end: by themselves, by a signal, with their machine.

use containerd_shim::protos::events::task::TaskExit;
use tracing::{info, warn};

use super::actor::{Actor, Machine, answer};
use super::effects::{self, SIGKILL};
use super::notice::Notice;
use super::process::{Reply, Streams};
use super::state::{Exit, Phase, Step};
use crate::agent::{AgentError, ProcessId};
use crate::container::Guest;
use crate::events::timestamp;
use crate::identity::Role;
use crate::status::TaskError;

const SIGINT: u32 = 2;
const SIGTERM: u32 = 15;
/// Largest signal number on Linux.
const MAX_SIGNAL: u32 = 64;
/// Exit status of a process whose end nobody saw.
pub(super) const UNKNOWN_STATUS: u32 = 255;
/// Exit status of a process that SIGKILL ended.
pub(super) const KILLED_STATUS: u32 = 128 + SIGKILL;

/// Whom a signal concerns.
enum Target {
    /// A process in the guest.
    Guest(Guest),
    /// The pod itself.
    Machine(Guest),
    /// A process that never ran, and now never will.
    Unstarted,
}

impl Actor {
    pub(super) fn exited(&mut self, id: &ProcessId, status: Result<u32, AgentError>) {
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
    pub(super) fn conclude(&mut self, id: &ProcessId, status: u32) {
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
        self.winding_down = true;
        tokio::spawn(async move {
            effects::drain(streams, effects::DRAIN).await;
            guest.vm.stop().await;
        });
    }

    pub(super) fn machine_ended(&mut self, why: String) {
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

    pub(super) fn kill(&mut self, id: ProcessId, signal: u32, all: bool, reply: Reply<()>) {
        match self.check_kill(&id, signal) {
            Ok(Target::Guest(guest)) => {
                if signal == SIGKILL && id.exec.is_empty() {
                    let killed = id.clone();
                    self.spawn(async move {
                        tokio::time::sleep(effects::KILL_LIMIT).await;
                        Notice::KillOverdue(killed)
                    });
                }
                self.consult(Ok(guest), reply, async move |guest| {
                    effects::signal(&guest, &id, signal, all).await
                });
            }
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

    /// A guest that does not end what was killed loses its machine: a pod can always be ended.
    pub(super) fn kill_overdue(&mut self, id: &ProcessId) {
        let over = self.process(id).map_or(true, |process| process.phase().is_over());
        if let (false, Machine::Up(guest)) = (over, &self.machine) {
            warn!(process = %id, "killed, and still there: the machine is stopped");
            let guest = guest.clone();
            tokio::spawn(async move { guest.vm.stop().await });
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
            _ => Ok(Target::Guest(self.guest()?)),
        }
    }
}
