//! `node-suites`: runs the suites; meant for the nested node.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use testbed::case::{Bed, run};
use testbed::progress::Progress;

/// Runs the suites against the containerd of this machine. It starts and kills containers and VMMs: run it in
/// the nested node (`cargo xtask test`, or `cargo xtask node -- …`).
#[derive(Debug, Parser)]
struct Arguments {
    /// What `cargo xtask image` built.
    #[arg(long)]
    product: PathBuf,
    /// Keep results in this file; cases that have one there are not run again.
    #[arg(long)]
    progress: Option<PathBuf>,
    /// Run only cases whose `suite::name` contains this.
    filter: Option<String>,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let bed = Bed { product: arguments.product };
    let mut progress = arguments.progress.as_deref().map(Progress::load).transpose()?.unwrap_or_default();
    let passed = run(&bed, &testbed::suites::all(), arguments.filter.as_deref(), &mut progress)?;
    Ok(ExitCode::from(u8::from(!passed)))
}
