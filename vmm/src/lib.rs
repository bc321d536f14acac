//! A minimal virtual machine monitor for utility VMs.
