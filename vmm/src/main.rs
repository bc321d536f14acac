//! `uvm-vmm`: one process, one utility VM. Started by the shim or by `uvm-launch`, which hold the other end of
//! its standard input; it takes no arguments.

mod log;

use std::process::ExitCode;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

fn main() -> ExitCode {
    if std::env::args_os().len() > 1 {
        eprintln!("uvm-vmm takes no arguments: it is started by the containerd shim or by uvm-launch");
        return ExitCode::from(launch::control::STATUS_LAUNCH_REFUSED);
    }
    log::start();
    allow_open_files();
    ExitCode::from(vmm::session::run(std::io::stdin()))
}

/// Raises the limit of open files to what the system allows: each layer that is attached is one. The lower limit
/// that processes begin with serves programs that use select(2).
fn allow_open_files() {
    let Rlimit { current: _, maximum } = getrlimit(Resource::Nofile);
    // Raising to the hard limit is always allowed; if not, attaching tells when there is no room.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}
