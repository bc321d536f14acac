//! `uvm-launch`: launches utility VMs by hand, and explains their measurements.

mod build;
mod diff;
mod endorse;
mod explain;
mod handshake;
mod id_block;
mod input;
mod inspect;
mod launch_arguments;
mod measure;
mod report;
mod run;
mod signed_launch;
mod state_dir;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Launches utility VMs by hand, and explains their measurements.
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
    /// Builds an image and its sidecar from a recipe, a kernel and the boot stub.
    Build(build::Arguments),
    /// Shows what is in an image, and what it costs to launch.
    Inspect(inspect::Arguments),
    /// Prints the digests that a launch of an image will have.
    Measure(measure::Arguments),
    /// Shows what makes the measurements of two images, or of two launches of one, differ.
    Diff(diff::Arguments),
    /// Finds the launch that a report is of.
    Explain(explain::Arguments),
    /// Verifies a report or quote, check by named check.
    Verify(Box<verify::Arguments>),
    /// Signs a statement that a launch digest is a version of an image.
    Endorse(endorse::Arguments),
    /// Makes and signs an ID block: what the secure processor may launch.
    IdBlock(id_block::Arguments),
}

fn main() -> ExitCode {
    // The status of a failure: of a machine (1), or of a question that cannot be answered (2).
    let (result, failed) = match Arguments::parse().command {
        Command::Run(arguments) => (run::run(&arguments), 1),
        Command::Report(arguments) => (report::run(&arguments), 1),
        Command::Build(arguments) => (build::run(&arguments), input::BAD_INPUT),
        Command::Inspect(arguments) => (inspect::run(&arguments), input::BAD_INPUT),
        Command::Measure(arguments) => (measure::run(&arguments), input::BAD_INPUT),
        Command::Diff(arguments) => (diff::run(&arguments), input::BAD_INPUT),
        Command::Explain(arguments) => (explain::run(&arguments), input::BAD_INPUT),
        Command::Verify(arguments) => (verify::run(&arguments), input::BAD_INPUT),
        Command::Endorse(arguments) => (endorse::run(&arguments), input::BAD_INPUT),
        Command::IdBlock(arguments) => (id_block::run(&arguments), input::BAD_INPUT),
    };
    match result {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("uvm-launch: {error:#}");
            ExitCode::from(failed)
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn every_subcommand_is_well_formed() {
        super::Arguments::command().debug_assert();
    }
}
