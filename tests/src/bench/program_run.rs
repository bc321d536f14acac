//! `digest`: programs that are run to their end, timed as a whole.

use std::process::{Command, Stdio};

use anyhow::{Result, ensure};
use vmm_client::monotonic_us;

use super::rounds::Contender;
use super::sample::Value;

/// A program with its arguments.
#[derive(Debug)]
pub struct ProgramRun {
    /// What it is called in the table.
    pub name: &'static str,
    /// The program and its arguments.
    pub words: Vec<String>,
}

impl Contender for ProgramRun {
    fn name(&self) -> String {
        self.name.into()
    }

    fn command(&self) -> Vec<String> {
        self.words.clone()
    }

    fn measure(&mut self) -> Result<Vec<Value>> {
        let began = monotonic_us();
        let mut command = Command::new(&self.words[0]);
        command.args(&self.words[1..]).stdin(Stdio::null()).stdout(Stdio::null());
        let status = command.status()?;
        let ended = monotonic_us();
        ensure!(status.success(), "{command:?}: {status}");
        Ok(vec![Value::milliseconds("whole process", ended - began)])
    }
}
