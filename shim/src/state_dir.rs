//! What a pod has on the host's file system while it lives, and how it is found and removed when its shim died.
//!
//! `/run/uvm/<namespace>/<pod>/` holds the machine's sockets, the container's own layers, the console of a
//! debug image, and one record of the pod's processes. A process is recorded with its start time, and is only
//! killed if both still agree: a process id that was given to somebody else is left alone.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// Where all pods' directories are.
pub const ROOT: &str = "/run/uvm";
const RECORD: &str = "processes.json";
const MAX_RECORD_BYTES: u64 = 4096;
/// How long a killed process may take to end.
const DEATH_LIMIT: Timespec = Timespec { tv_sec: 3, tv_nsec: 0 };

/// A process that cannot be mistaken for a later one with the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    pid: u32,
    /// Clock ticks from boot to the process's start (`starttime` in proc(5)).
    start_time: u64,
}

/// The processes of a pod on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The shim that serves it.
    pub shim: Process,
    /// Its virtual machine monitor.
    pub vmm: Process,
}

impl Process {
    /// The running process `pid`.
    ///
    /// # Errors
    /// When there is none.
    pub fn running(pid: u32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let start_time = start_time(&stat).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { pid, start_time })
    }

    /// Kills the process if it still is the one that was recorded, and waits for its end. Says whether it did.
    ///
    /// # Errors
    /// When the system refuses to kill it, or it does not end within three seconds.
    pub fn kill(self) -> io::Result<bool> {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else { return Ok(false) };
        // The descriptor first: after it, the id cannot come to mean another process unnoticed.
        let handle = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(handle) => handle,
            Err(Errno::SRCH) => return Ok(false),
            Err(errno) => return Err(errno.into()),
        };
        if Self::running(self.pid).ok() != Some(self) {
            return Ok(false);
        }
        match pidfd_send_signal(&handle, Signal::KILL) {
            Ok(()) => {}
            Err(Errno::SRCH) => return Ok(false),
            Err(errno) => return Err(errno.into()),
        }
        // The descriptor becomes readable when the process has ended: what it held is free then.
        let mut ended = [PollFd::new(&handle, PollFlags::IN)];
        match rustix::io::retry_on_intr(|| poll(&mut ended, Some(&DEATH_LIMIT)))? {
            0 => Err(io::ErrorKind::TimedOut.into()),
            _ => Ok(true),
        }
    }
}

/// Field 22 of `/proc/<pid>/stat`; field 2, the name, may contain anything.
fn start_time(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// A pod's directory. Its namespace and id are safe path components.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDir {
    path: PathBuf,
}

impl StateDir {
    /// The directory of `pod` in `namespace` below `root`; it need not exist.
    #[must_use]
    pub fn new(root: &Path, namespace: &str, pod: &str) -> Self {
        Self { path: root.join(namespace).join(pod) }
    }

    /// Makes the directory, for nobody but root.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn create(&self) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.path)
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The machine's hybrid vsock socket.
    #[must_use]
    pub fn vsock(&self) -> PathBuf {
        self.path.join("vsock")
    }

    /// The console of a debug image.
    #[must_use]
    pub fn console(&self) -> PathBuf {
        self.path.join("console.log")
    }

    /// The layer that belongs to one container alone.
    #[must_use]
    pub fn private_layer(&self, container: &str) -> PathBuf {
        self.path.join(format!("{container}.layer"))
    }

    /// Writes down the pod's processes.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn record(&self, record: &Record) -> io::Result<()> {
        fs::write(self.path.join(RECORD), serde_json::to_vec(record)?)
    }

    /// Kills what is recorded: the machine first, so that its shim cannot start another.
    ///
    /// # Errors
    /// When the record cannot be read, or the system refuses to kill.
    pub fn kill_recorded(&self) -> io::Result<()> {
        let path = self.path.join(RECORD);
        let small = |path: &Path| Ok::<_, io::Error>(fs::metadata(path)?.len() <= MAX_RECORD_BYTES);
        let bytes = match small(&path).and_then(|small| if small { fs::read(&path) } else { Ok(Vec::new()) })
        {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let record: Record = serde_json::from_slice(&bytes)?;
        let machine = record.vmm.kill();
        let shim = if record.shim.pid == std::process::id() { Ok(false) } else { record.shim.kill() };
        machine.and(shim).map(drop)
    }

    /// Removes the directory and what is in it, and the namespace's if it was the last.
    ///
    /// # Errors
    /// When the system refuses. That there is nothing to remove is no error.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        if let Some(namespace) = self.path.parent() {
            // Refused as long as another pod is in it, which is the point.
            let _ = fs::remove_dir(namespace);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_recorded_process_is_killed_and_no_other() {
        let root = tempfile::tempdir().unwrap();
        let dir = StateDir::new(root.path(), "ns", "pod");
        dir.create().unwrap();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let vmm = Process::running(child.id()).unwrap();
        let shim = Process::running(std::process::id()).unwrap();
        // The id is right, the start time is another process's.
        let reused = Process { start_time: vmm.start_time + 1, ..vmm };
        dir.record(&Record { shim, vmm: reused }).unwrap();
        dir.kill_recorded().unwrap();
        assert!(child.try_wait().unwrap().is_none(), "a process with another start time lives on");
        dir.record(&Record { shim, vmm }).unwrap();
        dir.kill_recorded().unwrap();
        assert!(!child.wait().unwrap().success());
        dir.kill_recorded().unwrap();
    }

    #[test]
    fn removal_takes_the_namespace_with_the_last_pod() {
        let root = tempfile::tempdir().unwrap();
        let (first, second) = (StateDir::new(root.path(), "ns", "a"), StateDir::new(root.path(), "ns", "b"));
        first.create().unwrap();
        second.create().unwrap();
        fs::write(first.path().join("x"), "").unwrap();
        first.remove().unwrap();
        assert!(second.path().exists());
        second.remove().unwrap();
        second.remove().unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn nothing_recorded_is_nothing_to_kill_and_nonsense_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        let dir = StateDir::new(root.path(), "ns", "pod");
        dir.kill_recorded().unwrap();
        dir.create().unwrap();
        fs::write(dir.path().join(RECORD), "{}").unwrap();
        assert!(dir.kill_recorded().is_err());
    }
}
