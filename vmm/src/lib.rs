//! A minimal virtual machine monitor for utility VMs.
//!
//! One process is one machine. It is told everything once, as a launch plan, builds the machine phase by phase
//! ([`machine`]), and then only answers its guest (`machine::run`) and changes disks when its parent asks
//! ([`session`]). Threads only: one for each virtual CPU, one for streams, one for
//! read-only disks, one for scratch space.

pub mod event_loop;
pub mod hv;
pub mod ioapic;
pub mod machine;
pub mod session;
pub mod virtio;
