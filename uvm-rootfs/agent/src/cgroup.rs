//! A container's control group: limits, freezing, killing, removal (cgroup v2).
//!
//! `libcontainer` creates the group and applies the first limits; from then on the agent writes the group's files
//! itself. Follows the kernel's `admin-guide/cgroup-v2.rst`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_spec::runtime::{LinuxCpu, LinuxResources};
use rustix::process::Pid;
use tokio::time::{Instant, sleep};

use crate::error::{AgentError, Context, Result};
use crate::process::send;

/// Where cgroup v2 is mounted.
pub const ROOT: &str = "/sys/fs/cgroup";
/// The group of all containers, below [`ROOT`].
pub const PARENT: &str = "uvm";

/// Interval at which the kernel's own progress (freezing, emptying) is looked at.
const LOOK: Duration = Duration::from_millis(2);
/// How long freezing may take: the kernel stops tasks at their next return to user space.
const FREEZE_LIMIT: Duration = Duration::from_secs(5);

/// One container's group.
#[derive(Debug, Clone)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// The group of `container`, whose id has been checked.
    #[must_use]
    pub fn of(container: &str) -> Self {
        Self(Path::new(ROOT).join(PARENT).join(container))
    }

    /// A group at another place.
    #[must_use]
    pub fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// The path that the OCI configuration names for `container`.
    #[must_use]
    pub fn oci_path(container: &str) -> PathBuf {
        Path::new("/").join(PARENT).join(container)
    }

    /// The group's directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Ends every process at once, frozen ones too.
    ///
    /// # Errors
    /// If the group exists and refuses.
    pub fn kill(&self) -> Result<()> {
        match fs::write(self.0.join("cgroup.kill"), "1") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.doing(|| format!("kill {}", self.0.display())),
        }
    }

    /// Sends `signal` to every process in the group and its subgroups.
    ///
    /// # Errors
    /// If the processes cannot be listed, or the signal is none.
    pub fn signal(&self, signal: u32) -> Result<()> {
        if i32::try_from(signal) == Ok(libc::SIGKILL) {
            return self.kill();
        }
        for group in self.tree()? {
            let list = fs::read_to_string(group.join("cgroup.procs"));
            let list = list.doing(|| format!("list the processes of {}", group.display()))?;
            for pid in list.lines().filter_map(|line| line.parse().ok()).filter_map(Pid::from_raw) {
                send(pid, signal)?;
            }
        }
        Ok(())
    }

    /// Freezes or thaws, and waits until that is so.
    ///
    /// # Errors
    /// If the kernel has not done it within five seconds; a freeze is then taken back.
    pub async fn freeze(&self, frozen: bool) -> Result<()> {
        let value = if frozen { "1" } else { "0" };
        self.write("cgroup.freeze", value)?;
        if self.wait_event("frozen", frozen, Instant::now() + FREEZE_LIMIT).await? {
            return Ok(());
        }
        if frozen {
            self.write("cgroup.freeze", "0")?;
        }
        Err(AgentError::State(format!("{} did not become frozen={value} within 5 s", self.0.display())))
    }

    /// Waits until the group holds no process; says whether that came before `deadline`.
    ///
    /// # Errors
    /// If the group cannot be read.
    pub async fn wait_empty(&self, deadline: Instant) -> Result<bool> {
        if !self.0.exists() {
            return Ok(true);
        }
        self.wait_event("populated", false, deadline).await
    }

    async fn wait_event(&self, key: &str, wanted: bool, deadline: Instant) -> Result<bool> {
        loop {
            let events = self.read("cgroup.events")?;
            if keyed(&events, key) == Some(u64::from(wanted)) {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            sleep(LOOK).await;
        }
    }

    /// Removes the empty group and its subgroups.
    ///
    /// # Errors
    /// If one still holds a process.
    pub fn remove(&self) -> Result<()> {
        if !self.0.exists() {
            return Ok(());
        }
        for group in self.tree()?.iter().rev() {
            fs::remove_dir(group).doing(|| format!("remove {}", group.display()))?;
        }
        Ok(())
    }

    /// How many processes of the group the kernel has killed for lack of memory.
    ///
    /// # Errors
    /// If the group cannot be read.
    pub fn oom_kills(&self) -> Result<u64> {
        Ok(keyed(&self.read("memory.events")?, "oom_kill").unwrap_or(0))
    }

    /// Changes limits: memory, CPU and number of processes. Absent fields stay as they are.
    ///
    /// # Errors
    /// If a value is out of range, or a limit is named that cannot be changed here. Nothing is written then.
    pub fn update(&self, resources: &LinuxResources) -> Result<()> {
        for (file, value) in changes(resources)? {
            self.write(file, &value)?;
        }
        Ok(())
    }

    fn read(&self, file: &str) -> Result<String> {
        let path = self.0.join(file);
        fs::read_to_string(&path).doing(|| format!("read {}", path.display()))
    }

    fn write(&self, file: &str, value: &str) -> Result<()> {
        let path = self.0.join(file);
        fs::write(&path, value).doing(|| format!("write {value} to {}", path.display()))
    }

    /// The group and all below it, parents first.
    fn tree(&self) -> Result<Vec<PathBuf>> {
        let mut groups = vec![self.0.clone()];
        let mut next = 0;
        while let Some(group) = groups.get(next).cloned() {
            let entries = fs::read_dir(&group).doing(|| format!("list {}", group.display()))?;
            let inner = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            groups.extend(inner.map(|entry| entry.path()));
            next += 1;
        }
        Ok(groups)
    }
}

/// The value of `key` in a file of "key value" lines.
#[must_use]
pub fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// The files and values that an update means.
fn changes(resources: &LinuxResources) -> Result<Vec<(&'static str, String)>> {
    if let Some(part) = unchangeable(resources) {
        return Err(AgentError::Unsupported(format!("{part} of a running container cannot be changed")));
    }
    let mut changes = Vec::new();
    if let Some(memory) = resources.memory() {
        let bytes = |name: &str, value: i64| match value {
            -1 => Ok("max".to_owned()),
            0.. => Ok(value.to_string()),
            _ => {
                Err(AgentError::Invalid(format!("memory {name} {value}: expected bytes, or -1 for no limit")))
            }
        };
        if let Some(limit) = memory.limit() {
            changes.push(("memory.max", bytes("limit", limit)?));
        }
        if let Some(reservation) = memory.reservation() {
            changes.push(("memory.low", bytes("reservation", reservation)?));
        }
    }
    if let Some(cpu) = resources.cpu() {
        changes.extend(cpu_changes(cpu)?);
    }
    if let Some(pids) = resources.pids() {
        let limit = pids.limit();
        changes.push(("pids.max", if limit > 0 { limit.to_string() } else { "max".to_owned() }));
    }
    Ok(changes)
}

fn unchangeable(resources: &LinuxResources) -> Option<&'static str> {
    let set = |present: bool, name| present.then_some(name);
    set(resources.block_io().is_some(), "blockIO")
        .or(set(resources.network().is_some(), "network"))
        .or(set(
            resources.hugepage_limits().as_ref().is_some_and(|all| all.iter().any(|l| l.limit() != 0)),
            "hugepageLimits",
        ))
        .or(set(resources.unified().as_ref().is_some_and(|all| !all.is_empty()), "unified"))
}

fn cpu_changes(cpu: &LinuxCpu) -> Result<Vec<(&'static str, String)>> {
    let mut changes = Vec::new();
    if let Some(shares) = cpu.shares() {
        changes.push(("cpu.weight", weight(shares).to_string()));
    }
    if cpu.quota().is_some() || cpu.period().is_some() {
        let quota = match cpu.quota() {
            Some(quota) if quota > 0 => quota.to_string(),
            Some(-1) | None => "max".to_owned(),
            Some(quota) => return Err(AgentError::Invalid(format!("CPU quota {quota}: expected µs, or -1"))),
        };
        let period = cpu.period().unwrap_or(100_000);
        changes.push(("cpu.max", format!("{quota} {period}")));
    }
    Ok(changes)
}

/// cgroup v1 shares (2 to 262144, usually 1024) as a v2 weight (1 to 10000, usually 100): the linear map that
/// all runtimes use.
fn weight(shares: u64) -> u64 {
    let shares = shares.clamp(2, 262_144);
    1 + ((shares - 2) * 9999) / 262_142
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn changed(resources: Value) -> Result<Vec<(&'static str, String)>> {
        changes(&serde_json::from_value(resources).unwrap())
    }

    #[test]
    fn updates_become_files() {
        let files = changed(json!({
            "memory": {"limit": 1 << 20, "reservation": -1},
            "cpu": {"shares": 1024, "quota": 50000, "period": 100_000},
            "pids": {"limit": 7}
        }));
        let expected = [
            ("memory.max", "1048576"),
            ("memory.low", "max"),
            ("cpu.weight", "39"),
            ("cpu.max", "50000 100000"),
            ("pids.max", "7"),
        ];
        assert_eq!(files.unwrap(), expected.map(|(file, value)| (file, value.to_owned())));
        assert_eq!(changed(json!({"cpu": {"quota": -1}})).unwrap(), [("cpu.max", "max 100000".to_owned())]);
        assert_eq!(changed(json!({})).unwrap(), []);
    }

    #[test]
    fn weights_span_the_range() {
        assert_eq!([weight(0), weight(2), weight(262_144), weight(u64::MAX)], [1, 1, 10_000, 10_000]);
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        for resources in [
            json!({"memory": {"limit": -2}}),
            json!({"cpu": {"quota": -5}}),
            json!({"unified": {"memory.high": "1"}}),
            json!({"blockIO": {"weight": 10}}),
        ] {
            assert!(changed(resources.clone()).is_err(), "{resources}");
        }
    }

    #[test]
    fn keyed_values() {
        let text = "low 0\noom 3\noom_kill 2\n";
        assert_eq!(
            (keyed(text, "oom"), keyed(text, "oom_kill"), keyed(text, "max")),
            (Some(3), Some(2), None)
        );
    }

    #[tokio::test]
    async fn a_group_is_read_and_removed_with_its_subgroups() {
        let directory = tempfile::tempdir().unwrap();
        let group = Cgroup::at(directory.path().join("c"));
        fs::create_dir_all(group.path().join("a/b")).unwrap();
        assert_eq!(group.tree().unwrap().len(), 3);
        fs::write(group.path().join("cgroup.events"), "populated 0\nfrozen 1\n").unwrap();
        assert!(group.wait_empty(Instant::now()).await.unwrap());
        group.freeze(true).await.unwrap();
        assert_eq!(fs::read_to_string(group.path().join("cgroup.freeze")).unwrap(), "1");
        for file in ["cgroup.events", "cgroup.freeze"] {
            fs::remove_file(group.path().join(file)).unwrap();
        }
        group.remove().unwrap();
        assert!(!group.path().exists());
        group.remove().unwrap();
        group.kill().unwrap();
    }
}
