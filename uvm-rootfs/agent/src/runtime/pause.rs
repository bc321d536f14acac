#![allow(unsafe_code, reason = "entering a new PID namespace is an unsafe call in rustix")]
//! The first process of a PID namespace that the containers of a pod share.
//!
//! It does nothing but collect the orphans of its namespace. When it ends, the kernel ends all of them.
//!
//! Unsafe: `unshare`, which may break code that relies on what is unshared. Here only the PID namespace of later
//! children changes, in a process that has one thread and makes one child.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use rustix::process::{WaitOptions, wait};
use rustix::thread::UnshareFlags;

use super::PAUSE_NAME;

/// Makes the namespace; returns the first process's id in the caller's namespace.
pub fn spawn() -> io::Result<i32> {
    // SAFETY: NEWPID changes nothing about this process itself, only where its next child lives.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWPID) }?;
    let child = Command::new("/proc/self/exe").arg0(PAUSE_NAME).env_clear().current_dir("/").spawn()?;
    i32::try_from(child.id()).map_err(io::Error::other)
}

/// Runs as that first process.
#[must_use]
pub fn main() -> ExitCode {
    loop {
        match wait(WaitOptions::empty()) {
            Ok(_) => {}
            // No children at the moment. Orphans arrive with a signal only when they end, so look now and then.
            Err(_) => std::thread::sleep(std::time::Duration::from_secs(1)),
        }
    }
}
