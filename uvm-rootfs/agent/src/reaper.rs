//! The one place that waits for children.
//!
//! As PID 1 the agent inherits every orphan of the guest, so children are collected with `waitpid(-1)` and each
//! status goes to whoever watches that process. No status is lost and none goes to the wrong watcher, because
//! everything here runs on one thread and a process is watched before it can be collected:
//! - a process that the agent spawns is watched in the same step, with no `await` in between;
//! - a container's process is a child of its runtime process until that exits, and the runtime process exits
//!   only after the agent has said that it watches ([`crate::runtime`]).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::{Pid, WaitOptions, WaitStatus, wait};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::error::{Context, Result};

/// How a process ended: its exit code, or 128 plus the number of the signal that ended it.
pub type ExitStatus = i32;

/// The end of one process, once it has come.
#[derive(Debug, Clone)]
pub struct Exit(watch::Receiver<Option<ExitStatus>>);

impl Exit {
    /// The status, if the process has ended.
    #[must_use]
    pub fn now(&self) -> Option<ExitStatus> {
        *self.0.borrow()
    }

    /// Waits for the end.
    pub async fn wait(&self) -> ExitStatus {
        let mut receiver = self.0.clone();
        // The sender is dropped only after it has sent a status, so the value is there in both cases.
        let _ = receiver.wait_for(Option::is_some).await;
        let status = *receiver.borrow();
        status.unwrap_or(UNKNOWN)
    }
}

/// Status of a process whose end was not observed. It cannot happen while the invariant above holds.
const UNKNOWN: ExitStatus = 255;

type Watchers = HashMap<i32, watch::Sender<Option<ExitStatus>>>;

/// Collects children and tells their watchers.
#[derive(Debug, Clone, Default)]
pub struct Reaper(Arc<Mutex<Watchers>>);

impl Reaper {
    /// Starts collecting; needs a tokio runtime of one thread.
    ///
    /// # Errors
    /// If SIGCHLD cannot be received.
    pub fn start() -> Result<Self> {
        let reaper = Self::default();
        let mut child = signal(SignalKind::child()).doing(|| "receive SIGCHLD".to_owned())?;
        let collector = reaper.clone();
        tokio::spawn(async move {
            // Children may have ended before the signal was registered.
            collector.collect();
            while child.recv().await.is_some() {
                collector.collect();
            }
        });
        Ok(reaper)
    }

    /// Watches a process that has not been collected yet (see the module's invariant).
    #[must_use]
    pub fn watch(&self, pid: Pid) -> Exit {
        let (sender, receiver) = watch::channel(None);
        self.lock().insert(pid.as_raw_nonzero().get(), sender);
        Exit(receiver)
    }

    fn collect(&self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if let Some(sender) = self.lock().remove(&pid.as_raw_nonzero().get()) {
                sender.send_replace(Some(exit_status(status)));
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Watchers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn exit_status(status: WaitStatus) -> ExitStatus {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => UNKNOWN,
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[allow(clippy::zombie_processes, reason = "the reaper under test waits")]
    fn run(reaper: &Reaper, script: &str) -> Exit {
        let child = Command::new("/bin/sh").args(["-c", script]).spawn().unwrap();
        reaper.watch(Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap())
    }

    /// One test and one reaper, because `waitpid(-1)` of one would collect the children of another.
    #[tokio::test]
    async fn exit_codes_signals_and_late_waits() {
        let reaper = Reaper::start().unwrap();
        let exit = run(&reaper, "exit 42");
        assert_eq!(exit.wait().await, 42);
        assert_eq!((exit.now(), exit.wait().await), (Some(42), 42));
        assert_eq!(run(&reaper, "kill -KILL $$").wait().await, 137);
        // Container processes lead sessions, and so process groups, of their own.
        assert_eq!(run(&reaper, "exec setsid sh -c 'exit 7'").wait().await, 7);
        assert!(reaper.lock().is_empty());
    }
}
