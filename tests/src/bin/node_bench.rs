//! `node-bench`: runs benches, or the guard; meant for the nested node or any machine whose KVM boots Linux.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use testbed::bench::environment::Environment;
use testbed::bench::guard::{Baseline, passes, table};
use testbed::bench::machines::{Others, Size};
use testbed::bench::report::Report;
use testbed::bench::rounds::Rounds;
use testbed::bench::table::{of_changes, of_report};
use testbed::bench::{Bench, counts, select, write};
use testbed::case::Bed;

/// Measures the product beside others. Without names, everything.
#[derive(Debug, Parser)]
struct Arguments {
    /// What `cargo xtask image` built.
    #[arg(long)]
    product: PathBuf,
    /// Folder for results.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
    /// An older report; what has changed since is printed.
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    /// Compare counts and ratios with the baseline; without names, only what needs no machine.
    #[arg(long, requires = "baseline")]
    guard: bool,
    /// The baseline.
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    /// Write what was counted into the baseline.
    #[arg(long, requires = "baseline")]
    update_baseline: bool,
    /// Rounds that count.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Rounds before them.
    #[arg(long, default_value_t = 1)]
    warm_up: usize,
    /// Guest memory in MiB.
    #[arg(long, default_value_t = 256)]
    memory: u64,
    /// Virtual processors.
    #[arg(long, default_value_t = 1)]
    vcpus: u32,
    /// Cloud Hypervisor.
    #[arg(long, value_name = "PATH", requires = "pci_kernel")]
    cloud_hypervisor: Option<PathBuf>,
    /// A bzImage with PCI for it: the product's kernel has none.
    #[arg(long, value_name = "PATH")]
    pci_kernel: Option<PathBuf>,
    /// Firecracker.
    #[arg(long, value_name = "PATH", requires = "vmlinux")]
    firecracker: Option<PathBuf>,
    /// The kernel as an ELF file for it.
    #[arg(long, value_name = "PATH")]
    vmlinux: Option<PathBuf>,
    /// Revision of the sources, for the report.
    #[arg(long)]
    revision: Option<String>,
    /// Benches to run.
    names: Vec<String>,
}

/// Counts that need no machine and so may not be missing.
const ALWAYS_COUNTED: &[&str] = &["measured_pages/", "shared_pages/", "bytes/"];

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether the guard, if it was asked, lets the run pass.
fn run(arguments: Arguments) -> Result<bool> {
    let counts_only = (arguments.guard || arguments.update_baseline) && arguments.names.is_empty();
    let report = if counts_only { None } else { Some(measure(&arguments)?) };
    if let Some(report) = &report {
        if arguments.json {
            println!("{}", serde_json::to_string_pretty(report)?);
        } else {
            print!("{}", of_report(report));
        }
        if let Some(path) = &arguments.compare {
            println!("\n{}", of_changes(&Report::read(path)?, report));
        }
    }
    let Some(path) = arguments.baseline.as_ref().filter(|_| arguments.guard || arguments.update_baseline)
    else {
        return Ok(true);
    };
    let mut found = counts::of_product(&arguments.product)?;
    found.extend(report.iter().flat_map(counts::of_report));
    let baseline = Baseline::read(path)?;
    if arguments.update_baseline {
        let json = serde_json::to_string_pretty(&baseline.updated(&found))?;
        std::fs::write(path, json + "\n").with_context(|| path.display().to_string())?;
        return Ok(true);
    }
    let lines = baseline.judge(&found);
    print!("{}", table(&lines));
    Ok(passes(&lines, ALWAYS_COUNTED))
}

fn measure(arguments: &Arguments) -> Result<Report> {
    ensure!(arguments.rounds > 0, "expected at least one round that counts");
    let entries = select(&arguments.names)?;
    let folder = tempfile::tempdir()?;
    let bench = Bench {
        bed: Bed { product: arguments.product.canonicalize().context("the product's folder")? },
        others: Others {
            cloud_hypervisor: arguments.cloud_hypervisor.clone(),
            pci_kernel: arguments.pci_kernel.clone(),
            firecracker: arguments.firecracker.clone(),
            vmlinux: arguments.vmlinux.clone(),
        },
        size: Size { memory_mib: arguments.memory, vcpus: arguments.vcpus },
        rounds: Rounds { warm_up: arguments.warm_up, counted: arguments.rounds },
        folder: folder.path().into(),
    };
    let mut report = Report::new(Environment::here(arguments.revision.clone()));
    for entry in entries {
        report.benches.push(entry.run(&bench));
        // After each: what has been measured is not lost with a node that ends too early.
        if let Some(out) = &arguments.out {
            write(&report, out)?;
        }
    }
    Ok(report)
}
