//! `delete`: removes what a dead shim left behind, and reports its container as killed.

use std::env;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use containerd_shim::Flags;
use containerd_shim::protos::api::DeleteResponse;
use protobuf::Message;

use super::{BootstrapError, bundle, is_served, remove_if_there, reply, socket, system};
use crate::events::timestamp;
use crate::identity::{Identity, Role};
use crate::state_dir::{self, StateDir};

/// Exit status of a container whose end nobody saw, as killed by SIGKILL.
const KILLED_STATUS: u32 = 137;

/// Answers `delete`.
///
/// # Errors
/// When something cannot be killed or removed; what can be, is.
pub fn delete(flags: &Flags) -> Result<(), BootstrapError> {
    let bundle = if flags.bundle.is_empty() { bundle()? } else { PathBuf::from(&flags.bundle) };
    // Without a spec to say otherwise the container is a pod of its own.
    let Identity { pod, role } = Identity::from_bundle(&flags.id, &bundle)
        .unwrap_or_else(|_| Identity { pod: flags.id.clone(), role: Role::Single });
    let socket = socket(flags, &pod);
    // A container that is deleted does not take a living pod along.
    if role.leads() || !is_served(&socket) {
        let state = StateDir::new(Path::new(state_dir::ROOT), &flags.namespace, &pod);
        let killed = state.kill_recorded().map_err(system(format!("kill the processes of pod {pod}")));
        state.remove().map_err(system(format!("remove {}", state.path().display())))?;
        remove_if_there(&socket).map_err(system(format!("remove {}", socket.display())))?;
        killed?;
    }
    let response = DeleteResponse {
        exit_status: KILLED_STATUS,
        exited_at: Some(timestamp(SystemTime::now())).into(),
        ..DeleteResponse::default()
    };
    // The bundle goes away; stay out of it.
    env::set_current_dir("/").map_err(system("leave the bundle"))?;
    reply::write(&response.write_to_bytes()?)
}
