//! Memory-mapped devices, by address.

use std::sync::Arc;

use launch::layout::{IOAPIC_BASE, VIRTIO_BASE, VIRTIO_STRIDE};

use crate::ioapic::IoApic;
use crate::virtio::mmio::MmioTransport;

/// Size of the I/O APIC's register window.
const IOAPIC_BYTES: u64 = 0x20;

/// The devices of a machine.
pub struct Bus {
    /// By index; device `n` is at `VIRTIO_BASE + n * VIRTIO_STRIDE`.
    pub virtio: Vec<MmioTransport>,
    /// The I/O APIC.
    pub ioapic: Arc<IoApic>,
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bus").field("virtio", &self.virtio.len()).finish_non_exhaustive()
    }
}

enum Target<'a> {
    Virtio(&'a MmioTransport, u64),
    IoApic(u64),
}

impl Bus {
    /// Answers a read; nothing answers where there is no device, which reads as ones.
    pub fn read(&self, gpa: u64, data: &mut [u8]) {
        match self.find(gpa) {
            Some(Target::Virtio(device, offset)) => device.read(offset, data),
            Some(Target::IoApic(offset)) => self.ioapic.read(offset, data),
            None => data.fill(0xFF),
        }
    }

    /// Obeys a write; where there is no device, nothing happens.
    pub fn write(&self, gpa: u64, data: &[u8]) {
        match self.find(gpa) {
            Some(Target::Virtio(device, offset)) => device.write(offset, data),
            Some(Target::IoApic(offset)) => self.ioapic.write(offset, data),
            None => {}
        }
    }

    fn find(&self, gpa: u64) -> Option<Target<'_>> {
        if let Some(offset) = gpa.checked_sub(IOAPIC_BASE).filter(|offset| *offset < IOAPIC_BYTES) {
            return Some(Target::IoApic(offset));
        }
        let offset = gpa.checked_sub(VIRTIO_BASE)?;
        let device = self.virtio.get(usize::try_from(offset / VIRTIO_STRIDE).ok()?)?;
        Some(Target::Virtio(device, offset % VIRTIO_STRIDE))
    }
}
