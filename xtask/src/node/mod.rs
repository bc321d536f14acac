//! The nested node: this machine booted again under QEMU, with a `/dev/kvm` and containerd.
//!
//! [`Node::boot`] starts it, [`Node::run`] runs one command after another in it with their streams and exit status
//! passed exactly, [`Node::shutdown`] ends it. The node's root is an overlay over this machine's files, which are
//! served to it read-only (see [`share`]); one folder, [`NodeConfig::share`], is writable and common to both.
//!
//! QEMU and the file server die with this process, however it ends, and no socket of theirs has a name in the file
//! system.

pub mod checks;
mod console;
pub mod init;
mod linux;
mod pause;
mod qemu;
pub mod share;
mod wire;

use std::{
    ffi::OsString,
    fs,
    io::{self, IsTerminal, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use wire::{JobSpec, Reply, Request, Setup};

use crate::places;

/// Memory of a node in MiB, unless told otherwise: containerd, a few utility VMs, and the root's upper layer.
pub const DEFAULT_MEMORY_MIB: u64 = 4096;
/// Most processors that a node gets unasked: emulated ones beyond the machine's own only compete.
const DEFAULT_MAX_CPUS: usize = 8;
/// Name of the virtio-serial port on which [`wire`] is spoken.
const PORT_NAME: &str = "uvm.node";
/// How often a boot is tried.
const BOOT_TRIES: u32 = 3;
/// Longest time from power-on to the first command.
const BOOT_LIMIT: Duration = Duration::from_secs(240);
/// Between two signs of life of a node.
const BEAT: Duration = Duration::from_secs(5);
/// A node that has not been heard of for so long hangs: emulated processors now and then lock each other out.
const SILENCE: Duration = Duration::from_secs(120);
/// How much of the console an error shows, in bytes.
const CONSOLE_TAIL: usize = 2048;
/// Longest time from the request to power off until QEMU's end.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(20);

/// What a node is made of.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Number of processors.
    pub cpus: usize,
    /// Folder that the node may write to, at the same path here and there. Made if missing.
    pub share: PathBuf,
    /// Whether containerd is started.
    pub containerd: bool,
}

impl Default for NodeConfig {
    fn default() -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            memory_mib: DEFAULT_MEMORY_MIB,
            cpus: cpus.min(DEFAULT_MAX_CPUS),
            share: places::target().join("node/share"),
            containerd: true,
        }
    }
}

/// A command for the node.
#[derive(Debug, Clone)]
pub struct Job {
    spec: JobSpec,
}

impl Job {
    /// A command with this process's environment and working directory.
    ///
    /// # Errors
    /// When there is no working directory, or `argv` is empty.
    pub fn new(argv: impl IntoIterator<Item = impl Into<OsString>>) -> Result<Self> {
        let argv: Vec<_> = argv.into_iter().map(Into::into).collect();
        ensure!(!argv.is_empty(), "expected a command to run in the node");
        let environment = std::env::vars_os().collect();
        let directory = std::env::current_dir().context("no working directory")?;
        Ok(Self { spec: JobSpec { argv, environment, directory, terminal: None } })
    }

    /// A script for the POSIX shell.
    ///
    /// # Errors
    /// As [`Job::new`].
    pub fn shell(script: &str) -> Result<Self> {
        Self::new(["/bin/sh", "-c", script])
    }
}

/// What a command reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// Nothing.
    Empty,
    /// This process's standard input. For the last command of a process only: input is read ahead.
    Inherited,
}

/// Where a command's streams lead.
pub struct Streams<'a> {
    /// Standard input.
    pub input: Input,
    /// Standard output.
    pub output: &'a mut dyn Write,
    /// Standard error.
    pub errors: &'a mut dyn Write,
}

impl Streams<'static> {
    /// This process's own streams.
    #[must_use]
    pub fn inherited() -> Self {
        // Lives as long as the process, once.
        Self {
            input: Input::Inherited,
            output: Box::leak(Box::new(io::stdout())),
            errors: Box::leak(Box::new(io::stderr())),
        }
    }
}

/// What a command did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Exit code, or 128 + n after signal n.
    pub status: u8,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

/// Sends requests of several threads, one at a time.
#[derive(Clone)]
struct Requests(Arc<Mutex<UnixStream>>);

impl Requests {
    fn send(&self, request: &Request) -> io::Result<()> {
        let stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        wire::send(&*stream, request)
    }
}

/// A running node. Dropping it ends it at once.
pub struct Node {
    machine: qemu::Machine,
    port: UnixStream,
    requests: Requests,
    folder: PathBuf,
}

impl Node {
    /// Boots a node and waits until it takes commands.
    ///
    /// An emulated processor now and then loses a race of the node's own kernel (code patched while another
    /// processor runs it), which panics within seconds: the boot is tried up to [`BOOT_TRIES`] times.
    ///
    /// # Errors
    /// When it cannot be started or is not ready in time; the error names the console's log.
    pub fn boot(config: &NodeConfig) -> Result<Self> {
        for _ in 1..BOOT_TRIES {
            match Self::boot_once(config) {
                Ok(node) => return Ok(node),
                Err(error) => eprintln!("node: trying again: {error:#}"),
            }
        }
        Self::boot_once(config)
    }

    fn boot_once(config: &NodeConfig) -> Result<Self> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "only root can share this machine's files with the node"
        );
        let kernel = linux::fetch()?;
        let share = shared_folder(&config.share)?;
        let config = NodeConfig { share: share.clone(), ..config.clone() };
        let folder = run_folder()?;
        let containerd = if config.containerd { Some(pause::archive(&folder)?) } else { None };
        let (accelerator, reason) = qemu::Accelerator::probe();
        eprintln!("node: {} CPUs, {} MiB, {reason}", config.cpus, config.memory_mib);
        let started = Instant::now();
        let (machine, port) = qemu::Machine::start(&config, &kernel, accelerator, &folder)?;
        let requests = Requests(Arc::new(Mutex::new(port.try_clone()?)));
        let mut node = Self { machine, port, requests, folder };
        let setup =
            Setup { share, repository: places::repository().to_owned(), modules: kernel.root, containerd };
        node.begin(setup).with_context(|| {
            let seconds = started.elapsed().as_secs_f64();
            format!("the node did not start ({seconds:.0} s); its console is {}", node.keep_logs().display())
        })?;
        Ok(node)
    }

    fn begin(&mut self, setup: Setup) -> Result<()> {
        self.requests.send(&Request::Setup(setup))?;
        self.port.set_read_timeout(Some(BOOT_LIMIT))?;
        match wire::receive(&self.port).map_err(explain)? {
            Reply::Ready => {}
            Reply::Failed(reason) => bail!("{reason}"),
            other => bail!("expected the node to be ready, found {other:?}"),
        }
        Ok(self.port.set_read_timeout(Some(SILENCE))?)
    }

    /// Runs a command to its end; gives its exit code, or 128 + n after signal n.
    ///
    /// # Errors
    /// When the node ends before the command or hangs, or a stream cannot be written.
    pub fn run(&mut self, job: &Job, streams: Streams<'_>) -> Result<u8> {
        self.requests.send(&Request::Run(job.spec.clone()))?;
        match streams.input {
            Input::Empty => self.requests.send(&Request::Input(Vec::new()))?,
            Input::Inherited => console::pump_input(self.requests.clone()),
        }
        loop {
            let reply = wire::receive(&self.port).map_err(explain);
            match reply.with_context(|| self.last_words())? {
                Reply::Output(bytes) => write_now(streams.output, &bytes)?,
                Reply::Errors(bytes) => write_now(streams.errors, &bytes)?,
                Reply::Alive => {}
                Reply::Exited(status) => return Ok(status),
                Reply::Failed(reason) => bail!("node: {reason}"),
                Reply::Ready => bail!("expected the command's output, found the node ready again"),
            }
        }
    }

    /// Runs a command without input and gives what it wrote.
    ///
    /// # Errors
    /// As [`Node::run`].
    pub fn output(&mut self, job: &Job) -> Result<Output> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let streams = Streams { input: Input::Empty, output: &mut stdout, errors: &mut stderr };
        let status = self.run(job, streams)?;
        Ok(Output { status, stdout, stderr })
    }

    /// An interactive shell on this process's terminal.
    ///
    /// # Errors
    /// When standard input is no terminal; otherwise as [`Node::run`].
    pub fn shell(&mut self) -> Result<u8> {
        ensure!(io::stdin().is_terminal(), "expected a command after --, or a terminal for a shell");
        let mut job = Job::new(["/bin/bash"])?;
        let terminal = console::RawTerminal::enter(self.requests.clone())?;
        job.spec.terminal = Some(terminal.size()?);
        self.run(&job, Streams::inherited())
    }

    /// Powers the node off; files in the shared folder are complete afterwards.
    ///
    /// # Errors
    /// When the node does not end in time: it is then ended by force.
    pub fn shutdown(mut self) -> Result<()> {
        self.requests.send(&Request::Shutdown)?;
        self.port.set_read_timeout(Some(SHUTDOWN_LIMIT))?;
        let deadline = Instant::now() + SHUTDOWN_LIMIT;
        loop {
            match wire::receive::<Reply>(&self.port) {
                // Each sign of life starts the port's time anew, so it does not count.
                Ok(Reply::Alive) => ensure!(Instant::now() < deadline, "the node did not power off in time"),
                Err(error) if ended(&error) => break,
                Err(error) => return Err(explain(error)).context("the node did not power off"),
                Ok(reply) => bail!("expected the node to power off, found {reply:?}"),
            }
        }
        let status = self.machine.wait()?;
        ensure!(status.success(), "QEMU: {status}");
        // Logs of a node that ended well are of no use; another run removes them if this fails.
        let _ = fs::remove_dir_all(&self.folder);
        Ok(())
    }

    fn keep_logs(&self) -> &Path {
        self.machine.console()
    }

    /// Where the console is, and how it ends: all that is left of a node that a test run starts.
    fn last_words(&self) -> String {
        let console = self.keep_logs();
        let bytes = fs::read(console).unwrap_or_default();
        let tail = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(CONSOLE_TAIL)..]).into_owned();
        format!("the node's console is {}; it ends with:\n{}\n", console.display(), tail.trim_end())
    }
}

/// A reader of the port sees either when QEMU ends: which one depends on what was still unread.
fn ended(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset)
}

fn explain(error: io::Error) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => {
            anyhow::anyhow!("expected a sign of life in time, found none: the node hangs")
        }
        _ if ended(&error) => anyhow::anyhow!("the node ended unexpectedly"),
        _ => anyhow::Error::new(error).context("cannot read from the node"),
    }
}

fn write_now(stream: &mut dyn Write, bytes: &[u8]) -> Result<()> {
    stream.write_all(bytes).and_then(|()| stream.flush()).context("cannot pass on the command's output")
}

/// The shared folder as an absolute path, made if missing. The kernel resolves links, so the node does not.
fn shared_folder(share: &Path) -> Result<PathBuf> {
    fs::create_dir_all(share).with_context(|| format!("cannot make {}", share.display()))?;
    let share = share.canonicalize()?;
    ensure!(share != Path::new("/"), "expected a folder to share with the node, found the whole machine");
    Ok(share)
}

/// A folder for this run's logs; those of processes that are gone are removed.
fn run_folder() -> Result<PathBuf> {
    let nodes = places::target().join("node");
    fs::create_dir_all(&nodes)?;
    for entry in fs::read_dir(&nodes)?.flatten() {
        let name = entry.file_name();
        let process =
            name.to_str().and_then(|name| name.strip_prefix("run-")).and_then(|run| run.split('-').next());
        if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            // Two nodes may clean up at once.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let prefix = format!("run-{}-", std::process::id());
    Ok(tempfile::Builder::new().prefix(&prefix).tempdir_in(nodes)?.keep())
}
