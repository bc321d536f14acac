//! Starts a `uvm-vmm` process and speaks its control protocol ([`launch::control`]).
//!
//! The control socket is the child's standard input, and its first packet is the launch plan: no descriptor
//! numbers, no arguments, nothing on the command line that other users of the machine could read. When the
//! parent goes away the socket closes and the VMM ends itself, so no machine outlives whoever started it.
//!
//! A blocking interface on purpose: one thread per machine reads events. Asynchronous programs call it from
//! a blocking task.
#![forbid(unsafe_code)]

mod clock;
mod socket;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use launch::control::{Event, MAX_SEGMENTS, Message, Request, Segment};
use launch::plan::{LaunchPlan, PlanError};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

pub use clock::monotonic_us;
pub use socket::{Packet, receive, send};

/// How long a request may take before the VMM counts as hung.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);
/// Stack of the thread that reads events.
const READER_STACK_BYTES: usize = 128 * 1024;

/// Why a VMM could not be started, or a request not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The plan cannot be sent.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The program could not be started.
    #[error("cannot start {path}: {source}", path = .path.display())]
    Spawn {
        /// The VMM binary.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A system call on the way failed.
    #[error("{what}: {source}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The VMM refused the request.
    #[error("the virtual machine monitor refused: {0}")]
    Refused(String),
    /// The VMM has ended, or ended before it answered.
    #[error("the virtual machine monitor has ended")]
    Ended,
    /// The VMM did not answer in time.
    #[error("the virtual machine monitor did not answer within {} s", REPLY_TIMEOUT.as_secs())]
    Hung,
    /// More segments than a request carries.
    #[error("a disk of {0} segments: expected at most {MAX_SEGMENTS}")]
    TooManySegments(usize),
}

fn system(what: &'static str) -> impl FnOnce(rustix::io::Errno) -> ClientError {
    move |errno| ClientError::System { what, source: errno.into() }
}

/// A running VMM process. Dropping it ends the machine.
#[derive(Debug)]
pub struct Vmm {
    pid: u32,
    pidfd: OwnedFd,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    control: OwnedFd,
    /// Whoever waits for an answer, oldest first; sending is serialised by the same lock, so that the
    /// order of waiters is the order of requests. `None` once the VMM has gone.
    waiting: Mutex<Option<VecDeque<SyncSender<Option<String>>>>>,
    end: Mutex<Option<End>>,
    ended: Condvar,
}

#[derive(Debug, Clone, Copy)]
struct End(Option<ExitStatus>);

impl Vmm {
    /// Starts `binary` and hands it `plan`. Events arrive on a thread of their own, in order; the last one
    /// has been delivered before [`Vmm::wait`] returns. `log` takes the process's standard error.
    ///
    /// # Errors
    /// When the process cannot be started or does not take the plan. What the VMM thinks of the plan comes
    /// as an event.
    pub fn spawn(
        binary: &Path,
        plan: &LaunchPlan,
        log: Option<File>,
        on_event: impl FnMut(Event) + Send + 'static,
    ) -> Result<Self, ClientError> {
        let plan = plan.to_json()?;
        let (ours, theirs) = socket::pair().map_err(system("create the control socket"))?;
        send(&ours, &plan, &[]).map_err(system("send the launch plan"))?;
        let child = Command::new(binary)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(log.map_or_else(Stdio::inherit, Stdio::from))
            .current_dir("/")
            .spawn()
            .map_err(|source| ClientError::Spawn { path: binary.into(), source })?;
        let pid = child.id();
        let handle = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(ClientError::Ended)?;
        let pidfd = pidfd_open(handle, PidfdFlags::empty()).map_err(system("open the process"))?;
        let shared = Arc::new(Shared {
            control: ours,
            waiting: Mutex::new(Some(VecDeque::new())),
            end: Mutex::new(None),
            ended: Condvar::new(),
        });
        let reader = Arc::clone(&shared);
        thread::Builder::new()
            .name("vmm-events".into())
            .stack_size(READER_STACK_BYTES)
            .spawn(move || reader.read_until_end(child, on_event))
            .map_err(|source| ClientError::System { what: "start the event thread", source })?;
        Ok(Self { pid, pidfd, shared })
    }

    /// Process id of the VMM.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Shows `segments`, one after another, on the disk in `slot` from byte `at` on.
    ///
    /// # Errors
    /// When the VMM refuses (unknown slot, something there already, bad segment), has ended, or does not answer.
    pub fn attach(&self, slot: u32, at: u64, segments: &[(File, Segment)]) -> Result<(), ClientError> {
        if segments.len() > MAX_SEGMENTS {
            return Err(ClientError::TooManySegments(segments.len()));
        }
        let files: Vec<BorrowedFd<'_>> = segments.iter().map(|(file, _)| file.as_fd()).collect();
        let segments = segments.iter().map(|(_, segment)| *segment).collect();
        self.shared.request(&Request::Attach { slot, at, segments }, &files)
    }

    /// Takes what was attached to the disk in `slot` at byte `at` away again.
    ///
    /// # Errors
    /// When the VMM refuses (nothing was attached there), has ended, or does not answer.
    pub fn detach(&self, slot: u32, at: u64) -> Result<(), ClientError> {
        self.shared.request(&Request::Detach { slot, at }, &[])
    }

    /// Asks the VMM to end the machine in order; [`Vmm::wait`] tells when it has.
    ///
    /// # Errors
    /// When the VMM has ended or does not answer.
    pub fn stop(&self) -> Result<(), ClientError> {
        self.shared.request(&Request::Stop, &[])
    }

    /// Kills the process. Harmless when it has ended.
    pub fn kill(&self) {
        // The only failure is that the process is gone already, which is what was asked for.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Blocks until the process has ended. `None` when another part of this program reaped it first.
    #[must_use]
    pub fn wait(&self) -> Option<ExitStatus> {
        let mut end = lock(&self.shared.end);
        loop {
            if let Some(End(status)) = *end {
                return status;
            }
            end = self.shared.ended.wait(end).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        self.kill();
    }
}

/// No code panics while it holds one of these locks, so a poisoned one is still consistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn request(&self, request: &Request, files: &[BorrowedFd<'_>]) -> Result<(), ClientError> {
        let json = serde_json::to_vec(request).map_err(PlanError::Syntax)?;
        let (answer, answered) = sync_channel(1);
        {
            let mut waiting = lock(&self.waiting);
            let queue = waiting.as_mut().ok_or(ClientError::Ended)?;
            send(&self.control, &json, files).map_err(|errno| match errno {
                rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET => ClientError::Ended,
                other => system("send a request to the virtual machine monitor")(other),
            })?;
            queue.push_back(answer);
        }
        match answered.recv_timeout(REPLY_TIMEOUT) {
            Ok(None) => Ok(()),
            Ok(Some(why)) => Err(ClientError::Refused(why)),
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => Err(ClientError::Ended),
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => Err(ClientError::Hung),
        }
    }

    /// Delivers messages until the VMM closes its side, then reaps it.
    fn read_until_end(&self, mut child: Child, mut on_event: impl FnMut(Event)) {
        while let Ok(Some(packet)) = receive(&self.control) {
            match serde_json::from_slice(&packet.bytes) {
                Ok(Message::Event(event)) => on_event(event),
                Ok(Message::Reply(refusal)) => self.answer_oldest(refusal),
                // A VMM that was taken over by its guest may say anything; it is not worth talking to.
                Err(_) => break,
            }
        }
        *lock(&self.waiting) = None;
        let _ = child.kill();
        let status = child.wait().ok();
        *lock(&self.end) = Some(End(status));
        self.ended.notify_all();
    }

    fn answer_oldest(&self, refusal: Option<String>) {
        if let Some(waiter) = lock(&self.waiting).as_mut().and_then(VecDeque::pop_front) {
            // The waiter may have given up after its time-out.
            let _ = waiter.send(refusal);
        }
    }
}

#[cfg(test)]
mod tests;
