//! `uvm-vmm`: one process, one utility VM. Started by the shim or by `uvm-launch`, which hold the other end of
//! its standard input; it takes no arguments.

mod log;

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args_os().len() > 1 {
        eprintln!("uvm-vmm takes no arguments: it is started by the containerd shim or by uvm-launch");
        return ExitCode::from(launch::control::STATUS_LAUNCH_REFUSED);
    }
    log::start();
    ExitCode::from(vmm::session::run(std::io::stdin()))
}
