//! What runs in the node besides the commands: the loopback interface, the snapshotter and containerd.

use std::{
    fs::{self, File},
    os::unix::{fs::symlink, net::UnixStream},
    path::Path,
    process::{Command, Stdio},
    sync::mpsc::TryRecvError,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use super::reaper::Reaper;
use crate::node::wire::Setup;

const CONTAINERD_CONFIG: &str = include_str!("../../../../tests/node/containerd.toml");
const POD_NETWORK: &str = include_str!("../../../../tests/node/pods.conflist");
const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";
const SNAPSHOTTER_SOCKET: &str = "/run/uvm-snapshotter/snapshotter.sock";
/// Longest time until a service answers.
const SERVICE_LIMIT: Duration = Duration::from_secs(120);

/// Brings up what [`Setup`] asks for.
///
/// # Errors
/// When containerd does not start; the error names its log.
pub fn start(setup: &Setup, reaper: &Reaper) -> Result<()> {
    rustix::system::sethostname(b"node").context("cannot set the host name")?;
    reaper.run(Command::new("/sbin/ip").args(["link", "set", "lo", "up"]))?;
    if !Path::new("/etc/uvm").exists() {
        symlink(setup.repository.join("target/uvm"), "/etc/uvm").context("cannot link /etc/uvm")?;
    }
    match &setup.containerd {
        Some(pause) => start_containerd(setup, pause, reaper),
        None => Ok(()),
    }
}

/// Starts the snapshotter if it has been built; gives the name of the one that pods shall use.
fn start_snapshotter(setup: &Setup, reaper: &Reaper) -> Result<&'static str> {
    let program = setup.repository.join("target/uvm/bin/uvm-snapshotter");
    if !program.exists() {
        return Ok("overlayfs");
    }
    let mut command = Command::new(program);
    command.arg("serve");
    start_service("snapshotter", &mut command, SNAPSHOTTER_SOCKET, setup, reaper)?;
    Ok("uvm")
}

fn start_containerd(setup: &Setup, pause: &Path, reaper: &Reaper) -> Result<()> {
    let repository = setup.repository.to_str().context("the repository's path is not UTF-8")?;
    let snapshotter = start_snapshotter(setup, reaper)?;
    let config = CONTAINERD_CONFIG.replace("@REPOSITORY@", repository).replace("@SNAPSHOTTER@", snapshotter);
    write("/etc/containerd/config.toml", &config)?;
    // Configurations that this machine may have for itself must not win over the node's.
    if Path::new("/etc/cni/net.d").exists() {
        fs::remove_dir_all("/etc/cni/net.d")?;
    }
    write("/etc/cni/net.d/10-pods.conflist", POD_NETWORK)?;
    let mut command = Command::new("/usr/bin/containerd");
    command.env("PATH", search_path(&setup.repository));
    start_service("containerd", &mut command, CONTAINERD_SOCKET, setup, reaper)?;
    let mut import = Command::new("/usr/bin/ctr");
    // Each snapshotter unpacks it when its first pod asks for it.
    import.args(["--namespace", "k8s.io", "images", "import", "--no-unpack"]).arg(pause);
    reaper.run(import.stdin(Stdio::null()).stdout(Stdio::null()))
}

/// Starts a service that logs into the shared folder, and waits until it accepts connections.
fn start_service(
    name: &str,
    command: &mut Command,
    socket: &str,
    setup: &Setup,
    reaper: &Reaper,
) -> Result<()> {
    let log_path = setup.share.join(format!("{name}.log"));
    let log = File::create(&log_path)?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let (_, exit) = reaper.spawn(command).with_context(|| format!("cannot start {name}"))?;
    let started = Instant::now();
    while UnixStream::connect(socket).is_err() {
        match exit.try_recv() {
            Err(TryRecvError::Empty) => {}
            ended => bail!("{name} ended ({ended:?}); its log is {}", log_path.display()),
        }
        ensure!(
            started.elapsed() < SERVICE_LIMIT,
            "{name} does not answer; its log is {}",
            log_path.display()
        );
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// `PATH` of containerd and of commands: the project's own programs first.
#[must_use]
pub fn search_path(repository: &Path) -> String {
    let own = repository.join("target/uvm/bin");
    format!("{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", own.display())
}

fn write(path: &str, text: &str) -> Result<()> {
    if let Some(folder) = Path::new(path).parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, text).with_context(|| format!("cannot write {path}"))
}
