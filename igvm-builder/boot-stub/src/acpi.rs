//! ACPI tables, made from measured values alone (ACPI specification 6.5, sections 5.2 and 4.8.3).
//!
//! Hardware-reduced: no fixed hardware, power-off and reset through two I/O ports. The DSDT comes from a
//! measured page; the host contributes nothing but the number of processors.

use crate::refusal::Refusal;
use crate::table::Table;

/// What the tables say.
#[derive(Debug, Clone, Copy)]
pub struct Machine<'a> {
    /// Processors; their APIC ids count from 0.
    pub vcpus: u32,
    /// Base of the I/O APIC.
    pub ioapic_gpa: u32,
    /// Port of the sleep control register; the sleep status register is the next.
    pub sleep_port: u16,
    /// Port of the reset register.
    pub reset_port: u16,
    /// Address of the mailbox through which the operating system wakes the other processors, where it cannot
    /// do so through their local APICs.
    pub mailbox_gpa: Option<u64>,
    /// The complete DSDT, header included.
    pub dsdt: &'a [u8],
}

/// Base of the local APICs.
const LAPIC_GPA: u32 = 0xFEE0_0000;
/// Value that resets the machine.
pub const RESET_VALUE: u8 = 1;

const HEADER_BYTES: usize = 36;
const RSDP_BYTES: usize = 36;
const XSDT_BYTES: usize = HEADER_BYTES + 2 * 8;
const FADT_BYTES: usize = 276;
const MADT_FIXED_BYTES: usize = HEADER_BYTES + 8;
const LAPIC_BYTES: usize = 8;
const IOAPIC_BYTES: usize = 12;
const WAKEUP_BYTES: usize = 16;

/// FADT flags: processor-independent `WBINVD`, no fixed power or sleep button, reset register,
/// hardware-reduced.
const FADT_FLAGS: u32 = 1 | 1 << 4 | 1 << 5 | 1 << 10 | 1 << 20;
/// IA-PC boot flags: no VGA, no CMOS clock; and, by absence, no legacy devices and no 8042.
const BOOT_ARCH: u16 = 1 << 2 | 1 << 5;

/// Writes all tables into `room`, which lies at physical address `gpa`; the RSDP is first.
///
/// # Errors
/// When they do not fit.
pub fn write(room: &mut [u8], gpa: u64, machine: &Machine<'_>) -> Result<(), Refusal> {
    let mut writer = Writer { gpa, room };
    let rsdp = writer.take(RSDP_BYTES)?;
    let dsdt = writer.take(machine.dsdt.len())?;
    dsdt.bytes.copy_from_slice(machine.dsdt);
    let fadt = writer.take(FADT_BYTES)?;
    write_fadt(fadt.bytes, dsdt.gpa, machine);
    let lapics = usize::try_from(machine.vcpus).map_err(|_| Refusal::Acpi)?;
    let others = MADT_FIXED_BYTES + IOAPIC_BYTES + machine.mailbox_gpa.map_or(0, |_| WAKEUP_BYTES);
    let madt_bytes = lapics.checked_mul(LAPIC_BYTES).and_then(|bytes| bytes.checked_add(others));
    let madt = writer.take(madt_bytes.ok_or(Refusal::Acpi)?)?;
    write_madt(madt.bytes, machine)?;
    let xsdt = writer.take(XSDT_BYTES)?;
    let mut table = Table(&mut *xsdt.bytes);
    table.put(HEADER_BYTES, &fadt.gpa.to_le_bytes());
    table.put(HEADER_BYTES + 8, &madt.gpa.to_le_bytes());
    finish(xsdt.bytes, *b"XSDT", 1);
    write_rsdp(rsdp.bytes, xsdt.gpa);
    Ok(())
}

struct Placed<'a> {
    gpa: u64,
    bytes: &'a mut [u8],
}

struct Writer<'a> {
    gpa: u64,
    room: &'a mut [u8],
}

impl<'a> Writer<'a> {
    /// The next `size` bytes, zeroed, the room behind them aligned to 16.
    fn take(&mut self, size: usize) -> Result<Placed<'a>, Refusal> {
        let padded = size.checked_next_multiple_of(16).ok_or(Refusal::Acpi)?;
        let room = core::mem::take(&mut self.room);
        let (taken, rest) = room.split_at_mut_checked(padded).ok_or(Refusal::Acpi)?;
        taken.fill(0);
        let placed = Placed { gpa: self.gpa, bytes: taken.get_mut(..size).ok_or(Refusal::Acpi)? };
        self.room = rest;
        self.gpa += u64::try_from(padded).map_err(|_| Refusal::Acpi)?;
        Ok(placed)
    }
}

fn write_rsdp(bytes: &mut [u8], xsdt: u64) {
    let mut table = Table(&mut *bytes);
    table.put(0, b"RSD PTR ");
    table.put(9, OEM);
    table.put(15, &[2]);
    table.put(20, &36u32.to_le_bytes());
    table.put(24, &xsdt.to_le_bytes());
    let first = checksum(bytes.get(..20).unwrap_or(&[]));
    Table(&mut *bytes).put(8, &[first]);
    let whole = checksum(bytes);
    Table(bytes).put(32, &[whole]);
}

fn write_fadt(bytes: &mut [u8], dsdt: u64, machine: &Machine<'_>) {
    let mut table = Table(&mut *bytes);
    table.put(109, &BOOT_ARCH.to_le_bytes());
    table.put(112, &FADT_FLAGS.to_le_bytes());
    table.put(116, &io_register(machine.reset_port));
    table.put(128, &[RESET_VALUE]);
    table.put(131, &[5]); // minor version
    table.put(140, &dsdt.to_le_bytes());
    table.put(244, &io_register(machine.sleep_port));
    table.put(256, &io_register(machine.sleep_port.wrapping_add(1)));
    table.put(268, b"UVM     ");
    finish(bytes, *b"FACP", 6);
}

/// Generic Address Structure of a byte-wide I/O port.
fn io_register(port: u16) -> [u8; 12] {
    let [low, high] = port.to_le_bytes();
    [1, 8, 0, 1, low, high, 0, 0, 0, 0, 0, 0]
}

fn write_madt(bytes: &mut [u8], machine: &Machine<'_>) -> Result<(), Refusal> {
    let mut table = Table(&mut *bytes);
    table.put(HEADER_BYTES, &LAPIC_GPA.to_le_bytes());
    let mut offset = MADT_FIXED_BYTES;
    for id in 0..machine.vcpus {
        let id = u8::try_from(id).map_err(|_| Refusal::Acpi)?;
        table.put(offset, &[0, 8, id, id, 1, 0, 0, 0]);
        offset += LAPIC_BYTES;
    }
    let [a, b, c, d] = machine.ioapic_gpa.to_le_bytes();
    table.put(offset, &[1, 12, 0, 0, a, b, c, d, 0, 0, 0, 0]);
    if let Some(mailbox) = machine.mailbox_gpa {
        // Multiprocessor wakeup structure (5.2.12.19), mailbox version 0.
        let offset = offset + IOAPIC_BYTES;
        table.put(offset, &[16, 16]);
        table.put(offset + 8, &mailbox.to_le_bytes());
    }
    finish(bytes, *b"APIC", 5);
    Ok(())
}

const OEM: &[u8; 6] = b"UVM   ";

/// Fills in a table's header; the checksum comes last.
fn finish(bytes: &mut [u8], signature: [u8; 4], revision: u8) {
    let length = u32::try_from(bytes.len()).unwrap_or(0);
    let mut table = Table(&mut *bytes);
    table.put(0, &signature);
    table.put(4, &length.to_le_bytes());
    table.put(8, &[revision]);
    table.put(10, OEM);
    table.put(16, b"UVMSTUB ");
    table.put(24, &1u32.to_le_bytes());
    table.put(28, b"UVM ");
    table.put(32, &1u32.to_le_bytes());
    let sum = checksum(bytes);
    Table(bytes).put(9, &[sum]);
}

/// The byte that makes all bytes add up to zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_sub(byte))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec;
    use std::vec::Vec;

    use super::*;

    const GPA: u64 = 0xE_0000;

    fn machine(vcpus: u32, mailbox_gpa: Option<u64>) -> Vec<u8> {
        let mut dsdt = vec![0; HEADER_BYTES];
        finish(&mut dsdt, *b"DSDT", 2);
        let mut room = vec![0xAA; 8192];
        let (sleep_port, reset_port) = (0x604, 0x606);
        let machine =
            Machine { vcpus, ioapic_gpa: 0xFEC0_0000, sleep_port, reset_port, mailbox_gpa, dsdt: &dsdt };
        write(&mut room, GPA, &machine).unwrap();
        room
    }

    fn u64_at(bytes: &[u8], offset: usize) -> u64 {
        u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
    }

    fn table_at(room: &[u8], gpa: u64) -> &[u8] {
        let start = usize::try_from(gpa - GPA).unwrap();
        let length = u32::from_le_bytes(room[start + 4..start + 8].try_into().unwrap());
        &room[start..start + usize::try_from(length).unwrap()]
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn every_pointer_leads_to_a_table_that_adds_up() {
        let room = machine(3, None);
        assert_eq!(&room[..8], b"RSD PTR ");
        assert_eq!((sum(&room[..20]), sum(&room[..36])), (0, 0));
        let xsdt = table_at(&room, u64_at(&room, 24));
        assert_eq!((&xsdt[..4], sum(xsdt)), (&b"XSDT"[..], 0));
        let fadt = table_at(&room, u64_at(xsdt, 36));
        assert_eq!((&fadt[..4], fadt.len(), sum(fadt)), (&b"FACP"[..], 276, 0));
        assert_eq!(fadt[112..116], 0x10_0431u32.to_le_bytes());
        assert_eq!(fadt[244..248], [1, 8, 0, 1]);
        assert_eq!(u64_at(fadt, 248), 0x604);
        let dsdt = table_at(&room, u64_at(fadt, 140));
        assert_eq!((&dsdt[..4], sum(dsdt)), (&b"DSDT"[..], 0));
        let madt = table_at(&room, u64_at(xsdt, 44));
        assert_eq!((&madt[..4], sum(madt)), (&b"APIC"[..], 0));
        assert_eq!(madt.len(), 44 + 3 * 8 + 12);
        assert_eq!(madt[44 + 2 * 8..44 + 3 * 8], [0, 8, 2, 2, 1, 0, 0, 0]);
    }

    #[test]
    fn the_mailbox_is_told_where_there_is_one() {
        let room = machine(2, Some(0x14_9000));
        let madt = table_at(&room, u64_at(table_at(&room, u64_at(&room, 24)), 44));
        assert_eq!((madt.len(), sum(madt)), (44 + 2 * 8 + 12 + 16, 0));
        let wakeup = &madt[44 + 2 * 8 + 12..];
        assert_eq!((&wakeup[..8], u64_at(wakeup, 8)), (&[16, 16, 0, 0, 0, 0, 0, 0][..], 0x14_9000));
    }

    #[test]
    fn too_little_room_is_refused() {
        let machine = Machine {
            vcpus: 64,
            ioapic_gpa: 0,
            sleep_port: 0,
            reset_port: 0,
            mailbox_gpa: None,
            dsdt: &[0; HEADER_BYTES],
        };
        for size in 0..900 {
            assert_eq!(write(&mut vec![0; size], GPA, &machine), Err(Refusal::Acpi), "{size}");
        }
    }
}
