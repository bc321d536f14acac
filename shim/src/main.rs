//! `containerd-shim-uvm-v2`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    match shim::bootstrap::run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", shim::bootstrap::RUNTIME);
            ExitCode::FAILURE
        }
    }
}
