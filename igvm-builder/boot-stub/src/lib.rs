//! The logic of the measured firmware: what it checks, what it asks of the hypervisor, and the tables that it makes
//! for Linux.
//!
//! Everything here works on plain byte slices and two traits for what only a processor can do, so that the same
//! code that runs in the guest is tested on the host. Reading physical memory and jumping is left to the program
//! (`main.rs`).
#![no_std]

pub mod acpi;
pub mod config;
pub mod linux;
pub mod params;
pub mod refusal;
pub mod sha256;
pub mod snp;
pub mod steps;
mod table;
pub mod tdx;

pub use refusal::Refusal;
