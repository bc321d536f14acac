//! Creating container processes, each through a fresh process of its own.
//!
//! `libcontainer` forks, changes directories and blocks, which a multiplexing PID 1 must not do. So the agent
//! executes itself once more under the name [`NAME`]; that process is single-threaded, has the container's
//! standard streams as its own, does one [`Task`] and ends. They talk over an inherited socket pair:
//!
//! 1. agent → runtime: the task, one JSON line;
//! 2. runtime → agent: the [`Outcome`], one JSON line;
//! 3. agent → runtime: one byte, "the process you created is watched now"; the runtime exits.
//!
//! Until step 3 the created process is the runtime's child, so that its end, however early, is collected only
//! when somebody watches for it.

mod child;
mod executable;
mod pause;
mod workload;

use std::ffi::OsString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::io::FdFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::Pid;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

pub use child::main;
pub use pause::main as pause;

use crate::error::{AgentError, Context, Result};
use crate::reaper::{Exit, Reaper};
use crate::stdio::ProcessEnds;

/// The name (`argv[0]`) under which the agent's program is a runtime process.
pub const NAME: &str = "uvm-agent-runtime";
/// The name under which it is the first process of a shared PID namespace.
pub const PAUSE_NAME: &str = "uvm-agent-pause";

/// Longest answer of a runtime process in bytes.
const MAX_OUTCOME: u64 = 64 * 1024;

/// What a runtime process is to do.
#[derive(Debug, Serialize, Deserialize)]
pub enum Task {
    /// Create a container and its init process, which then waits for [`Task::Start`].
    Create {
        /// Container id.
        id: String,
        /// Directory with `config.json`.
        bundle: PathBuf,
        /// Where `libcontainer` keeps its state.
        root: PathBuf,
        /// Socket that receives the terminal, if the process has one.
        console: Option<PathBuf>,
    },
    /// Let a created container's init process run.
    Start {
        /// Container id.
        id: String,
        /// Where `libcontainer` keeps its state.
        root: PathBuf,
    },
    /// Create and start a further process in a running container.
    Exec {
        /// Container id.
        id: String,
        /// Where `libcontainer` keeps its state.
        root: PathBuf,
        /// OCI process, as a JSON file.
        process: PathBuf,
        /// Socket that receives the terminal, if the process has one.
        console: Option<PathBuf>,
    },
    /// Create a PID namespace and its first process.
    PidNamespace,
}

/// What a runtime process has done.
#[derive(Debug, Serialize, Deserialize)]
pub enum Outcome {
    /// A process was created.
    Process(i32),
    /// Done; no process was created.
    Done,
    /// Nothing was done, for this reason.
    Failed(String),
}

/// Runs tasks in runtime processes.
#[derive(Debug, Clone)]
pub struct Runtime {
    program: PathBuf,
    reaper: Reaper,
}

/// A process that a task created.
#[derive(Debug, Clone)]
pub struct Created {
    /// Its id in the agent's PID namespace.
    pub pid: Pid,
    /// Its end.
    pub exit: Exit,
}

impl Runtime {
    /// Uses `program`, which calls [`main`] when its name is [`NAME`].
    #[must_use]
    pub fn new(program: PathBuf, reaper: Reaper) -> Self {
        Self { program, reaper }
    }

    /// Runs a task that creates a process with the given streams (`None`: it gets a terminal or needs none).
    ///
    /// # Errors
    /// With the runtime's own words if it could not create the process.
    pub async fn create(&self, task: &Task, streams: Option<ProcessEnds>) -> Result<Created> {
        let (mut socket, child) = self.spawn(streams)?;
        let result = match ask(&mut socket, task).await {
            Ok(Outcome::Process(raw)) => match Pid::from_raw(raw) {
                Some(pid) => Ok(Created { pid, exit: self.reaper.watch(pid) }),
                None => Err(AgentError::Runtime(format!("process id {raw} from the runtime"))),
            },
            Ok(Outcome::Done) => Err(AgentError::Runtime("the runtime created no process".to_owned())),
            Ok(Outcome::Failed(reason)) => Err(AgentError::Runtime(reason)),
            Err(error) => Err(error),
        };
        finish(socket, &child).await;
        result
    }

    /// Runs a task that creates no process.
    ///
    /// # Errors
    /// With the runtime's own words.
    pub async fn run(&self, task: &Task) -> Result<()> {
        let (mut socket, child) = self.spawn(None)?;
        let result = match ask(&mut socket, task).await {
            Ok(Outcome::Done) => Ok(()),
            Ok(Outcome::Process(_)) => {
                Err(AgentError::Runtime("the runtime created a process unasked".to_owned()))
            }
            Ok(Outcome::Failed(reason)) => Err(AgentError::Runtime(reason)),
            Err(error) => Err(error),
        };
        finish(socket, &child).await;
        result
    }

    /// Starts a runtime process and watches it, in one step.
    fn spawn(&self, streams: Option<ProcessEnds>) -> Result<(UnixStream, Exit)> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .doing(|| "make a socket pair for the runtime".to_owned())?;
        let mut command = Command::new(&self.program);
        command.arg0(NAME).arg(OsString::from(theirs.as_raw_fd().to_string())).env_clear().current_dir("/");
        let (stdin, stdout, stderr) = match streams {
            Some(ends) => (ends.stdin.into(), ends.stdout.into(), ends.stderr.into()),
            None => (Stdio::null(), Stdio::null(), Stdio::null()),
        };
        command.stdin(stdin).stdout(stdout).stderr(stderr);
        // Inheritable from here to the end of the function, which nothing else runs meanwhile.
        rustix::io::fcntl_setfd(&theirs, FdFlags::empty())
            .doing(|| "pass a socket to the runtime".to_owned())?;
        let child = command.spawn().doing(|| format!("start {}", self.program.display()))?;
        let raw = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid =
            raw.ok_or_else(|| AgentError::Runtime(format!("process id {} of the runtime", child.id())))?;
        let exit = self.reaper.watch(pid);
        Ok((connect(ours)?, exit))
    }
}

fn connect(socket: OwnedFd) -> Result<UnixStream> {
    let socket = std::os::unix::net::UnixStream::from(socket);
    socket.set_nonblocking(true).doing(|| "prepare the runtime's socket".to_owned())?;
    UnixStream::from_std(socket).doing(|| "watch the runtime's socket".to_owned())
}

async fn ask(socket: &mut UnixStream, task: &Task) -> Result<Outcome> {
    let describe = || "talk to the runtime".to_owned();
    let mut line = serde_json::to_vec(task).map_err(std::io::Error::from).doing(describe)?;
    line.push(b'\n');
    socket.write_all(&line).await.doing(describe)?;
    let mut answer = Vec::new();
    BufReader::new(socket.take(MAX_OUTCOME)).read_until(b'\n', &mut answer).await.doing(describe)?;
    if answer.is_empty() {
        return Err(AgentError::Runtime("the runtime process ended without an answer".to_owned()));
    }
    serde_json::from_slice(&answer).map_err(std::io::Error::from).doing(describe)
}

/// Lets the runtime process end, and waits for that: what it created is the agent's child from then on.
async fn finish(mut socket: UnixStream, child: &Exit) {
    let _ = socket.write_all(b"\n").await;
    drop(socket);
    child.wait().await;
}
