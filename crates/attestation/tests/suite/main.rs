//! Genuine, simulated, stale and forged evidence against the verifier.
#![allow(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod endorsement;
mod flips;
mod genuine;
mod hostile;
mod id_block;
mod simulated;
mod support;
mod tdx;
