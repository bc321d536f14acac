//! A folder for one machine's sockets and log.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// The folder, removed with everything in it when it is dropped.
#[derive(Debug)]
pub struct StateDir(PathBuf);

impl StateDir {
    /// Makes a folder of this process's own.
    pub fn create() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("uvm-launch-{}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for StateDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
