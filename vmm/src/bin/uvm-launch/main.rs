//! `uvm-launch`: launches utility VMs by hand, and shows what they do.

mod run;

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
}

fn main() -> ExitCode {
    let Command::Run(arguments) = Arguments::parse().command;
    match run::run(&arguments) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("uvm-launch: {error:#}");
            ExitCode::FAILURE
        }
    }
}
