//! The processes of one container by name.
//!
//! The init process stays as long as the container. Others stay after their end, so that their streams can be
//! read out and late waits are answered, but only the latest [`KEPT`] of those that somebody has waited for:
//! a probe that runs every second must not grow the agent.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{AgentError, Result};
use crate::process::Process;

/// How many ended and awaited processes are remembered.
const KEPT: usize = 16;
/// How many processes a container may have by name.
const MOST: usize = 256;

#[derive(Debug)]
struct Entry {
    name: String,
    process: Arc<Process>,
    waited: bool,
}

impl Entry {
    fn is_over(&self) -> bool {
        self.waited && self.process.exit().now().is_some()
    }
}

/// A container's processes, oldest first; the first is the init process.
#[derive(Debug)]
pub struct Processes(Mutex<Vec<Entry>>);

impl Processes {
    pub fn new(container: &str, init: Process) -> Self {
        Self(Mutex::new(vec![Entry { name: container.to_owned(), process: Arc::new(init), waited: false }]))
    }

    pub fn find(&self, name: &str) -> Result<Arc<Process>> {
        let found = self.entries().iter().find(|entry| entry.name == name).map(|entry| entry.process.clone());
        found.ok_or_else(|| AgentError::NotFound(format!("no process {name:?} in the container")))
    }

    /// Whether a new process may have this name.
    pub fn check_free(&self, name: &str) -> Result<()> {
        let entries = self.entries();
        let taken =
            entries.iter().enumerate().any(|(at, entry)| entry.name == name && (at == 0 || !entry.is_over()));
        if taken {
            return Err(AgentError::Exists(format!("process {name} exists already")));
        }
        if entries.iter().filter(|entry| !entry.is_over()).count() >= MOST {
            return Err(AgentError::State(format!("the container has {MOST} processes by name already")));
        }
        Ok(())
    }

    pub fn add(&self, name: &str, process: Process) {
        let mut entries = self.entries();
        let over: Vec<usize> = (1..entries.len()).filter(|at| entries[*at].is_over()).collect();
        let surplus = over.len().saturating_sub(KEPT);
        for at in over.into_iter().take(surplus).rev() {
            entries.remove(at);
        }
        // An ended process of the same name makes room.
        entries.retain(|entry| entry.name != name);
        entries.push(Entry { name: name.to_owned(), process: Arc::new(process), waited: false });
    }

    pub fn waited(&self, name: &str) {
        if let Some(entry) = self.entries().iter_mut().find(|entry| entry.name == name) {
            entry.waited = true;
        }
    }

    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
