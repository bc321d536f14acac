//! What the product costs, beside what people would use instead.
//!
//! A bench is a list of [`rounds::Contender`]s that are measured in turn. It gives rows of metrics, which are written
//! as JSON, as a table and as a picture. What cannot be measured on a machine is said, never left out silently.

pub mod boot;
pub mod containers;
pub mod counts;
pub mod environment;
pub mod guard;
pub mod kvm_stats;
pub mod machines;
pub mod marker;
pub mod plot;
pub mod program_run;
pub mod report;
pub mod resident;
pub mod round_trip;
pub mod rounds;
pub mod sample;
pub mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context as _, Result, bail};
use launch::plan::Tee;

use self::boot::{Boot, Memory};
use self::containers::{ByRuntime, Layers, Pods};
use self::environment::Environment;
use self::machines::{CloudHypervisor, Firecracker, Monitor, Others, Product, Qemu, Size, Uvm};
use self::marker::MarkerGuest;
use self::program_run::ProgramRun;
use self::report::{BenchReport, Report};
use self::round_trip::RoundTrip;
use self::rounds::{Contender, Rounds, take_turns};
use crate::case::Bed;
use crate::ctr::{RUNTIME, import_busybox};

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
    Entry { name: "containers", title: "a container by ctr, beside other runtimes", run: containers },
    Entry { name: "pods", title: "idle pods: time to create, memory for each", run: pods },
    Entry { name: "attach", title: "a container on images of many layers, in a pod that runs", run: attach },
    Entry { name: "round-trip", title: "one small question to the agent", run: round_trip },
    Entry { name: "digest", title: "the launch digests of an image, beside one pass of a hash", run: digest },
    Entry { name: "block", title: "reading from a disk in the guest", run: block },
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

fn containers(bench: &Bench, report: &mut BenchReport) -> Result<()> {
    const OWN: &[&str] = &["--runtime", RUNTIME];
    const RUNC: &[&str] = &["--runtime", "io.containerd.runc.v2"];
    const CRUN: &[&str] = &["--runtime", "io.containerd.runc.v2", "--runc-binary", "crun"];
    import_busybox(&bench.bed)?;
    let mut runtimes = vec![ByRuntime { name: "uvm", flags: OWN }, ByRuntime { name: "runc", flags: RUNC }];
    if on_path("crun") {
        runtimes.push(ByRuntime { name: "crun", flags: CRUN });
    } else {
        report.missing.push("crun: not installed".into());
    }
    turns(bench, report, runtimes.into_iter().map(|runtime| -> Box<dyn Contender> { Box::new(runtime) }))
}

/// Numbers of pods, as far as the machine has memory for them: an idle pod's guest touches about 64 MiB, and a
/// quarter of the memory is for everything else.
fn pods(bench: &Bench, report: &mut BenchReport) -> Result<()> {
    const NUMBERS: [usize; 3] = [1, 10, 30];
    const POD_KIB: u64 = 80 * 1024;
    let total = Environment::here(None).memory_kib;
    let most = usize::try_from(total / 4 * 3 / POD_KIB)?;
    let (at, too_many): (Vec<_>, Vec<_>) = NUMBERS.into_iter().partition(|number| *number <= most);
    for number in too_many {
        report.missing.push(format!("{number} pods: this machine has memory for {most}"));
    }
    import_busybox(&bench.bed)?;
    let mut contenders: [Box<dyn Contender>; 1] = [Box::new(Pods { at, logs: bench.folder.clone() })];
    // Each pod is a sample of its own.
    report.rows.extend(take_turns(&mut contenders, Rounds { warm_up: 0, counted: 1 })?);
    Ok(())
}

fn attach(bench: &Bench, report: &mut BenchReport) -> Result<()> {
    const LAYERS: [usize; 3] = [1, 12, 100];
    let images = LAYERS.into_iter().map(|layers| Layers::import(&bench.folder, layers));
    let images = images.collect::<Result<Vec<_>>>()?;
    turns(bench, report, images.into_iter().map(|image| -> Box<dyn Contender> { Box::new(image) }))
}

fn round_trip(bench: &Bench, report: &mut BenchReport) -> Result<()> {
    report
        .missing
        .push("throughput of the virtual socket: the agent has no request that only moves bytes".into());
    turns(
        bench,
        report,
        bench.product().map(|monitor| -> Box<dyn Contender> { Box::new(RoundTrip(monitor)) }),
    )
}

fn digest(bench: &Bench, report: &mut BenchReport) -> Result<()> {
    let image = bench.bed.product.join("uvm.igvm").display().to_string();
    let measure = bench.bed.program("uvm-launch").display().to_string();
    let runs = [
        ProgramRun { name: "uvm-launch measure", words: vec![measure, "measure".into(), image.clone()] },
        ProgramRun { name: "sha384sum", words: vec!["sha384sum".into(), image] },
    ];
    turns(bench, report, runs.into_iter().map(|run| -> Box<dyn Contender> { Box::new(run) }))
}

fn block(_: &Bench, report: &mut BenchReport) -> Result<()> {
    let why = if on_path("fio") { "an image with fio in it" } else { "fio, which is not installed" };
    report.missing.push(format!("sequential and random reads with and without verity: waiting for {why}"));
    Ok(())
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
