//! How containerd runs this program: `start`, `delete`, or no action, which is the shim itself.
//!
//! The contract is containerd's "runtime v2": flags and environment in, an address or a message on standard
//! output. (The entry point of the `containerd-shim` crate is not used because it announces task API version 3
//! to every containerd; releases before 2.0 speak version 2 and expect a bare address.)

mod delete;
mod reply;
mod serve;
mod start;

use std::env;
use std::ffi::OsString;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use agent_protocol::id::{self, IdError};
use containerd_shim::Flags;

use crate::identity::IdentityError;
pub use serve::services;

/// Name of the runtime, as containerd's configuration has it.
pub const RUNTIME: &str = "io.containerd.uvm.v2";
/// Environment variable with the address of containerd's ttrpc socket.
const TTRPC_ADDRESS: &str = "TTRPC_ADDRESS";

/// Why an action failed.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The command line is not understood.
    #[error("command line: {0}")]
    Flags(#[from] containerd_shim::Error),
    /// An unknown action.
    #[error("action: expected \"start\", \"delete\" or none, found {0:?}")]
    Action(String),
    /// A flag that becomes part of a path.
    #[error("flag -{flag}: {source}")]
    Id {
        /// Which flag.
        flag: &'static str,
        /// What is wrong with it.
        source: IdError,
    },
    /// A variable that containerd sets.
    #[error("environment variable {0} is not set")]
    Environment(&'static str),
    /// The bundle does not say which pod it belongs to.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A container of a pod that is not there.
    #[error("the shim of pod {pod} does not answer at {address}")]
    NoPod {
        /// Which pod.
        pod: String,
        /// Where its shim should listen.
        address: String,
    },
    /// A pod that is there already.
    #[error("a shim of pod {pod} listens at {address} already")]
    Running {
        /// Which pod.
        pod: String,
        /// Where its shim listens.
        address: String,
    },
    /// What containerd sent or gets is no protobuf message.
    #[error("message to or from containerd: {0}")]
    Message(#[from] protobuf::Error),
    /// The system refuses.
    #[error("cannot {what}: {source}")]
    System {
        /// What was attempted.
        what: String,
        /// What the system said.
        source: io::Error,
    },
}

fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> BootstrapError {
    move |source| BootstrapError::System { what: what.into(), source }
}

/// Carries out the action that the arguments name.
///
/// # Errors
/// When they are not understood, or the action fails.
pub fn run(arguments: &[OsString]) -> Result<(), BootstrapError> {
    let flags = containerd_shim::parse(arguments)?;
    if flags.version {
        println!("containerd-shim-uvm-v2:\n  Version:  {}", env!("CARGO_PKG_VERSION"));
        return Ok(());
    }
    if flags.info {
        return reply::info();
    }
    for (flag, value) in [("id", &flags.id), ("namespace", &flags.namespace)] {
        id::check(value).map_err(|source| BootstrapError::Id { flag, source })?;
    }
    match flags.action.as_str() {
        "start" => start::start(&flags),
        "delete" => delete::delete(&flags),
        "" => serve::serve(&flags),
        other => Err(BootstrapError::Action(other.into())),
    }
}

/// Where the shim of `pod` listens, as a path; containerd gets it with `unix://` before it.
fn socket(flags: &Flags, pod: &str) -> PathBuf {
    let address = containerd_shim::socket_address(&flags.address, &flags.namespace, pod);
    PathBuf::from(address.strip_prefix("unix://").unwrap_or(&address))
}

/// Whether somebody listens at `socket`.
fn is_served(socket: &Path) -> bool {
    UnixStream::connect(socket).is_ok()
}

fn bundle() -> Result<PathBuf, BootstrapError> {
    env::current_dir().map_err(system("find the bundle: it is the current directory"))
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
