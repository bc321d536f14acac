//! The actor's book about one process: its phase, its streams, who waits for it.

use tokio::sync::oneshot;

use super::state::{Exit, Phase, Refused, Step, next};
use crate::agent::ProcessId;
use crate::io::{OpenStdio, Relays, Stdio};
use crate::status::TaskError;

/// Where an answer to a request goes. That nobody waits for it any more is no error.
pub type Reply<T> = oneshot::Sender<Result<T, TaskError>>;

/// What carries a process's streams.
#[derive(Debug)]
pub enum Streams {
    /// Nothing: not open yet, or over.
    None,
    /// Open, and not connected to the guest yet.
    Open(Box<OpenStdio>),
    /// Carried.
    Relayed(Relays),
}

/// A process of the pod.
#[derive(Debug)]
pub struct Process {
    id: ProcessId,
    phase: Phase,
    /// Where its streams go.
    pub stdio: Stdio,
    /// What carries them.
    pub streams: Streams,
    /// Whether its start was published, so that its exit must be.
    pub start_published: bool,
    /// The process to run, if it is an additional one that was not started yet.
    pub exec_spec: Option<agent_protocol::rpc::oci::Process>,
    exit: Option<Exit>,
    waiters: Vec<Reply<Exit>>,
}

impl Process {
    /// A process that the guest is asked to create.
    #[must_use]
    pub fn creating(id: ProcessId, stdio: Stdio) -> Self {
        Self {
            id,
            phase: Phase::Creating,
            stdio,
            streams: Streams::None,
            start_published: false,
            exec_spec: None,
            exit: None,
            waiters: Vec::new(),
        }
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> &ProcessId {
        &self.id
    }

    /// Where it is in its life.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn exit(&self) -> Option<Exit> {
        self.exit
    }

    /// Takes a step.
    ///
    /// # Errors
    /// When its phase does not allow it.
    pub fn step(&mut self, step: Step) -> Result<(), TaskError> {
        let refused = |source: Refused| TaskError::State { process: self.id.clone(), source };
        self.phase = next(self.phase, step).map_err(refused)?;
        Ok(())
    }

    /// Answers now if the process has ended, else when it does.
    pub fn wait(&mut self, reply: Reply<Exit>) {
        match self.exit {
            Some(exit) => drop(reply.send(Ok(exit))),
            None => {
                // A client that stopped waiting leaves its reply behind: make room for those that still do.
                self.waiters.retain(|waiter| !waiter.is_closed());
                self.waiters.push(reply);
            }
        }
    }

    /// Notes how the process ended and tells whoever waits. Only the first end counts.
    pub fn conclude(&mut self, exit: Exit) {
        let exit = *self.exit.get_or_insert(exit);
        for waiter in self.waiters.drain(..) {
            drop(waiter.send(Ok(exit)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn everybody_who_waits_is_told_the_first_end() {
        let mut process = Process::creating(ProcessId::new("c", ""), Stdio::default());
        let (early, early_answer) = oneshot::channel();
        process.wait(early);
        let first = Exit::now(3);
        process.conclude(first);
        process.conclude(Exit::now(255));
        let (late, late_answer) = oneshot::channel();
        process.wait(late);
        assert_eq!(early_answer.await.unwrap().unwrap(), first);
        assert_eq!(late_answer.await.unwrap().unwrap(), first);
    }
}
