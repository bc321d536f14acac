//! How often a virtual machine was left, as the kernel counts it (`/sys/kernel/debug/kvm/PID-FD`): the same counters
//! for every monitor, and no cost to the one that is measured.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::sample::{Unit, Value};

const DEBUGFS: &str = "/sys/kernel/debug";
const MACHINES: &str = "/sys/kernel/debug/kvm";

/// The kernel's counters, and what they are called here.
const COUNTERS: [(&str, &str); 6] = [
    ("exits", "VM exits"),
    ("mmio_exits", "MMIO exits"),
    ("io_exits", "port exits"),
    ("halt_exits", "halt exits"),
    ("irq_exits", "interrupt exits"),
    ("pf_taken", "nested page faults"),
];

/// Mounts the file system of counters where it is not mounted yet.
///
/// # Errors
/// When the kernel has none.
pub fn prepare() -> Result<()> {
    if !Path::new(MACHINES).exists() {
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("debugfs", DEBUGFS, "debugfs", flags, c"").context("mount debugfs")?;
    }
    fs::metadata(MACHINES).map(drop).with_context(|| format!("{MACHINES}: no counters of virtual machines"))
}

/// What the kernel counted for the machines of process `pid` so far. Nothing where it does not count, and counters
/// that this kernel does not have are left out.
#[must_use]
pub fn exits(pid: u32) -> Vec<Value> {
    let prefix = format!("{pid}-");
    let machines = fs::read_dir(MACHINES).into_iter().flatten().flatten();
    let machine = machines.map(|entry| entry.path()).find(|path| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(&prefix))
    });
    let Some(machine) = machine else { return Vec::new() };
    let counter = |(file, name): &(&str, &str)| {
        let text = fs::read_to_string(machine.join(file)).ok()?;
        Some(Value::count(*name, Unit::Count, text.trim().parse().ok()?))
    };
    COUNTERS.iter().filter_map(counter).collect()
}
