//! What containerd sends to an action's standard input and expects on its output, by containerd's version.
//!
//! | containerd | in | out |
//! |---|---|---|
//! | 1.x | runtime options or nothing | the bare address, which means task API version 2 |
//! | 2.0 to 2.2, `MAX_SHIM_VERSION` ≥ 3 | runtime options or nothing | JSON with the version |
//! | 2.3 on | `BootstrapParams` | `BootstrapResult` |

use std::io::{self, IsTerminal, Read, Write};

use containerd_shim::protos::TASK_API_VERSION;
use containerd_shim::protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use containerd_shim::protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use protobuf::Message;

use super::{BootstrapError, RUNTIME, system};
use crate::layers::mounts::TAKEN_AS_THEY_ARE;

const PROTOCOL: &str = "ttrpc";
/// Annotation by which containerd (2.2 on) learns which mounts it must leave to the runtime.
const ALLOWED_MOUNTS: &str = "containerd.io/runtime-allow-mounts";
/// Longest message that is read from containerd, in bytes.
const MAX_INPUT_BYTES: u64 = 1 << 20;

/// How containerd wants to be told the shim's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The address alone.
    Bare,
    /// JSON.
    Json,
    /// A protobuf message.
    Message,
}

/// What containerd says beyond flags and environment.
#[derive(Debug, PartialEq, Eq)]
pub struct Asked {
    /// How it wants to be answered.
    pub format: Format,
    /// Address of its ttrpc socket, if it is in the message.
    pub ttrpc_address: Option<String>,
}

/// Reads what containerd sent to standard input.
///
/// # Errors
/// When it cannot be read.
pub fn asked(id: &str, namespace: &str, max_version: Option<&str>) -> Result<Asked, BootstrapError> {
    let stdin = io::stdin();
    let mut input = Vec::new();
    // Nobody types a message.
    if !stdin.is_terminal() {
        let mut bounded = stdin.lock().take(MAX_INPUT_BYTES);
        bounded.read_to_end(&mut input).map_err(system("read standard input"))?;
    }
    Ok(tell(&input, id, namespace, max_version))
}

fn tell(input: &[u8], id: &str, namespace: &str, max_version: Option<&str>) -> Asked {
    // Runtime options parse as bootstrap parameters too, but have no id and namespace of ours.
    match BootstrapParams::parse_from_bytes(input) {
        Ok(params) if params.instance_id == id && params.namespace == namespace => {
            let address = Some(params.containerd_ttrpc_address).filter(|address| !address.is_empty());
            Asked { format: Format::Message, ttrpc_address: address }
        }
        _ => {
            let knows_versions = max_version
                .and_then(|version| version.parse().ok())
                .is_some_and(|n: i32| n >= TASK_API_VERSION);
            let format = if knows_versions { Format::Json } else { Format::Bare };
            Asked { format, ttrpc_address: None }
        }
    }
}

/// The answer to `start`.
///
/// # Errors
/// When it cannot be encoded.
pub fn encode(format: Format, address: &str) -> Result<Vec<u8>, BootstrapError> {
    Ok(match format {
        Format::Bare => address.into(),
        Format::Json => {
            let json =
                serde_json::json!({ "version": TASK_API_VERSION, "address": address, "protocol": PROTOCOL });
            json.to_string().into_bytes()
        }
        Format::Message => BootstrapResult {
            version: TASK_API_VERSION,
            address: address.into(),
            protocol: PROTOCOL.into(),
            ..BootstrapResult::default()
        }
        .write_to_bytes()?,
    })
}

/// Writes an answer to standard output.
///
/// # Errors
/// When it cannot be written.
pub fn write(bytes: &[u8]) -> Result<(), BootstrapError> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(system("write to standard output"))
}

/// Answers `-info`.
///
/// # Errors
/// When the answer cannot be written.
pub fn info() -> Result<(), BootstrapError> {
    write(&runtime_info().write_to_bytes()?)
}

fn runtime_info() -> RuntimeInfo {
    let version = RuntimeVersion { version: env!("CARGO_PKG_VERSION").into(), ..RuntimeVersion::default() };
    let mut info =
        RuntimeInfo { name: RUNTIME.into(), version: Some(version).into(), ..RuntimeInfo::default() };
    info.annotations.insert(ALLOWED_MOUNTS.into(), TAKEN_AS_THEY_ARE.into());
    info
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: &str = "unix:///run/containerd/s/x";

    #[test]
    fn containerd_is_asked_to_leave_images_to_the_guest() {
        let info = RuntimeInfo::parse_from_bytes(&runtime_info().write_to_bytes().unwrap()).unwrap();
        assert_eq!(info.name, "io.containerd.uvm.v2");
        assert_eq!(info.annotations["containerd.io/runtime-allow-mounts"], "erofs,mkfs/*,format/*,mkdir/*");
    }

    #[test]
    fn each_containerd_is_answered_in_its_way() {
        assert_eq!(tell(b"", "c", "ns", None).format, Format::Bare);
        assert_eq!(tell(b"", "c", "ns", Some("2")).format, Format::Bare);
        assert_eq!(tell(b"", "c", "ns", Some("3")).format, Format::Json);
        let params = BootstrapParams {
            instance_id: "c".into(),
            namespace: "ns".into(),
            containerd_ttrpc_address: "/t".into(),
            ..BootstrapParams::default()
        };
        let asked = tell(&params.write_to_bytes().unwrap(), "c", "ns", Some("3"));
        assert_eq!(asked, Asked { format: Format::Message, ttrpc_address: Some("/t".into()) });
    }

    #[test]
    fn runtime_options_are_no_bootstrap_parameters() {
        // An `Any`: type_url = 1, value = 2.
        let options = b"\x0a\x19runtimeoptions.v1.Options\x12\x02/a";
        assert_eq!(tell(options, "c", "ns", None), Asked { format: Format::Bare, ttrpc_address: None });
    }

    #[test]
    fn answers() {
        assert_eq!(encode(Format::Bare, ADDRESS).unwrap(), ADDRESS.as_bytes());
        let json: serde_json::Value =
            serde_json::from_slice(&encode(Format::Json, ADDRESS).unwrap()).unwrap();
        assert_eq!(json, serde_json::json!({ "version": 3, "address": ADDRESS, "protocol": "ttrpc" }));
        let message = BootstrapResult::parse_from_bytes(&encode(Format::Message, ADDRESS).unwrap()).unwrap();
        assert_eq!((message.version, message.address.as_str()), (3, ADDRESS));
    }
}
