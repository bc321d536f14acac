//! The agent of a utility VM: PID 1, and the only door between the host and the containers.
//!
//! The host's requests arrive over ttrpc ([`service`]), pass the [`gate`], and act on one [`sandbox`]. A
//! [`container`] is made of mounted image [`layers`], an adapted OCI configuration ([`spec`]) and processes that
//! a short-lived [`runtime`] process creates through `libcontainer`; the one [`reaper`] learns how they end.
//!
//! Invariants:
//! - Only verified requests act: every handler takes a [`gate::Permit`], which only the gate makes.
//! - Only this process waits for children, on one thread, so that no exit status is lost.
//! - What was mounted is undone with its container, or the sandbox says that it was not and refuses more.

pub mod cgroup;
pub mod container;
pub mod error;
pub mod files;
pub mod gate;
pub mod init;
pub mod layers;
pub mod log;
pub mod oom;
pub mod poll;
pub mod process;
pub mod ready;
pub mod reaper;
pub mod runtime;
pub mod sandbox;
pub mod service;
pub mod spec;
pub mod stats;
pub mod stdio;
