//! What the product costs, beside what people would use instead.
//!
//! A bench is a list of [`rounds::Contender`]s that are measured in turn. It gives rows of metrics, which are written
//! as JSON, as a table and as a picture. What cannot be measured on a machine is said, never left out silently.

pub mod boot;
pub mod counts;
pub mod environment;
pub mod guard;
pub mod kvm_stats;
pub mod machines;
pub mod marker;
pub mod plot;
pub mod report;
pub mod resident;
pub mod rounds;
pub mod sample;
pub mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context as _, Result, bail};
use launch::plan::Tee;

use self::boot::{Boot, Memory};
use self::machines::{CloudHypervisor, Firecracker, Monitor, Others, Product, Qemu, Size, Uvm};
use self::marker::MarkerGuest;
use self::report::{BenchReport, Report};
use self::rounds::{Contender, Rounds, take_turns};
use crate::case::Bed;

/// What every bench may use.
#[derive(Debug)]
pub struct Bench {
    /// The product.
    pub bed: Bed,
    /// Monitors of other projects.
    pub others: Others,
    /// Size of all machines.
    pub size: Size,
    /// How often everything is measured.
    pub rounds: Rounds,
    /// Folder for what is made on the way; removed by whoever made it.
    pub folder: PathBuf,
}

/// A bench by name.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// On the command line.
    pub name: &'static str,
    /// What it measures.
    pub title: &'static str,
    run: fn(&Bench, &mut BenchReport) -> Result<()>,
}

/// All benches, in the order in which they are run.
pub const ALL: &[Entry] = &[
    Entry { name: "boot", title: "from process start to the guest's first process", run: boot },
    Entry { name: "ready", title: "from process start to an agent that serves", run: ready },
    Entry { name: "memory", title: "memory of the monitor, and of its guest, once booted", run: memory },
];

/// The benches of these names, or all.
///
/// # Errors
/// When there is none of a name.
pub fn select(names: &[String]) -> Result<Vec<&'static Entry>> {
    if names.is_empty() {
        return Ok(ALL.iter().collect());
    }
    let entry = |name: &String| {
        ALL.iter().find(|entry| entry.name == name).with_context(|| {
            let known: Vec<_> = ALL.iter().map(|entry| entry.name).collect();
            format!("expected one of the benches {}, found {name}", known.join(", "))
        })
    };
    names.iter().map(entry).collect()
}

impl Entry {
    /// Runs it. What fails is a line of the report, so that the other benches still run.
    #[must_use]
    pub fn run(&self, bench: &Bench) -> BenchReport {
        eprintln!("{}: {}", self.name, self.title);
        let mut report =
            BenchReport { name: self.name.into(), title: self.title.into(), rows: vec![], missing: vec![] };
        if let Err(error) = (self.run)(bench, &mut report) {
            eprintln!("  failed: {error:#}");
            report.missing.push(format!("failed: {error:#}"));
        }
        report
    }
}

/// Writes a report as `bench.json`, `bench.md`, and a picture for each bench.
///
/// # Errors
/// When a file cannot be written.
pub fn write(report: &Report, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    fs::write(folder.join("bench.json"), serde_json::to_vec_pretty(report)?)?;
    fs::write(folder.join("bench.md"), table::of_report(report))?;
    for bench in &report.benches {
        plot::draw(bench, &folder.join(format!("{}.svg", bench.name)))?;
    }
    Ok(())
}

impl Bench {
    /// Everyone who boots the marker guest, ours first, and who is missing.
    fn monitors(&self, report: &mut BenchReport) -> Result<Vec<Box<dyn Monitor>>> {
        let guest = Rc::new(MarkerGuest::build(&self.bed, &self.folder)?);
        let (size, others) = (self.size, &self.others);
        let own = |tee| Uvm { program: self.bed.program("uvm-vmm"), guest: Rc::clone(&guest), tee, size };
        let mut monitors: Vec<Box<dyn Monitor>> = vec![Box::new(own(Tee::None)), Box::new(own(Tee::Sim))];
        if on_path("qemu-system-x86_64") {
            monitors.push(Box::new(Qemu { guest: Rc::clone(&guest), size }));
        } else {
            report.missing.push("qemu microvm: qemu-system-x86_64 is not installed".into());
        }
        match (&others.cloud_hypervisor, &others.pci_kernel) {
            (Some(program), Some(kernel)) => monitors.push(Box::new(CloudHypervisor {
                program: program.clone(),
                guest: Rc::clone(&guest),
                kernel: kernel.clone(),
                size,
            })),
            _ => report.missing.push("cloud-hypervisor: needs --cloud-hypervisor and --pci-kernel".into()),
        }
        match (&others.firecracker, &others.vmlinux) {
            (Some(program), Some(vmlinux)) => monitors.push(Box::new(Firecracker {
                program: program.clone(),
                guest,
                vmlinux: vmlinux.clone(),
                size,
            })),
            _ => report.missing.push("firecracker: needs --firecracker and --vmlinux".into()),
        }
        Ok(monitors)
    }

    /// The product as it is shipped, under each isolation that needs no special processor.
    fn product(&self) -> impl Iterator<Item = Box<dyn Monitor>> {
        [Tee::None, Tee::Sim].into_iter().map(|tee| -> Box<dyn Monitor> {
            Box::new(Product { folder: self.bed.product.clone(), tee, size: self.size })
        })
    }
}

fn boot(bench: &Bench, report: &mut BenchReport) -> Result<()> {
    count_exits(report);
    let monitors = bench.monitors(report)?;
    turns(
        bench,
        report,
        monitors.into_iter().map(|monitor| -> Box<dyn Contender> { Box::new(Boot(monitor)) }),
    )
}

fn ready(bench: &Bench, report: &mut BenchReport) -> Result<()> {
    count_exits(report);
    turns(bench, report, bench.product().map(|monitor| -> Box<dyn Contender> { Box::new(Boot(monitor)) }))
}

fn memory(bench: &Bench, report: &mut BenchReport) -> Result<()> {
    let monitors = bench.monitors(report)?.into_iter().chain(bench.product());
    let guest_kib = bench.size.memory_kib();
    turns(
        bench,
        report,
        monitors.map(|monitor| -> Box<dyn Contender> { Box::new(Memory { monitor, guest_kib }) }),
    )
}

fn turns(
    bench: &Bench,
    report: &mut BenchReport,
    contenders: impl Iterator<Item = Box<dyn Contender>>,
) -> Result<()> {
    let mut contenders: Vec<_> = contenders.collect();
    if contenders.is_empty() {
        bail!("nobody to measure");
    }
    report.rows.extend(take_turns(&mut contenders, bench.rounds)?);
    Ok(())
}

fn count_exits(report: &mut BenchReport) {
    if let Err(error) = kvm_stats::prepare() {
        report.missing.push(format!("VM exits: {error:#}"));
    }
}

/// Whether a program of this name can be started.
#[must_use]
pub fn on_path(program: &str) -> bool {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders).any(|folder| folder.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_benches_are_refused() {
        assert_eq!(select(&[]).unwrap().len(), ALL.len());
        assert_eq!(select(&["memory".to_owned()]).unwrap()[0].name, "memory");
        assert!(select(&["memories".to_owned()]).is_err());
    }
}
