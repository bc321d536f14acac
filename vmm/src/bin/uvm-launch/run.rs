//! `uvm-launch run`: one machine, started the way the shim starts it.

use std::fs::OpenOptions;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use agent_protocol::READY_PORT;
use agent_protocol::ready::{MAX_LEN, ReadyLine};
use anyhow::{Context as _, Result, anyhow, bail};
use launch::control::{Event, Exit, STATUS_LAUNCH_REFUSED};
use launch::plan::{HostData, Hypervisor, LaunchPlan, Tee};
use launch::timeline::{Reached, Timeline, table};
use serde::Serialize;
use vmm_client::{Vmm, monotonic_us};

/// How long a guest may take to become ready, where that is waited for.
const READY_TIMEOUT: Duration = Duration::from_secs(120);

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The image: an IGVM file.
    image: PathBuf,
    /// The root file system image.
    #[arg(long)]
    rootfs: PathBuf,
    /// Virtual CPUs.
    #[arg(long, default_value_t = 1)]
    vcpus: u32,
    /// Guest memory in MiB.
    #[arg(long, default_value_t = 256)]
    memory: u64,
    /// Where the console of a debug image goes: a file, which is appended to.
    #[arg(long)]
    console: Option<PathBuf>,
    /// End the machine as soon as its agent serves.
    #[arg(long)]
    until_ready: bool,
    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,
    /// The VMM [default: uvm-vmm beside this program].
    #[arg(long)]
    vmm: Option<PathBuf>,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    timeline: Vec<Reached>,
    end: Exit,
}

/// How it ended.
enum End {
    Ended(Exit),
    Refused(String),
}

enum News {
    Vmm(Event),
    Ready(ReadyLine, u64),
    ReadyFailed(anyhow::Error),
}

/// Runs the machine to its end; returns the exit status of this program: the VMM's, if that is not 0.
pub fn run(arguments: &Arguments) -> Result<u8> {
    let state = StateDir::create()?;
    let vsock = state.0.join("vsock");
    let plan = LaunchPlan {
        image: absolute(&arguments.image)?,
        rootfs: absolute(&arguments.rootfs)?,
        vcpus: arguments.vcpus,
        memory_mib: arguments.memory,
        tee: Tee::None,
        host_data: HostData::default(),
        hypervisor: Hypervisor::Auto,
        vsock: vsock.clone(),
        console: arguments.console.as_deref().map(absolute).transpose()?,
    };
    let (sender, news) = channel();
    listen_for_ready(&vsock, sender.clone())?;
    let vmm_path = arguments.vmm.clone().map_or_else(vmm_beside_this_program, Ok)?;
    let log = OpenOptions::new().append(true).create(true).open(state.0.join("log")).context("VMM log")?;

    let mut timeline = Timeline::new(monotonic_us());
    // The receiver lives as long as this function, and events of a machine that is done with do not matter.
    let vmm = Vmm::spawn(&vmm_path, &plan, Some(log), move |event| drop(sender.send(News::Vmm(event))))?;
    let end = follow(arguments, &news, &vmm, &mut timeline)?;
    let _status = vmm.wait();
    let end = match end {
        End::Ended(exit) => exit,
        End::Refused(why) => {
            eprintln!("uvm-launch: launch refused: {why}");
            return Ok(STATUS_LAUNCH_REFUSED);
        }
    };
    let steps = timeline.steps();
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&Report { timeline: steps, end: end.clone() })?);
    } else {
        print!("{}", table(&steps));
        println!("end: {end}");
    }
    Ok(end.status())
}

/// Takes in what happens until the machine has ended.
fn follow(arguments: &Arguments, news: &Receiver<News>, vmm: &Vmm, timeline: &mut Timeline) -> Result<End> {
    let deadline = arguments.until_ready.then(|| Instant::now() + READY_TIMEOUT);
    loop {
        let left = deadline.map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()));
        let Ok(item) = news.recv_timeout(left.min(Duration::from_secs(3600 * 24))) else {
            if deadline.is_some_and(|end| Instant::now() >= end) {
                bail!("the agent was not ready within {} s", READY_TIMEOUT.as_secs());
            }
            continue;
        };
        match item {
            News::Vmm(Event::Mark { mark, monotonic_us }) => timeline.reach(mark.into(), monotonic_us),
            News::Vmm(Event::Measured(_)) => {}
            News::Vmm(Event::Refused(why)) => return Ok(End::Refused(why)),
            News::Vmm(Event::Ended(exit)) => return Ok(End::Ended(exit)),
            News::Ready(line, at_us) => {
                timeline.ready(at_us, line.init_to_ready_us);
                if arguments.until_ready {
                    vmm.stop()?;
                }
            }
            News::ReadyFailed(error) => return Err(error.context("the guest's ready line")),
        }
    }
}

/// Waits for the agent's connection on a thread of its own: the guest calls when it is ready.
fn listen_for_ready(vsock: &Path, sender: Sender<News>) -> Result<()> {
    let mut path = vsock.as_os_str().to_owned();
    path.push(format!("_{READY_PORT}"));
    let listener =
        UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
    thread::spawn(move || {
        let item = match read_ready(&listener) {
            Ok((line, at_us)) => News::Ready(line, at_us),
            Err(error) => News::ReadyFailed(error),
        };
        let _ = sender.send(item);
    });
    Ok(())
}

fn read_ready(listener: &UnixListener) -> Result<(ReadyLine, u64)> {
    let (stream, _) = listener.accept()?;
    let mut text = String::new();
    BufReader::new(stream.take(MAX_LEN as u64 + 1)).read_line(&mut text)?;
    let at_us = monotonic_us();
    Ok((ReadyLine::parse(&text)?, at_us))
}

fn vmm_beside_this_program() -> Result<PathBuf> {
    let this = std::env::current_exe().context("cannot find this program's own path")?;
    let vmm = this.with_file_name("uvm-vmm");
    if vmm.is_file() { Ok(vmm) } else { Err(anyhow!("no {}: name the VMM with --vmm", vmm.display())) }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("path {}", path.display()))
}

/// A folder for the machine's sockets and log, removed with everything in it.
struct StateDir(PathBuf);

impl StateDir {
    fn create() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("uvm-launch-{}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for StateDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
