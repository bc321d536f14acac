//! Suites that run in the nested node, against a real containerd.
//!
//! A suite is a list of named cases; a case drives the product the way its users do (`ctr`, the CRI socket,
//! `uvm-launch`), looks at what they would see, and leaves nothing behind. `cargo xtask test` runs them all.

pub mod bench;
pub mod case;
pub mod command;
pub mod cri;
pub mod ctr;
pub mod exec_stream;
pub mod file_tree;
pub mod layered_image;
pub mod ledger;
pub mod oci_archive;
pub mod own_machine;
pub mod progress;
pub mod registry;
pub mod snapshots;
pub mod suites;
pub mod tampering;
pub mod tiny_guest;
pub mod unpacked;
