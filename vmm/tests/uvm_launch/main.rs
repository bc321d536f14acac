//! The measurement subcommands of `uvm-launch`, run as a person runs them, on images that are built here.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bench;
mod evidence_commands;
mod image_commands;
#[allow(dead_code, reason = "the builder's own tests use the rest")]
#[path = "../../../igvm-builder/tests/inputs/mod.rs"]
mod inputs;
mod signing_commands;
