//! Everything a person types: `cargo xtask demo|test|bench|node|image|kernel|fuzz|setup`.
//!
//! This file only maps subcommands to modules; each module owns one artefact or one piece of machinery.

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

mod bench;
mod demo;
mod fuzz;
mod image;
mod kernel;
mod node;
mod places;
mod progress;
mod redis_image;
mod scratch;
mod setup;
mod suites;
mod tally;
mod tdx_entry;
mod test;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds, tests and tries uvm")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install the Debian packages that the project needs and that are missing
    Setup,
    /// Build the guest kernel and print its path
    Kernel,
    /// Run a real image as a pod in a utility VM, and show what that is
    Demo(demo::Arguments),
    /// Build the product: programs and image, into target/uvm
    Image,
    /// Measure the product beside others: time, memory, counts
    Bench(bench::Arguments),
    /// Fuzz the parsers of hostile bytes
    Fuzz(fuzz::Arguments),
    /// Run a command, or a shell, as root in the nested node
    Node(NodeArguments),
    /// Run the tests: all steps, or those named
    Test {
        /// Steps to run, by name
        steps: Vec<String>,
    },
    /// First process of the node (run by the node's kernel only)
    #[command(hide = true)]
    NodeInit,
    /// Offer this machine's files, read-only, to the node (run by `node` only)
    #[command(hide = true)]
    NodeShare(node::share::Arguments),
}

#[derive(clap::Args)]
struct NodeArguments {
    /// Memory of the node in MiB
    #[arg(long, default_value_t = node::DEFAULT_MEMORY_MIB)]
    memory: u64,
    /// Processors of the node [default: this machine's, at most 8]
    #[arg(long)]
    cpus: Option<usize>,
    /// Folder that the node may write to, at the same path [default: target/node/share]
    #[arg(long)]
    share: Option<PathBuf>,
    /// Do not start containerd
    #[arg(long)]
    no_containerd: bool,
    /// Command to run; without one, a shell on this terminal
    #[arg(last = true)]
    command: Vec<OsString>,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Setup => setup::ensure_all().map(|()| ExitCode::SUCCESS),
        Command::Kernel => kernel::build().map(|kernel| {
            println!("{}", kernel.image.display());
            ExitCode::SUCCESS
        }),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Image => image::build().map(|folder| {
            println!("{}", folder.display());
            ExitCode::SUCCESS
        }),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Fuzz(arguments) => fuzz::run(&arguments).map(|clean| ExitCode::from(u8::from(!clean))),
        Command::Node(arguments) => run_in_node(arguments),
        Command::Test { steps } => test::run(&steps),
        Command::NodeInit => node::init::run(),
        Command::NodeShare(arguments) => node::share::run(&arguments).map(|never| match never {}),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn run_in_node(arguments: NodeArguments) -> anyhow::Result<ExitCode> {
    setup::ensure_all()?;
    let mut config = node::NodeConfig { memory_mib: arguments.memory, ..node::NodeConfig::default() };
    if let Some(cpus) = arguments.cpus {
        config.cpus = cpus;
    }
    if let Some(share) = arguments.share {
        config.share = share;
    }
    config.containerd = !arguments.no_containerd;
    let mut node = node::Node::boot(&config)?;
    let status = if arguments.command.is_empty() {
        node.shell()?
    } else {
        node.run(&node::Job::new(arguments.command)?, node::Streams::inherited())?
    };
    node.shutdown()?;
    Ok(ExitCode::from(status))
}
