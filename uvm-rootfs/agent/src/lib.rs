//! The agent of a utility VM: PID 1, and the only door between the host and the containers.
//!
//! The host's requests arrive over ttrpc ([`service`]), pass the [`gate`], and act on one [`sandbox`]. A
//! [`container`] is made of mounted image [`layers`] and the pod's [`volumes`] ([`storage`]), an adapted OCI configuration ([`spec`]) and processes that
//! a short-lived [`runtime`] process creates through `libcontainer`; the one [`reaper`] learns how they end.
//!
//! Before it serves, the agent makes sure that this guest is the one that was measured ([`expectation`],
//! [`attestation`]) and tells the host so, or why not ([`handshake`]).
//!
//! Invariants:
//! - Nothing is served before the guest's own report agrees with what was measured and with the host data.
//! - Only verified requests act: every handler takes a [`gate::Permit`], which only the gate makes.
//! - Only this process waits for children, on one thread, so that no exit status is lost.
//! - What was mounted is undone with its container, or the sandbox says that it was not and refuses more.

pub mod attestation;
pub mod cgroup;
pub mod container;
pub mod error;
pub mod expectation;
pub mod files;
pub mod gate;
pub mod handshake;
pub mod init;
pub mod layers;
pub mod log;
pub mod oom;
pub mod poll;
pub mod process;
pub mod reaper;
pub mod runtime;
pub mod sandbox;
pub mod scratch;
pub mod service;
pub mod spec;
pub mod stats;
pub mod stdio;
pub mod storage;
pub mod tree;
pub mod volumes;
