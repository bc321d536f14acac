//! `boot`: from the start of a monitor's process to its guest's first process, and on to an agent that serves.

use std::fs;

use anyhow::{Context as _, Result};

use super::kvm_stats;
use super::machines::{Booted, Monitor};
use super::resident::{Guest, Resident};
use super::rounds::Contender;
use super::sample::{Unit, Value};

/// Boots a machine, looks at it, and ends it.
pub struct Boot(pub Box<dyn Monitor>);

impl Contender for Boot {
    fn name(&self) -> String {
        self.0.name()
    }

    fn command(&self) -> Vec<String> {
        self.0.command()
    }

    fn measure(&mut self) -> Result<Vec<Value>> {
        let folder = tempfile::tempdir()?;
        let Booted { machine, steps } = self.0.boot(folder.path())?;
        let pid = machine.pid();
        let mut values: Vec<Value> = steps.iter().map(|(name, at)| Value::milliseconds(*name, *at)).collect();
        values.extend(kvm_stats::exits(pid));
        values.extend(page_faults(pid)?);
        Ok(values)
    }
}

/// Page faults of a process: those without, and those with input.
fn page_faults(pid: u32) -> Result<Vec<Value>> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path)?;
    // The name before may have anything in it; fields 10 and 12 are counted from behind it (proc_pid_stat(5)).
    let (_, fields) = text.rsplit_once(") ").with_context(|| format!("{path}: {text:?}"))?;
    let field = |number: usize| {
        let word = fields.split(' ').nth(number - 3);
        word.and_then(|word| word.parse().ok()).with_context(|| format!("{path}: field {number} of {text:?}"))
    };
    Ok(vec![
        Value::count("minor page faults", Unit::Count, field(10)?),
        Value::count("major page faults", Unit::Count, field(12)?),
    ])
}

/// Boots a machine and looks at its memory, and its monitor's.
pub struct Memory {
    /// Who runs it.
    pub monitor: Box<dyn Monitor>,
    /// Size of the guest's memory, by which it is told from the monitor's.
    pub guest_kib: u64,
}

impl Contender for Memory {
    fn name(&self) -> String {
        self.monitor.name()
    }

    fn command(&self) -> Vec<String> {
        self.monitor.command()
    }

    fn measure(&mut self) -> Result<Vec<Value>> {
        let folder = tempfile::tempdir()?;
        let booted = self.monitor.boot(folder.path())?;
        let resident = Resident::of(booted.machine.pid(), Guest::Of(self.guest_kib))?;
        let mut values = resident.values("monitor");
        values.push(Value::count("guest memory touched", Unit::Kibibytes, resident.guest));
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_faulted() {
        let faults = page_faults(std::process::id()).unwrap();
        assert!(faults[0].value >= 1.0);
    }
}
