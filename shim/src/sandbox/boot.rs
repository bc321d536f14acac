//! From a pod's first container to a machine whose agent serves.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use agent_protocol::storage::ScratchStorage;
use containerd_shim::protos::protobuf::well_known_types::any::Any;
use launch::control::Segment;
use launch::layout::SLOT_SCRATCH;
use launch::plan::LaunchPlan;
use oci_spec::runtime::Spec;
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tracing::info;

use super::vm::{Launch, VmDriver, VmError};
use crate::agent::Agent;
use crate::config::Config;
use crate::container::Guest;
use crate::identity::Role;
use crate::layers::disk::LayersDisk;
use crate::policy;
use crate::scratch;
use crate::sizing::{self, Size};
use crate::state_dir::{Process, Record, StateDir};
use crate::status::TaskError;
use crate::volumes::Volumes;

/// Boots the machine of pod `id`, whose size and name `spec` tells. When this fails, nothing is left of it.
///
/// # Errors
/// When the configuration, the size, the policy or the launch is refused, or the agent does not serve.
pub async fn boot(
    driver: &dyn VmDriver,
    state: &StateDir,
    id: &str,
    role: Role,
    spec: &Spec,
    options: Option<&Any>,
) -> Result<Guest, TaskError> {
    let config = Config::from_options(options)?;
    let size = sizing::size(role, spec, &config)?;
    info!(pod = id, size.vcpus, size.memory_mib, "booting");
    let booted = boot_in(driver, state, id, spec, config, size).await;
    if booted.is_err() {
        // The error that is reported is the first one.
        let _ = state.remove();
    }
    booted
}

async fn boot_in(
    driver: &dyn VmDriver,
    state: &StateDir,
    id: &str,
    spec: &Spec,
    config: Config,
    size: Size,
) -> Result<Guest, TaskError> {
    let failed =
        |what| move |source: io::Error| VmError::File { what, path: Path::to_path_buf(state.path()), source };
    state.create().map_err(failed("create"))?;
    let scratch = match size.scratch_mib {
        0 => None,
        mib => Some(make_scratch(config.scratch_dir, mib << 20).await?),
    };
    let plan = LaunchPlan {
        image: config.image,
        rootfs: config.rootfs,
        vcpus: size.vcpus,
        memory_mib: size.memory_mib,
        tee: config.tee,
        host_data: policy::host_data(spec)?,
        hypervisor: config.hypervisor,
        vsock: state.vsock(),
        console: config.debug_console.then(|| state.console()),
    };
    let boot_timeout = Duration::from_secs(config.boot_timeout_s);
    let vm = driver.launch(Launch { program: config.vmm, plan, boot_timeout }).await?;
    let shim = Process::running(std::process::id()).map_err(failed("record this process in"))?;
    let vmm = Process::running(vm.pid()).map_err(failed("record the machine in"))?;
    state.record(&Record { shim, vmm }).map_err(failed("write the record in"))?;
    let agent = Agent::connect(vm.vsock(), Duration::from_secs(config.request_timeout_s)).await?;
    let mut storages = Vec::new();
    if let Some((file, bytes)) = scratch {
        vm.attach(SLOT_SCRATCH, 0, vec![(file, Segment { offset: 0, length: bytes })]).await?;
        storages.push(ScratchStorage { bytes }.to_message()?);
    }
    agent.create_sandbox(id, spec.hostname().as_deref().unwrap_or_default(), storages).await?;
    let volumes = Volumes::new(config.kubelet_root, size.memory_mib << 20);
    Ok(Guest {
        disk: Arc::new(LayersDisk::new(Arc::clone(&vm))),
        vm,
        agent,
        state: state.clone(),
        cache: config.cache,
        shared: Arc::default(),
        volumes: Arc::new(Mutex::new(volumes)),
    })
}

async fn make_scratch(directory: PathBuf, bytes: u64) -> Result<(File, u64), TaskError> {
    let made = spawn_blocking(move || scratch::make(&directory, bytes)).await.map_err(|_| VmError::Broken)?;
    Ok((made?, bytes))
}
