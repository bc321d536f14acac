//! A pod's machine, behind a narrow trait so that another VMM can be driven.
//!
//! The real driver starts `uvm-vmm`. Readiness comes from the guest: before the VMM exists, a listener takes the
//! guest's connection to the handshake port; then either the agent says that it serves, or why it does not, or
//! the VMM ends and says why, or the time is up. Nothing is dialled and retried.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agent_protocol::HANDSHAKE_PORT;
use agent_protocol::handshake::{HandshakeError, Ready};
use async_trait::async_trait;
use launch::control::{Event, Exit, Measurement, Segment};
use launch::plan::LaunchPlan;
use launch::timeline::Timeline;
use serde::Serialize;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tracing::{debug, info};
use vmm_client::{ClientError, Vmm, monotonic_us};

use super::handshake::greet;

/// How long a machine that was asked to stop may take before it is killed.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// Stack of the thread that waits for the VMM's end.
const WAITER_STACK_BYTES: usize = 64 * 1024;

/// Why there is no machine, or it does not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// The VMM could not be started or did not do what it was asked.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The machine ended before its agent served.
    #[error("the utility VM did not start: {0}")]
    Ended(String),
    /// The agent did not report in time.
    #[error("the utility VM did not start: no word from its agent within {} s", .0.as_secs())]
    Silent(Duration),
    /// The agent refuses to serve, or what it says is no handshake.
    #[error("the utility VM did not start: {0}")]
    Handshake(#[from] HandshakeError),
    /// A file or socket of the machine.
    #[error("cannot {what} {path}: {source}", path = .path.display())]
    File {
        /// What was attempted.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A blocking task of this program broke.
    #[error("the task that drives the utility VM broke")]
    Broken,
}

impl VmError {
    /// Whether the VMM itself said no, so that nothing has changed.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Client(ClientError::Refused(_) | ClientError::TooManySegments(_)))
    }
}

/// How long a machine with which talk broke off may take to say that it has ended.
pub const END_GRACE: Duration = Duration::from_millis(500);
/// The boot's timeline, beside the machine's socket.
const TIMELINE_FILE: &str = "timeline.json";
/// What the launch was measured as, beside the machine's socket.
const MEASUREMENT_FILE: &str = "measurement.json";

/// What it takes to start a machine.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The VMM's program.
    pub program: PathBuf,
    /// What it is told.
    pub plan: LaunchPlan,
    /// How long the guest may take until its agent serves.
    pub boot_timeout: Duration,
}

/// Starts machines.
#[async_trait]
pub trait VmDriver: Send + Sync {
    /// Starts a machine and waits until its agent serves. When this fails or is dropped, nothing runs.
    async fn launch(&self, launch: Launch) -> Result<Arc<dyn Vm>, VmError>;
}

/// A running machine. It ends when the last reference to it is dropped.
#[async_trait]
pub trait Vm: Send + Sync {
    /// Process id of the VMM on the host.
    fn pid(&self) -> u32;
    /// Its hybrid vsock socket.
    fn vsock(&self) -> &Path;
    /// Shows parts of files, one after another, on the disk in `slot` from its byte `at` on.
    async fn attach(&self, slot: u32, at: u64, segments: Vec<(File, Segment)>) -> Result<(), VmError>;
    /// Takes away again what was attached to the disk in `slot` at byte `at`.
    async fn detach(&self, slot: u32, at: u64) -> Result<(), VmError>;
    /// Ends the machine: in order if it is quick, by force if not. It has ended when this returns.
    async fn stop(&self);
    /// Waits for the machine's end, and says why it came. May be called many times.
    async fn wait(&self) -> String;
}

/// Drives `uvm-vmm`.
#[derive(Debug, Default)]
pub struct UvmVmm {
    /// Takes the VMM's standard error; without it, the shim's own.
    pub log: Option<File>,
}

#[derive(Debug)]
struct UvmVm {
    vmm: Arc<Vmm>,
    vsock: PathBuf,
    ended: watch::Receiver<Option<String>>,
}

/// The thread that waits holds the process too, so its own drop would come too late.
impl Drop for UvmVm {
    fn drop(&mut self) {
        self.vmm.kill();
    }
}

fn file_error<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> VmError + 'a {
    move |source| VmError::File { what, path: path.into(), source }
}

/// Where the guest's connections to `port` arrive.
#[must_use]
pub fn guest_port(vsock: &Path, port: u32) -> PathBuf {
    let mut path = vsock.as_os_str().to_owned();
    path.push(format!("_{port}"));
    path.into()
}

#[async_trait]
impl VmDriver for UvmVmm {
    async fn launch(&self, launch: Launch) -> Result<Arc<dyn Vm>, VmError> {
        let vsock = launch.plan.vsock.clone();
        let path = guest_port(&vsock, HANDSHAKE_PORT);
        let listener = UnixListener::bind(&path).map_err(file_error("listen on", &path))?;
        let host = super::handshake::host(&launch.plan);
        let log = self.log.as_ref().map(File::try_clone).transpose();
        let log = log.map_err(file_error("duplicate the log for", &launch.program))?;
        let Launch { program, plan, boot_timeout } = launch;
        let boot = Arc::new(Mutex::new(Boot::new()));
        let seen = Arc::clone(&boot);
        let vm = spawn_blocking(move || start(&program, &plan, log, &seen))
            .await
            .map_err(|_| VmError::Broken)??;
        let readiness = tokio::select! {
            biased;
            ready = greet(&listener, &path, host) => ready,
            why = vm.wait() => Err(VmError::Ended(why)),
            () = tokio::time::sleep(boot_timeout) => Err(VmError::Silent(boot_timeout)),
        };
        match vm.explain(readiness).await {
            Ok(ready) => {
                info!(ready.kernel_to_init_us, ready.init_to_ready_us, "the agent serves");
                boot.lock().unwrap_or_else(PoisonError::into_inner).keep(ready, &vsock);
                Ok(Arc::new(vm))
            }
            Err(error) => {
                vm.stop().await;
                Err(error)
            }
        }
    }
}

/// What the VMM tells of a boot.
struct Boot {
    timeline: Timeline,
    measurement: Option<Measurement>,
}

impl Boot {
    fn new() -> Self {
        Self { timeline: Timeline::new(monotonic_us()), measurement: None }
    }

    /// Leaves what was told beside the machine's socket, for people. No pod fails for want of it.
    fn keep(&self, ready: Ready, vsock: &Path) {
        let mut timeline = self.timeline.clone();
        timeline.ready(monotonic_us(), ready.init_to_ready_us);
        keep(&timeline.steps(), &vsock.with_file_name(TIMELINE_FILE));
        if let Some(measurement) = &self.measurement {
            info!(digest = %measurement.digest, host_data = %measurement.host_data, "the launch was measured");
            keep(measurement, &vsock.with_file_name(MEASUREMENT_FILE));
        }
    }
}

fn keep(value: &impl Serialize, path: &Path) {
    let json = serde_json::to_vec_pretty(value).map_err(io::Error::from);
    if let Err(error) = json.and_then(|json| std::fs::write(path, json)) {
        debug!(path = %path.display(), %error, "not kept");
    }
}

/// Starts the VMM, with a thread that learns of its end.
fn start(
    program: &Path,
    plan: &LaunchPlan,
    log: Option<File>,
    boot: &Arc<Mutex<Boot>>,
) -> Result<UvmVm, VmError> {
    let boot = Arc::clone(boot);
    // The last thing that the VMM said about its end, which its exit status then confirms.
    let last_word = Arc::new(Mutex::new(None));
    let heard = Arc::clone(&last_word);
    let vmm = Vmm::spawn(program, plan, log, move |event| {
        debug!(?event, "machine");
        let word = match event {
            Event::Mark { mark, monotonic_us } => {
                let mut boot = boot.lock().unwrap_or_else(PoisonError::into_inner);
                return boot.timeline.reach(mark.into(), monotonic_us);
            }
            Event::Measured(measurement) => {
                boot.lock().unwrap_or_else(PoisonError::into_inner).measurement = Some(measurement);
                return;
            }
            Event::Refused(why) => format!("launch refused: {why}"),
            Event::Ended(exit) => exit.to_string(),
        };
        *heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(word);
    })?;
    let vmm = Arc::new(vmm);
    let (end, ended) = watch::channel(None);
    let waited = Arc::clone(&vmm);
    std::thread::Builder::new()
        .name("vmm-wait".into())
        .stack_size(WAITER_STACK_BYTES)
        .spawn(move || {
            let status = waited.wait();
            let word = last_word.lock().unwrap_or_else(PoisonError::into_inner).take();
            let word = word.unwrap_or_else(|| match status {
                Some(status) => format!("virtual machine monitor: {status}"),
                None => Exit::Internal("its exit status is lost".into()).to_string(),
            });
            end.send_replace(Some(word));
        })
        .map_err(file_error("start a thread for", program))?;
    Ok(UvmVm { vmm, vsock: plan.vsock.clone(), ended })
}

impl UvmVm {
    /// A handshake that breaks off is most often a machine that ends: why it ends says more.
    async fn explain(&self, readiness: Result<Ready, VmError>) -> Result<Ready, VmError> {
        match readiness {
            Err(VmError::Handshake(HandshakeError::Unfinished(_)) | VmError::File { .. }) => {
                let ended = tokio::time::timeout(END_GRACE, self.wait()).await;
                ended.map_or(readiness, |why| Err(VmError::Ended(why)))
            }
            other => other,
        }
    }

    async fn blocking(
        &self,
        request: impl FnOnce(&Vmm) -> Result<(), ClientError> + Send + 'static,
    ) -> Result<(), VmError> {
        let vmm = Arc::clone(&self.vmm);
        spawn_blocking(move || request(&vmm)).await.map_err(|_| VmError::Broken)?.map_err(VmError::Client)
    }
}

#[async_trait]
impl Vm for UvmVm {
    fn pid(&self) -> u32 {
        self.vmm.pid()
    }

    fn vsock(&self) -> &Path {
        &self.vsock
    }

    async fn attach(&self, slot: u32, at: u64, segments: Vec<(File, Segment)>) -> Result<(), VmError> {
        self.blocking(move |vmm| vmm.attach(slot, at, &segments)).await
    }

    async fn detach(&self, slot: u32, at: u64) -> Result<(), VmError> {
        self.blocking(move |vmm| vmm.detach(slot, at)).await
    }

    async fn stop(&self) {
        let orderly = async {
            let asked = self.blocking(Vmm::stop).await;
            debug!(?asked, "stop");
            self.wait().await
        };
        if tokio::time::timeout(STOP_GRACE, orderly).await.is_err() {
            self.vmm.kill();
            self.wait().await;
        }
    }

    async fn wait(&self) -> String {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(word) => word.clone().unwrap_or_default(),
            // The thread that waits never goes before it has told.
            Err(_) => "unknown".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_vmm_that_cannot_start_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let plan = LaunchPlan {
            image: "/i".into(),
            rootfs: "/r".into(),
            vcpus: 1,
            memory_mib: 64,
            tee: launch::plan::Tee::None,
            host_data: launch::plan::HostData::default(),
            hypervisor: launch::plan::Hypervisor::Auto,
            vsock: dir.path().join("vsock"),
            console: None,
        };
        let boot_timeout = Duration::from_secs(5);
        let launch = |program: &str| Launch { program: program.into(), plan: plan.clone(), boot_timeout };
        let error = UvmVmm::default().launch(launch("/nonexistent/vmm")).await.err().unwrap();
        assert!(error.to_string().contains("/nonexistent/vmm"), "{error}");
        std::fs::remove_file(guest_port(&plan.vsock, HANDSHAKE_PORT)).unwrap();
        let error = UvmVmm::default().launch(launch("/bin/false")).await.err().unwrap();
        assert!(
            error.to_string().contains("did not start: virtual machine monitor: exit status: 1"),
            "{error}"
        );
    }
}
