//! Children of the first process: its own, whose status somebody waits for, and orphans, which are only reaped.
//!
//! One thread alone waits for children; every start of a child goes through [`Reaper::spawn`], which holds the table
//! while it starts the child, so that no exit is seen before its owner is known.

use std::{
    collections::HashMap,
    process::{Child, Command},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::{
    io::Errno,
    process::{WaitOptions, WaitStatus, wait},
};

/// Pause of the waiting thread when there is no child at all.
const IDLE: Duration = Duration::from_millis(50);

/// Those whose status is awaited, by process id.
type Owners = HashMap<i32, Sender<u8>>;

/// The one waiter for children.
#[derive(Clone)]
pub struct Reaper {
    owners: Arc<Mutex<Owners>>,
}

impl Reaper {
    /// Starts waiting, for the life of the process.
    #[must_use]
    pub fn start() -> Self {
        let reaper = Self { owners: Arc::default() };
        let waiter = reaper.clone();
        thread::spawn(move || waiter.wait_for_ever());
        reaper
    }

    fn owners(&self) -> MutexGuard<'_, Owners> {
        // The table is whole between any two of its operations.
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for_ever(&self) {
        loop {
            match wait(WaitOptions::empty()) {
                Ok(Some((pid, status))) => {
                    if let Some(owner) = self.owners().remove(&pid.as_raw_pid()) {
                        // An owner that no longer waits has no use for it.
                        let _ = owner.send(code(status));
                    }
                }
                Ok(None) | Err(Errno::INTR) => {}
                Err(_) => thread::sleep(IDLE),
            }
        }
    }

    /// Starts a child; the receiver gives its exit code, or 128 + n after signal n.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, command: &mut Command) -> std::io::Result<(Child, Receiver<u8>)> {
        let (sender, receiver) = channel();
        let mut owners = self.owners();
        let child = command.spawn()?;
        owners.insert(child.id().cast_signed(), sender);
        Ok((child, receiver))
    }

    /// Runs a command to its end.
    ///
    /// # Errors
    /// When it cannot be started or fails.
    pub fn run(&self, command: &mut Command) -> Result<()> {
        let name = command.get_program().to_string_lossy().into_owned();
        let (_, status) = self.spawn(command).with_context(|| format!("cannot start {name}"))?;
        let code = status.recv()?;
        ensure!(code == 0, "{name} ended with status {code}");
        Ok(())
    }
}

/// Exit code, or 128 + signal, as shells have it.
fn code(status: WaitStatus) -> u8 {
    let code = status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}
