//! Writing the root file system.

use std::io;
use std::path::{Path, PathBuf};

use erofs_verity::layer::{LayerWriter, Settings, WriteError};
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use crate::agent::{self, AgentError};
use crate::info::Info;
use crate::manifest::{Manifest, ManifestError};

/// Why a root file system was not packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The manifest does not make a tree.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The agent cannot be used.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The image cannot be made.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The output file cannot be made.
    #[error("{path:?}: cannot write it: {source}")]
    Output {
        /// Path that was given.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
}

/// Packs the root file system of `manifest` with the agent at `agent` into the file `out`, which appears whole
/// or not at all.
///
/// # Errors
/// When the manifest or the agent is refused, or the file cannot be written.
pub fn pack(manifest: &Manifest, agent: &Path, out: &Path) -> Result<Info, PackError> {
    let executable = agent::read(agent)?;
    let agent_sha256 = hex::encode(Sha256::digest(&executable));
    let failed = |source| PackError::Output { path: out.to_owned(), source };
    let directory = match out.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let file = NamedTempFile::new_in(directory).map_err(failed)?;
    let settings = Settings { spool: directory.to_owned(), ..Settings::default() };
    let layer = manifest.write(&executable, LayerWriter::new(file.as_file(), &settings)?)?;
    // Temporary files are private to their owner; an image is for every VMM to read.
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    file.as_file().set_permissions(readable).map_err(failed)?;
    file.persist(out).map_err(|error| failed(error.error))?;
    Ok(Info::new(&layer, agent_sha256))
}
