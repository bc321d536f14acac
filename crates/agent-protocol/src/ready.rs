//! The line by which the agent announces that it serves.
//!
//! Sent once, as JSON, to host port [`crate::READY_PORT`] when the ttrpc server accepts connections. The host
//! learns two durations and nothing else; it trusts neither.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Longest line in bytes, newline included; a reader stops there.
pub const MAX_LEN: usize = 256;
/// The only version there is.
pub const VERSION: u32 = 1;

/// "The agent serves", with the guest's own part of the boot timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReadyLine {
    /// [`VERSION`].
    pub version: u32,
    /// Microseconds from the kernel's clock start to the start of PID 1.
    pub kernel_to_init_us: u64,
    /// Microseconds from the start of PID 1 to the accepting server.
    pub init_to_ready_us: u64,
}

/// Why a line is not a ready line.
#[derive(Debug, Error)]
pub enum ReadyError {
    /// More than [`MAX_LEN`] bytes.
    #[error("ready line of {0} bytes: expected at most {MAX_LEN}")]
    Length(usize),
    /// Not the JSON object that is expected.
    #[error("ready line: {0}")]
    Json(#[from] serde_json::Error),
    /// A version that this end does not speak.
    #[error("ready line has version {0}: expected {VERSION}")]
    Version(u32),
}

impl ReadyLine {
    /// A line of the current version.
    #[must_use]
    pub fn new(kernel_to_init_us: u64, init_to_ready_us: u64) -> Self {
        Self { version: VERSION, kernel_to_init_us, init_to_ready_us }
    }

    /// The line as sent, newline included.
    ///
    /// # Errors
    /// None in practice: three integers always serialise.
    pub fn format(&self) -> Result<String, ReadyError> {
        Ok(format!("{}\n", serde_json::to_string(self)?))
    }

    /// Reads a line, with or without its newline.
    ///
    /// # Errors
    /// If it is too long, is not the expected object, or has another version.
    pub fn parse(line: &str) -> Result<Self, ReadyError> {
        if line.len() > MAX_LEN {
            return Err(ReadyError::Length(line.len()));
        }
        let ready: Self = serde_json::from_str(line)?;
        if ready.version == VERSION { Ok(ready) } else { Err(ReadyError::Version(ready.version)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_survives_the_wire() {
        let ready = ReadyLine::new(81_000, u64::MAX);
        let line = ready.format().unwrap();
        assert!(line.ends_with('\n') && line.len() <= MAX_LEN);
        assert_eq!(ReadyLine::parse(&line).unwrap(), ready);
    }

    #[test]
    fn other_lines_are_refused() {
        assert!(matches!(
            ReadyLine::parse(r#"{"version":2,"kernel_to_init_us":1,"init_to_ready_us":1}"#),
            Err(ReadyError::Version(2))
        ));
        for line in ["", "{}", r#"{"version":1,"kernel_to_init_us":-1,"init_to_ready_us":1}"#] {
            assert!(matches!(ReadyLine::parse(line), Err(ReadyError::Json(_))), "{line}");
        }
        let extra = r#"{"version":1,"kernel_to_init_us":1,"init_to_ready_us":1,"path":"/x"}"#;
        assert!(matches!(ReadyLine::parse(extra), Err(ReadyError::Json(_))));
        assert!(matches!(ReadyLine::parse(&" ".repeat(MAX_LEN + 1)), Err(ReadyError::Length(_))));
    }
}
