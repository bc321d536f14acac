//! The machine's fixed addresses (guest-physical) and interrupt lines.
//!
//! They are constants because they are measured: the image's DSDT and command line name them, and the VMM
//! places its devices where the image says that they are.

/// Bytes in a page.
pub const PAGE_SIZE: u64 = 4096;

/// End of the RAM below the 32-bit hole, at most: larger guests continue at [`HIGH_RAM_BASE`].
pub const LOW_RAM_MAX: u64 = 0xC000_0000;
/// Where RAM continues that does not fit below [`LOW_RAM_MAX`].
pub const HIGH_RAM_BASE: u64 = 0x1_0000_0000;
/// Shared, unmeasured window through which the kernel travels; it is never RAM.
pub const WINDOW_BASE: u64 = 0xC000_0000;
/// Size of the window in bytes.
pub const WINDOW_SIZE: u64 = 0x1000_0000;

/// First virtio-mmio device; device `n` is at `VIRTIO_BASE + n * VIRTIO_STRIDE`.
pub const VIRTIO_BASE: u64 = 0xD000_0000;
/// Distance between virtio-mmio devices, and the size of each one's registers.
pub const VIRTIO_STRIDE: u64 = 0x1000;
/// Interrupt line (GSI, IOAPIC pin) of virtio device 0; device `n` has line `VIRTIO_GSI_BASE + n`.
pub const VIRTIO_GSI_BASE: u32 = 5;

/// Number of virtio-mmio devices that every machine has.
pub const VIRTIO_DEVICES: u32 = 2 + BLOCK_SLOTS;
/// Index of the entropy device.
pub const VIRTIO_RNG: u32 = 0;
/// Index of the vsock device.
pub const VIRTIO_VSOCK: u32 = 1;
/// Index of block slot 0.
pub const VIRTIO_BLOCK0: u32 = 2;
/// Block slots: disks that exist from boot.
pub const BLOCK_SLOTS: u32 = 3;
/// The disk with the root file system (`/dev/vda`); it never changes.
pub const SLOT_ROOTFS: u32 = 0;
/// The read-only disk on which container image layers appear while the machine runs (`/dev/vdb`).
pub const SLOT_LAYERS: u32 = 1;
/// The writable disk for the guest's encrypted scratch space (`/dev/vdc`).
pub const SLOT_SCRATCH: u32 = 2;

/// I/O APIC register window.
pub const IOAPIC_BASE: u64 = 0xFEC0_0000;
/// Input pins of the I/O APIC.
pub const IOAPIC_PINS: u32 = 24;
/// Local APIC register window.
pub const LAPIC_BASE: u64 = 0xFEE0_0000;

/// I/O port on which the boot stub reports marks and refusals, one byte at a time.
pub const PORT_STUB: u16 = 0x0600;
/// I/O port of the ACPI sleep control register: the guest powers off through it.
pub const PORT_SLEEP_CONTROL: u16 = 0x0604;
/// I/O port of the ACPI sleep status register.
pub const PORT_SLEEP_STATUS: u16 = 0x0605;
/// I/O port of the ACPI reset register: the guest resets through it.
pub const PORT_RESET: u16 = 0x0606;
/// I/O port of the pvpanic device.
pub const PORT_PVPANIC: u16 = 0x0607;
/// First I/O port of the 16550 UART that debug images use.
pub const PORT_SERIAL: u16 = 0x03F8;
/// Interrupt line of the UART.
pub const SERIAL_GSI: u32 = 4;

/// Most virtual CPUs a machine may have.
pub const MAX_VCPUS: u32 = 64;
/// Least guest memory in MiB.
pub const MIN_MEMORY_MIB: u64 = 64;
/// Most guest memory in MiB (the boot stub maps 512 GiB; the hole and the window are inside).
pub const MAX_MEMORY_MIB: u64 = 500 * 1024;

/// Guest-physical base of virtio device `index`.
#[must_use]
pub const fn virtio_base(index: u32) -> u64 {
    VIRTIO_BASE + index as u64 * VIRTIO_STRIDE
}

/// Interrupt line of virtio device `index`.
#[must_use]
pub const fn virtio_gsi(index: u32) -> u32 {
    VIRTIO_GSI_BASE + index
}

/// One run of RAM: base address and size in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RamRange {
    /// Guest-physical base.
    pub base: u64,
    /// Size in bytes.
    pub size: u64,
}

/// RAM of a machine with `memory_mib` MiB, in address order: one range, or two around the 32-bit hole.
#[must_use]
pub fn ram_ranges(memory_mib: u64) -> Vec<RamRange> {
    let bytes = memory_mib << 20;
    let low = bytes.min(LOW_RAM_MAX);
    let mut ranges = vec![RamRange { base: 0, size: low }];
    if bytes > low {
        ranges.push(RamRange { base: HIGH_RAM_BASE, size: bytes - low });
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_never_reaches_the_hole() {
        assert_eq!(ram_ranges(512), [RamRange { base: 0, size: 512 << 20 }]);
        let big = ram_ranges(4096);
        assert_eq!(big[0], RamRange { base: 0, size: LOW_RAM_MAX });
        assert_eq!(big[1], RamRange { base: HIGH_RAM_BASE, size: 1 << 30 });
    }

    #[test]
    fn lines_fit_the_ioapic() {
        assert!(virtio_gsi(VIRTIO_DEVICES - 1) < IOAPIC_PINS);
        assert!(virtio_base(VIRTIO_DEVICES) <= IOAPIC_BASE);
    }
}
