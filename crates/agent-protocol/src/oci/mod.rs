//! A container's OCI configuration, between `config.json`, `oci-spec`'s types and the protocol's messages.
//!
//! The protocol has no null: zero and empty mean "not set" ([`rpc::oci`]). Within that rule nothing is lost in
//! silence: each conversion towards the wire is undone and compared with its input, so that a field which the
//! messages cannot carry, known to this module or not, is an error that names the field.
//!
//! Follows the OCI runtime specification's `config.md` and `config-linux.md`.

mod decode;
mod encode;
mod loss;

use oci_spec::runtime::{LinuxResources, Process, Spec};
use serde::Serialize;
use serde_json::Value;
use thiserror::Error;

use crate::rpc;

/// Longest `config.json` in bytes; containerd's are about 20 KiB.
pub const MAX_CONFIG: usize = 2 * 1024 * 1024;

/// Why a configuration cannot be converted.
#[derive(Debug, Error)]
pub enum OciError {
    /// The text is longer than [`MAX_CONFIG`].
    #[error("OCI configuration of {0} bytes: expected at most {MAX_CONFIG}")]
    Length(usize),
    /// The text is no JSON, or a value has the wrong type or an unknown name.
    #[error("OCI {what}: {source}")]
    Json {
        /// Which part.
        what: &'static str,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// A field has no counterpart on the other side.
    #[error("OCI {what}: the agent protocol cannot carry {field} = {value}")]
    Lost {
        /// Which part.
        what: &'static str,
        /// Path of the field, as a JSON pointer.
        field: String,
        /// Its value, shortened.
        value: String,
    },
    /// A number does not fit the protocol's type.
    #[error("OCI configuration: {field} is {found}, which does not fit {expected}")]
    Range {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        found: String,
        /// The protocol's type.
        expected: &'static str,
    },
    /// A part that Linux containers do not have.
    #[error("OCI configuration has a {0} part: expected a Linux container")]
    Platform(&'static str),
}

/// Reads `config.json`, refusing keys that `oci-spec`'s types do not have.
///
/// # Errors
/// If the text is too long, is no OCI configuration, or has a key that would be dropped.
pub fn parse_config(json: &[u8]) -> Result<Spec, OciError> {
    parse(json, "configuration")
}

/// Reads the JSON form of a process, as containerd hands it to `Exec`, with the rule of [`parse_config`].
///
/// # Errors
/// As [`parse_config`].
pub fn parse_process(json: &[u8]) -> Result<Process, OciError> {
    parse(json, "process")
}

/// Reads the JSON form of resources, as containerd hands it to `Update`, with the rule of [`parse_config`].
///
/// # Errors
/// As [`parse_config`].
pub fn parse_resources(json: &[u8]) -> Result<LinuxResources, OciError> {
    parse(json, "resources")
}

/// The message that carries `spec`.
///
/// # Errors
/// Names the first field that the protocol cannot carry.
pub fn encode(spec: &Spec) -> Result<rpc::oci::Spec, OciError> {
    const WHAT: &str = "configuration";
    let message = encode::spec(spec)?;
    compare(WHAT, &value(WHAT, spec)?, &value(WHAT, &decode::spec(&message)?)?)?;
    Ok(message)
}

/// The message that carries `process`.
///
/// # Errors
/// As [`encode`].
pub fn encode_process(process: &Process) -> Result<rpc::oci::Process, OciError> {
    const WHAT: &str = "process";
    let message = encode::process(process)?;
    compare(WHAT, &value(WHAT, process)?, &value(WHAT, &decode::process(&message)?)?)?;
    Ok(message)
}

/// The message that carries `resources`.
///
/// # Errors
/// As [`encode`].
pub fn encode_resources(resources: &LinuxResources) -> Result<rpc::oci::LinuxResources, OciError> {
    const WHAT: &str = "resources";
    let message = encode::resources(resources)?;
    compare(WHAT, &value(WHAT, resources)?, &value(WHAT, &decode::resources(&message)?)?)?;
    Ok(message)
}

/// The configuration in `message`.
///
/// # Errors
/// If a value is none of those that the OCI specification names, or the part is not for Linux.
pub fn decode(message: &rpc::oci::Spec) -> Result<Spec, OciError> {
    decode::spec(message)
}

/// The process in `message`.
///
/// # Errors
/// As [`decode`].
pub fn decode_process(message: &rpc::oci::Process) -> Result<Process, OciError> {
    decode::process(message)
}

/// The resources in `message`.
///
/// # Errors
/// As [`decode`].
pub fn decode_resources(message: &rpc::oci::LinuxResources) -> Result<LinuxResources, OciError> {
    decode::resources(message)
}

fn parse<T: serde::de::DeserializeOwned + Serialize>(json: &[u8], what: &'static str) -> Result<T, OciError> {
    if json.len() > MAX_CONFIG {
        return Err(OciError::Length(json.len()));
    }
    let before: Value = serde_json::from_slice(json).map_err(|source| OciError::Json { what, source })?;
    let parsed: T = serde_json::from_slice(json).map_err(|source| OciError::Json { what, source })?;
    compare(what, &before, &value(what, &parsed)?)?;
    Ok(parsed)
}

fn value<T: Serialize>(what: &'static str, part: &T) -> Result<Value, OciError> {
    serde_json::to_value(part).map_err(|source| OciError::Json { what, source })
}

fn compare(what: &'static str, before: &Value, after: &Value) -> Result<(), OciError> {
    match loss::find(before, after) {
        None => Ok(()),
        Some((field, value)) => Err(OciError::Lost { what, field, value }),
    }
}

#[cfg(test)]
mod tests;
