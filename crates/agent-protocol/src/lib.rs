//! The Kata agent protocol over ttrpc, and the conventions that its two ends share.
//!
//! Owns the wire vocabulary between whoever runs a utility VM (a shim) and the agent inside it: the messages
//! and services compiled from `protos/` ([`rpc`]), ports and guest paths, and typed forms of what travels as
//! plain strings ([`storage`], [`handshake`], [`tee`], [`id`]). [`oci`] converts between a container's OCI configuration
//! and its protobuf form. No I/O happens here; every parser is bounded and refuses what it does not know.

pub mod handshake;
pub mod id;
pub mod oci;
pub mod paths;
#[allow(
    missing_docs,
    unsafe_code,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::multiple_unsafe_ops_per_block,
    clippy::too_many_lines,
    clippy::undocumented_unsafe_blocks,
    clippy::unwrap_used,
    reason = "generated from protos/, where the messages are explained"
)]
pub mod rpc {
    //! Messages and services generated from `protos/`.
    include!(concat!(env!("OUT_DIR"), "/modules.rs"));
}
pub mod storage;
pub mod tee;

/// vsock port in the guest on which the agent serves ttrpc.
pub const AGENT_PORT: u32 = 1024;
/// vsock port on the host that the agent dials, once, to agree that it may serve ([`handshake`]).
pub const HANDSHAKE_PORT: u32 = 1030;
/// Most bytes of the nonce in a request for a report.
pub const MAX_NONCE: usize = 64;
/// vsock context id of the host, the only peer that the agent serves.
pub const HOST_CID: u32 = 2;
/// Most bytes that one `ReadStdout`/`ReadStderr` returns and one `WriteStdin` takes: a ttrpc message holds
/// 4 MiB at most, and larger pieces only cost memory at both ends.
pub const MAX_STREAM_CHUNK: usize = 64 * 1024;
/// Most bytes of file contents in one `CopyFile`.
pub const MAX_COPY_CHUNK: usize = 1024 * 1024;
/// Version of the agent protocol that `Health.Version` reports.
pub const PROTOCOL_VERSION: &str = "0.0.1";
