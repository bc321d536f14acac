#![allow(unsafe_code, reason = "adopts one inherited descriptor")]
//! The runtime process itself: one task, then the end.
//!
//! Unsafe: taking ownership of the descriptor whose number is the first argument. The agent, which is the only
//! one to start a process under this name, passes an open socket that nothing else here knows.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;

use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::syscall::syscall::SyscallType;
use oci_spec::runtime::Spec;
use rustix::io::FdFlags;

use super::workload::Workload;
use super::{Outcome, Task, pause};

/// Longest task in bytes.
const MAX_TASK: u64 = 64 * 1024;

/// Runs as a runtime process. Its exit code only matters to a person at a debugger; the agent reads the answer.
#[must_use]
pub fn main() -> ExitCode {
    // Standard error belongs to the container: not even a panic may write there.
    std::panic::set_hook(Box::new(|_| {}));
    match converse() {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn converse() -> std::io::Result<()> {
    let number = std::env::args().nth(1).and_then(|number| number.parse::<i32>().ok()).filter(|fd| *fd > 2);
    let number = number.ok_or_else(|| std::io::Error::other("expected the number of a socket"))?;
    // SAFETY: the agent passes an open descriptor above 2 that only this function owns (see the module).
    let socket = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&socket, FdFlags::CLOEXEC)?;
    let mut socket = UnixStream::from(socket);

    let mut line = Vec::new();
    BufReader::new((&socket).take(MAX_TASK)).read_until(b'\n', &mut line)?;
    let outcome = match serde_json::from_slice(&line) {
        Ok(task) => perform(task),
        Err(error) => Outcome::Failed(format!("task for the runtime: {error}")),
    };
    let mut answer = serde_json::to_vec(&outcome)?;
    answer.push(b'\n');
    socket.write_all(&answer)?;
    // Until the agent watches what was created, this process must stay its parent.
    socket.read_exact(&mut [0]).or(Ok(()))
}

fn perform(task: Task) -> Outcome {
    let result = match task {
        Task::Create { id, bundle, root, console } => create(id, bundle, root, console),
        Task::Start { id, root } => start(&id, &root),
        Task::Exec { id, root, process, console } => exec(id, root, process, console),
        Task::PidNamespace => pause::spawn().map(Outcome::Process).map_err(|error| error.to_string()),
    };
    result.unwrap_or_else(Outcome::Failed)
}

fn create(id: String, bundle: PathBuf, root: PathBuf, console: Option<PathBuf>) -> Result<Outcome, String> {
    let container = builder(id, root, console)?
        .with_executor(Workload::init())
        .as_init(bundle)
        .with_systemd(false)
        .with_detach(true)
        .build()
        .map_err(|error| words(&error))?;
    let pid = container.pid().ok_or_else(|| "the container has no process".to_owned())?;
    Ok(Outcome::Process(pid.as_raw()))
}

fn start(id: &str, root: &std::path::Path) -> Result<Outcome, String> {
    let mut container = Container::load(root.join(id)).map_err(|error| words(&error))?;
    container.start().map_err(|error| words(&error))?;
    Ok(Outcome::Done)
}

fn exec(id: String, root: PathBuf, process: PathBuf, console: Option<PathBuf>) -> Result<Outcome, String> {
    let container = Container::load(root.join(&id)).map_err(|error| words(&error))?;
    let spec = Spec::load(container.bundle().join("config.json")).map_err(|error| error.to_string())?;
    let seccomp = spec.linux().as_ref().and_then(|linux| linux.seccomp().clone());
    let pid = builder(id, root, console)?
        .with_executor(Workload::exec(seccomp))
        .as_tenant()
        .with_process(Some(process))
        .with_detach(true)
        .build()
        .map_err(|error| words(&error))?;
    Ok(Outcome::Process(pid.as_raw()))
}

fn builder(id: String, root: PathBuf, console: Option<PathBuf>) -> Result<ContainerBuilder, String> {
    let builder = ContainerBuilder::new(id, SyscallType::default());
    let builder = builder.with_root_path(root).map_err(|error| words(&error))?;
    Ok(builder.with_console_socket(console))
}

/// `libcontainer` nests its reasons; the innermost one is what a user needs, so all are shown.
fn words(error: &LibcontainerError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
