//! From a pod's first container to a machine whose agent serves.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use containerd_shim::protos::protobuf::well_known_types::any::Any;
use launch::plan::LaunchPlan;
use oci_spec::runtime::Spec;
use tracing::info;

use super::vm::{Launch, VmDriver, VmError};
use crate::agent::Agent;
use crate::config::Config;
use crate::container::Guest;
use crate::identity::Role;
use crate::policy;
use crate::sizing::{self, Size};
use crate::state_dir::{Process, Record, StateDir};
use crate::status::TaskError;

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
    let agent = Agent::connect(vm.vsock()).await?;
    agent.create_sandbox(id, spec.hostname().as_deref().unwrap_or_default()).await?;
    Ok(Guest { vm, agent, state: state.clone(), cache: config.cache, shared: Arc::default() })
}
