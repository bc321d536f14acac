//! The node's first process: this very program, started by the node's kernel from this machine's files.
//!
//! It mounts the root overlay, starts containerd, and runs the commands that arrive on the port, until it is told to
//! power off or the port closes, for then the process that started the node is gone. An error before that is sent
//! over the port and printed on the console, and the node powers off.

mod idle_vm;
mod jobs;
mod mounts;
mod reaper;
mod services;

use std::{
    fs::{self, File},
    io::{self, Read},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::system::{RebootCommand, reboot};

use self::{jobs::Jobs, reaper::Reaper};
use super::{
    PORT_NAME,
    wire::{self, Reply, Request},
};

/// Longest wait for the port's device and for the other side to have opened it.
const PORT_LIMIT: Duration = Duration::from_secs(30);

/// Runs the node.
///
/// # Errors
/// When it is not the first process. Never returns as one.
pub fn run() -> Result<ExitCode> {
    ensure!(std::process::id() == 1, "node-init is the first process of a node and nothing else");
    if let Err(error) = live() {
        eprintln!("node-init: {error:#}");
    }
    rustix::fs::sync();
    reboot(RebootCommand::PowerOff).context("cannot power off")?;
    bail!("the machine still runs after power-off")
}

fn live() -> Result<()> {
    mounts::early()?;
    let mut port = open_port()?;
    let replies = Arc::new(port.try_clone()?);
    let outcome = serve(&mut port, &replies);
    if let Err(error) = &outcome {
        // The console gets it as well.
        let _ = wire::send(&*replies, &Reply::Failed(format!("{error:#}")));
    }
    outcome
}

fn serve(port: &mut File, replies: &Arc<File>) -> Result<()> {
    let Request::Setup(setup) = first_request(port)? else { bail!("expected the set-up first") };
    mounts::root(&setup)?;
    let reaper = Reaper::start();
    let _idle = idle_vm::IdleVm::create().context("cannot make a virtual machine with /dev/kvm")?;
    services::start(&setup, &reaper)?;
    wire::send(&**replies, &Reply::Ready)?;
    let mut jobs = Jobs::new(Arc::clone(replies), reaper);
    jobs.show_life();
    loop {
        match wire::receive(&mut *port) {
            Ok(Request::Run(job)) => jobs.run(&job)?,
            Ok(Request::Input(bytes)) => jobs.input(&bytes),
            Ok(Request::Resize(rows, columns)) => jobs.resize(rows, columns),
            Ok(Request::Shutdown) => return Ok(()),
            Ok(Request::Setup(_)) => bail!("expected a command, found a second set-up"),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error).context("cannot read the port"),
        }
    }
}

/// Finds the port by its name.
fn open_port() -> Result<File> {
    let started = Instant::now();
    loop {
        let ports = fs::read_dir("/sys/class/virtio-ports").into_iter().flatten().flatten();
        let named = ports
            .map(|entry| entry.path())
            .find(|path| fs::read_to_string(path.join("name")).is_ok_and(|name| name.trim() == PORT_NAME));
        let device = named.and_then(|path| Some(PathBuf::from("/dev").join(path.file_name()?)));
        if let Some(device) = device.filter(|device| device.exists()) {
            let port = File::options().read(true).write(true).open(&device);
            return port.with_context(|| format!("cannot open {}", device.display()));
        }
        ensure!(
            started.elapsed() < PORT_LIMIT,
            "expected a virtio-serial port named {PORT_NAME}, found none"
        );
        thread::sleep(Duration::from_millis(5));
    }
}

/// Receives the first message. Until the other side counts as connected, reads end at once with nothing.
fn first_request(port: &mut File) -> Result<Request> {
    let started = Instant::now();
    let mut kind = [0];
    while port.read(&mut kind)? == 0 {
        ensure!(started.elapsed() < PORT_LIMIT, "expected the set-up on the port, found nothing");
        thread::sleep(Duration::from_millis(5));
    }
    wire::receive(kind.chain(port)).context("cannot read the set-up")
}
