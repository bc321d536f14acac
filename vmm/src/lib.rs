//! A minimal virtual machine monitor for utility VMs.

pub mod event_loop;
pub mod ioapic;
pub mod virtio;
