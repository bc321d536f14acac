//! `uvm-launch`: launches utility VMs by hand, and shows what they do.

mod handshake;
mod report;
mod run;
mod state_dir;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Launches utility VMs by hand.
#[derive(Debug, Parser)]
#[command(name = "uvm-launch", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Starts an image and shows the boot's timeline; ends with the guest, or with Ctrl-C.
    Run(run::Arguments),
    /// Fetches a fresh report from the agent of a running machine, whoever started it.
    Report(report::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Report(arguments) => report::run(&arguments),
    };
    match outcome {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("uvm-launch: {error:#}");
            ExitCode::FAILURE
        }
    }
}
