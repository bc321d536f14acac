//! The agent's executable, checked before it becomes PID 1: a wrong one would only show as a kernel panic in a
//! VM without a console.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use object::LittleEndian;
use object::elf::{EM_X86_64, ET_DYN, ET_EXEC, FileHeader64, PT_INTERP};
use object::read::elf::{FileHeader, ProgramHeader};

/// Largest agent that is read, in bytes.
const MAX_AGENT: u64 = 128 << 20;

/// Why an agent is refused.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// It cannot be read.
    #[error("agent {path:?}: cannot read it: {source}")]
    Read {
        /// Path that was given.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// It cannot run as the first process of a utility VM.
    #[error("agent {path:?}: expected {expected}, found {found}")]
    Unusable {
        /// Path that was given.
        path: PathBuf,
        /// What it has to be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
}

/// Reads the agent's executable and checks that it is one that needs nothing else.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, AgentError> {
    let unreadable = |source| AgentError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(MAX_AGENT + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_AGENT {
        return Err(unusable(path, "at most 128 MiB", "more".into()));
    }
    check(path, &bytes)?;
    Ok(bytes)
}

fn check(path: &Path, bytes: &[u8]) -> Result<(), AgentError> {
    const ELF: &str = "a little-endian 64-bit ELF executable";
    let malformed = |error: object::read::Error| unusable(path, ELF, error.to_string());
    let header = FileHeader64::<LittleEndian>::parse(bytes).map_err(malformed)?;
    let endian = header.endian().map_err(malformed)?;
    let (machine, kind) = (header.e_machine(endian), header.e_type(endian));
    if machine != EM_X86_64 {
        return Err(unusable(
            path,
            "an executable for x86-64 (ELF machine 62)",
            format!("machine {machine}"),
        ));
    }
    if !matches!(kind, ET_EXEC | ET_DYN) {
        return Err(unusable(path, "an executable (ELF type 2 or 3)", format!("type {kind}")));
    }
    let segments = header.program_headers(endian, bytes).map_err(malformed)?;
    if segments.iter().any(|segment| segment.p_type(endian) == PT_INTERP) {
        return Err(unusable(path, "a static executable", "one that asks for a dynamic loader".into()));
    }
    Ok(())
}

fn unusable(path: &Path, expected: &'static str, found: String) -> AgentError {
    AgentError::Unusable { path: path.to_owned(), expected, found }
}
