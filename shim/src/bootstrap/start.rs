//! `start`: finds the shim of a container's pod, or starts it.
//!
//! The socket is bound here and handed to the shim as its standard input: from the moment that containerd gets
//! the address, connections wait in the socket's queue, and there is no moment in which two shims could both
//! believe that the address is theirs.

use std::env;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use containerd_shim::Flags;
use rustix::fs::OFlags;

use super::reply::{self, Asked};
use super::{BootstrapError, TTRPC_ADDRESS, bundle, is_served, remove_if_there, socket, system};
use crate::identity::Identity;

/// Largest score of the out-of-memory killer.
const MAX_OOM_SCORE: i32 = 1000;
/// File in the bundle from which containerd before 2.0 learns the address after a restart.
const ADDRESS_FILE: &str = "address";

/// Answers `start`.
///
/// # Errors
/// When the pod cannot be told, its shim is missing or there already, or cannot be started.
pub fn start(flags: &Flags) -> Result<(), BootstrapError> {
    let max_version = env::var("MAX_SHIM_VERSION").ok();
    let Asked { format, ttrpc_address } = reply::asked(&flags.id, &flags.namespace, max_version.as_deref())?;
    let ttrpc_address = ttrpc_address.or_else(|| env::var(TTRPC_ADDRESS).ok());
    let ttrpc_address = ttrpc_address.ok_or(BootstrapError::Environment(TTRPC_ADDRESS))?;

    let bundle = bundle()?;
    let Identity { pod, role } = Identity::from_bundle(&flags.id, &bundle)?;
    let socket = socket(flags, &pod);
    let address = format!("unix://{}", socket.display());
    if role.leads() {
        let listener = listen(&socket, &pod)?;
        if let Err(error) = launch(flags, &ttrpc_address, &bundle, listener) {
            // Without a shim behind it the socket is nothing.
            let _ = remove_if_there(&socket);
            return Err(error);
        }
    } else if !is_served(&socket) {
        return Err(BootstrapError::NoPod { pod, address });
    }
    fs::write(bundle.join(ADDRESS_FILE), &address).map_err(system("write the address to the bundle"))?;
    reply::write(&reply::encode(format, &address)?)
}

/// Binds the pod's socket; one that a dead shim left behind is replaced.
fn listen(socket: &Path, pod: &str) -> Result<UnixListener, BootstrapError> {
    let listen = || UnixListener::bind(socket);
    if let Some(directory) = socket.parent() {
        fs::create_dir_all(directory).map_err(system(format!("create {}", directory.display())))?;
    }
    let bound = match listen() {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if is_served(socket) {
                let address = socket.display().to_string();
                return Err(BootstrapError::Running { pod: pod.into(), address });
            }
            remove_if_there(socket).and_then(|()| listen())
        }
        bound => bound,
    };
    let restricted = bound.and_then(|listener| {
        fs::set_permissions(socket, Permissions::from_mode(0o600))?;
        Ok(listener)
    });
    restricted.map_err(system(format!("listen on {}", socket.display())))
}

fn launch(
    flags: &Flags,
    ttrpc_address: &str,
    bundle: &Path,
    listener: UnixListener,
) -> Result<(), BootstrapError> {
    let program = env::current_exe().map_err(system("find this program"))?;
    let mut command = Command::new(program);
    command
        .args(["-namespace", &flags.namespace, "-id", &flags.id, "-address", &flags.address])
        .args(flags.debug.then_some("-debug"))
        .env(TTRPC_ADDRESS, ttrpc_address)
        .current_dir(bundle)
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(Stdio::null())
        .stderr(log(bundle).map_or_else(Stdio::null, Stdio::from))
        // Signals to containerd's own group are not meant for its pods.
        .process_group(0);
    let shim = command.spawn().map_err(system("start the shim"))?;
    // A shim that is killed takes its pod along, so containerd's own children are better victims.
    let path = format!("/proc/{}/oom_score_adj", shim.id());
    let score = fs::read_to_string(&path).ok().and_then(|score| score.trim().parse::<i32>().ok());
    let score = score.map_or(0, |score| (score + 1).min(MAX_OOM_SCORE));
    fs::write(&path, score.to_string()).map_err(system(format!("write {path}")))
}

/// The FIFO from which containerd takes a shim's log. Opened for reading too, and without waiting: neither a
/// containerd that restarts nor one that does not read can stop a shim.
fn log(bundle: &Path) -> Option<File> {
    let flags = OFlags::NONBLOCK.bits().try_into().unwrap_or(0);
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(bundle.join("log")).ok()
}
