//! `uvm-launch run`: one machine, started the way the shim starts it.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use agent_protocol::handshake::HandshakeError;
use anyhow::{Context as _, Result, anyhow};
use launch::control::{Event, Exit, Measurement, STATUS_LAUNCH_REFUSED};
use launch::plan::{HostData, Hypervisor, LaunchPlan, Tee};
use launch::timeline::{Reached, Timeline, table};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use vmm_client::{Vmm, monotonic_us};

use super::handshake;
use super::input::write;
use super::report::{self, Nonce};
use super::state_dir::StateDir;

/// How long a guest may take to become ready, where that is waited for.
const READY_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a machine whose handshake broke off may take to say that it has ended.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// Exit status when the agent refused to serve.
const STATUS_AGENT_REFUSED: u8 = 15;

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit status: 0 powered off or stopped, 1 this program or the VMM failed, 2 launch refused, \
    10 the boot stub refused, 11 kernel panic, 12 reset, 13 triple fault, 14 the guest terminated itself, \
    15 the agent refused to serve."
)]
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
    /// Isolation: none, sim, snp or tdx.
    #[arg(long, default_value_t = Tee::None)]
    tee: Tee,
    /// Whose virtual machines: auto, kvm or mshv.
    #[arg(long, default_value_t = Hypervisor::Auto)]
    hypervisor: Hypervisor,
    /// What the launch binds to the guest: 64 hexadecimal digits [default: zeros].
    #[arg(long, conflicts_with = "policy")]
    host_data: Option<HostData>,
    /// Binds a policy document: the host data is the SHA-256 of this file's bytes.
    #[arg(long)]
    policy: Option<PathBuf>,
    /// Where the console of a debug image goes: a file, which is appended to.
    #[arg(long)]
    console: Option<PathBuf>,
    /// End the machine as soon as its agent serves.
    #[arg(long)]
    until_ready: bool,
    /// Fetch a report from the agent as soon as it serves, into this file.
    #[arg(long, requires = "nonce")]
    report: Option<PathBuf>,
    /// What makes the report fresh: up to 64 bytes in hexadecimal, chosen by whoever verifies it.
    #[arg(long, requires = "report", value_parser = report::nonce)]
    nonce: Option<Nonce>,
    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,
    /// The VMM [default: uvm-vmm beside this program].
    #[arg(long)]
    vmm: Option<PathBuf>,
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Summary {
    timeline: Vec<Reached>,
    /// What the launch was measured as; nothing where nothing isolates the guest.
    measurement: Option<Measurement>,
    /// Which rule made the host data.
    host_data_rule: &'static str,
    /// Why the agent refused to serve, if it did.
    agent_refused: Option<String>,
    end: Exit,
}

/// What a machine has shown so far.
struct Machine {
    timeline: Timeline,
    measurement: Option<Measurement>,
    agent_refused: Option<String>,
}

/// How it ended.
enum End {
    Ended(Exit),
    Refused(String),
}

enum News {
    Vmm(Event),
    Handshake(handshake::Outcome),
}

/// Runs the machine to its end; returns the exit status of this program: the VMM's, if that is not 0.
pub fn run(arguments: &Arguments) -> Result<u8> {
    let state = StateDir::create()?;
    let vsock = state.path().join("vsock");
    let (host_data, host_data_rule) = host_data(arguments)?;
    let plan = plan(arguments, host_data, &vsock)?;
    let (sender, news) = channel();
    let handshake = sender.clone();
    // The receiver lives as long as this function, and what a machine that is done with does is no news.
    let tell = move |outcome| drop(handshake.send(News::Handshake(outcome)));
    handshake::listen(&vsock, plan.tee, host_data, tell)?;
    let vmm_path = arguments.vmm.clone().map_or_else(vmm_beside_this_program, Ok)?;
    let log = state.path().join("log");
    let log = OpenOptions::new().append(true).create(true).open(log).context("VMM log")?;

    let timeline = Timeline::new(monotonic_us());
    let mut machine = Machine { timeline, measurement: None, agent_refused: None };
    let vmm = Vmm::spawn(&vmm_path, &plan, Some(log), move |event| drop(sender.send(News::Vmm(event))))?;
    let end = machine.follow(arguments, &news, &vmm, &vsock)?;
    let _status = vmm.wait();
    let end = match end {
        End::Ended(exit) => exit,
        End::Refused(why) => {
            eprintln!("uvm-launch: launch refused: {why}");
            return Ok(STATUS_LAUNCH_REFUSED);
        }
    };
    let Machine { timeline, measurement, agent_refused } = machine;
    let timeline = timeline.steps();
    let summary = Summary { timeline, measurement, host_data_rule, agent_refused, end };
    summary.print(arguments.json)?;
    Ok(summary.status())
}

/// What is bound to the launch, and the rule that made it.
fn host_data(arguments: &Arguments) -> Result<(HostData, &'static str)> {
    match (&arguments.host_data, &arguments.policy) {
        (Some(given), _) => Ok((*given, "as given")),
        (None, Some(path)) => {
            let bytes = std::fs::read(path).with_context(|| format!("policy {}", path.display()))?;
            Ok((HostData(Sha256::digest(bytes).into()), "SHA-256 of the policy document's bytes"))
        }
        (None, None) => Ok((HostData::default(), "zeros: nothing is bound")),
    }
}

fn plan(arguments: &Arguments, host_data: HostData, vsock: &Path) -> Result<LaunchPlan> {
    Ok(LaunchPlan {
        image: absolute(&arguments.image)?,
        rootfs: absolute(&arguments.rootfs)?,
        vcpus: arguments.vcpus,
        memory_mib: arguments.memory,
        tee: arguments.tee,
        host_data,
        hypervisor: arguments.hypervisor,
        vsock: vsock.into(),
        console: arguments.console.as_deref().map(absolute).transpose()?,
    })
}

impl Machine {
    /// Takes in what happens until the machine has ended.
    fn follow(
        &mut self,
        arguments: &Arguments,
        news: &Receiver<News>,
        vmm: &Vmm,
        vsock: &Path,
    ) -> Result<End> {
        let mut deadline = arguments.until_ready.then(|| Instant::now() + READY_TIMEOUT);
        let mut broken = None;
        loop {
            let left = deadline.map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()));
            let Ok(item) = news.recv_timeout(left.min(Duration::from_secs(3600 * 24))) else {
                if deadline.is_some_and(|end| Instant::now() >= end) {
                    let late = || anyhow!("the agent was not ready within {} s", READY_TIMEOUT.as_secs());
                    return Err(broken.unwrap_or_else(late));
                }
                continue;
            };
            match item {
                News::Vmm(Event::Mark { mark, monotonic_us }) => {
                    self.timeline.reach(mark.into(), monotonic_us);
                }
                News::Vmm(Event::Measured(measurement)) => {
                    eprintln!("uvm-launch: launch digest {} ({})", measurement.digest, measurement.tee);
                    self.measurement = Some(measurement);
                }
                News::Vmm(Event::Refused(why)) => return Ok(End::Refused(why)),
                News::Vmm(Event::Ended(exit)) => return Ok(End::Ended(exit)),
                News::Handshake(Ok((ready, at_us))) => {
                    eprintln!("uvm-launch: the agent serves, behind {}", vsock.display());
                    self.timeline.ready(at_us, ready.init_to_ready_us);
                    if let (Some(path), Some(nonce)) = (&arguments.report, &arguments.nonce) {
                        write(path, &report::fetch(vsock, nonce)?.to_json()?)?;
                    }
                    if arguments.until_ready {
                        vmm.stop()?;
                    }
                }
                News::Handshake(Err(error)) => match error.downcast_ref() {
                    // It powers itself off.
                    Some(HandshakeError::Refused(why)) => self.agent_refused = Some(why.clone()),
                    // Most often the machine is ending, and why it ends says more.
                    _ => {
                        broken = Some(error.context("the guest's agent"));
                        deadline = Some(Instant::now() + END_TIMEOUT);
                    }
                },
            }
        }
    }
}

impl Summary {
    fn status(&self) -> u8 {
        match (self.end.status(), &self.agent_refused) {
            (0, Some(_)) => STATUS_AGENT_REFUSED,
            (status, _) => status,
        }
    }

    fn print(&self, json: bool) -> Result<()> {
        if json {
            println!("{}", serde_json::to_string_pretty(self)?);
            return Ok(());
        }
        print!("{}", table(&self.timeline));
        if let Some(Measurement { tee, digest, host_data }) = &self.measurement {
            println!("isolation: {tee}");
            println!("launch digest: {digest}");
            println!("host data: {host_data} ({})", self.host_data_rule);
        }
        if let Some(why) = &self.agent_refused {
            println!("the agent refused to serve: {why}");
        }
        println!("end: {}", self.end);
        Ok(())
    }
}

fn vmm_beside_this_program() -> Result<PathBuf> {
    let this = std::env::current_exe().context("cannot find this program's own path")?;
    let vmm = this.with_file_name("uvm-vmm");
    if vmm.is_file() { Ok(vmm) } else { Err(anyhow!("no {}: name the VMM with --vmm", vmm.display())) }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("path {}", path.display()))
}
