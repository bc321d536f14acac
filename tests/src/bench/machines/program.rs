//! Monitors that take all they need on their command line.

use std::ffi::OsString;
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};
use vmm_client::monotonic_us;

use super::{Booted, INIT, Machine};
use crate::bench::marker::SerialPort;

/// A monitor's process. It is killed when this is dropped.
struct Process(Child);

impl Machine for Process {
    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended by itself cannot be killed, and there is nothing left to do then.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts `words`, in which `FOLDER` is replaced, and waits for the mark of its guest. Standard output is the serial
/// port where the monitor has no other place for it.
pub fn boot(words: &[String], folder: &Path, serial_on_stdout: bool) -> Result<Booted> {
    let mut serial = SerialPort::create(folder)?;
    let folder_name = folder.to_str().context("a folder with a name in UTF-8")?;
    let mut words = words.iter().map(|word| OsString::from(word.replace("FOLDER", folder_name)));
    let log = File::create(folder.join("log"))?;
    let mut command = Command::new(words.next().context("a program")?);
    let output =
        if serial_on_stdout { File::options().append(true).open(&serial.path)? } else { log.try_clone()? };
    command.args(words).stdin(Stdio::null()).stdout(output).stderr(log);
    let began = monotonic_us();
    let process = Process(command.spawn().with_context(|| format!("cannot start {command:?}"))?);
    let at = serial.wait().with_context(|| {
        let said = std::fs::read_to_string(folder.join("log")).unwrap_or_default();
        format!("{command:?} said {said:?}")
    })?;
    Ok(Booted { machine: Box::new(process), steps: vec![(INIT, at - began)] })
}

/// A path as a word of a command line.
pub fn word(path: &Path) -> String {
    path.display().to_string()
}
