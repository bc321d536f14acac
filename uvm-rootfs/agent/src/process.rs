#![allow(unsafe_code, reason = "kill(2) with any signal number has no safe wrapper")]
//! One process of a container: its streams, its end, and signals to it.
//!
//! Unsafe: `kill`, called with plain numbers.

use rustix::process::Pid;

use crate::error::{AgentError, Context, Result};
use crate::reaper::Exit;
use crate::runtime::Created;
use crate::stdio::Stdio;

/// Highest signal number on Linux.
pub const MAX_SIGNAL: u32 = 64;

/// A container's init process or one that was added to it.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    exit: Exit,
    /// Its streams, from the agent's side.
    pub stdio: Stdio,
}

impl Process {
    /// A process that the runtime created, with its streams.
    #[must_use]
    pub fn new(created: Created, stdio: Stdio) -> Self {
        Self { pid: created.pid, exit: created.exit, stdio }
    }

    /// Its id in the agent's PID namespace.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Its end.
    #[must_use]
    pub fn exit(&self) -> &Exit {
        &self.exit
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// If the process has ended, or the number is no signal.
    pub fn signal(&self, signal: u32) -> Result<()> {
        // Collected children are the only ones whose id may be reused, and collecting happens on this thread.
        if self.exit.now().is_some() {
            return Err(AgentError::NotFound("the process has ended".to_owned()));
        }
        send(self.pid, signal)
    }
}

/// Sends `signal` to `pid`; a process that is gone already is no error.
///
/// # Errors
/// If the number is no signal.
pub fn send(pid: Pid, signal: u32) -> Result<()> {
    let number = i32::try_from(signal).ok().filter(|_| (1..=MAX_SIGNAL).contains(&signal));
    let number =
        number.ok_or_else(|| AgentError::Invalid(format!("signal {signal}: expected 1 to {MAX_SIGNAL}")))?;
    // SAFETY: kill takes two integers and touches no memory of ours; `Pid` is positive, so it names one process.
    let result = unsafe { libc::kill(pid.as_raw_nonzero().get(), number) };
    match result {
        0 => Ok(()),
        _ => match std::io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            error => Err(error).doing(|| format!("send signal {signal}")),
        },
    }
}
