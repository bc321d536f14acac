//! `node-suites`: runs the suites; meant for the nested node.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use testbed::case::{Bed, run};

/// Runs the suites against the containerd of this machine. It starts and kills containers and VMMs: run it in
/// the nested node (`cargo xtask test`, or `cargo xtask node -- …`).
#[derive(Debug, Parser)]
struct Arguments {
    /// What `cargo xtask image` built.
    #[arg(long)]
    product: PathBuf,
    /// Run only cases whose `suite::name` contains this.
    filter: Option<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let bed = Bed { product: arguments.product };
    if run(&bed, &testbed::suites::all(), arguments.filter.as_deref()) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
