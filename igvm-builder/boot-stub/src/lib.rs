//! The logic of the measured firmware: what it checks, and the tables that it makes for Linux.
//!
//! Everything here works on plain byte slices, so that the same code that runs in the guest is tested on the
//! host. Reading physical memory and jumping is left to the program (`main.rs`).
#![no_std]
#![forbid(unsafe_code)]

pub mod acpi;
pub mod linux;
pub mod refusal;
mod table;

pub use refusal::Refusal;
