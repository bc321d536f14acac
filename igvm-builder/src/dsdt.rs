//! The DSDT: the machine's fixed devices, as ACPI code that is measured with the image.
//!
//! It exists because Linux gives a device on an I/O APIC line an interrupt only through ACPI when the machine
//! has no legacy interrupt controller. It holds names and resources only, no methods, and nothing in it comes
//! from the host.

use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, Path, ResourceTemplate,
};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, aml};
use launch::layout::{
    PORT_PVPANIC, PORT_SERIAL, SERIAL_GSI, VIRTIO_DEVICES, VIRTIO_STRIDE, virtio_base, virtio_gsi,
};

/// Sleep type of the powered-off state; a convention between this table and the kernel.
const SLEEP_TYPE_S5: u8 = 5;

/// The complete table.
pub fn table(debug: bool) -> Vec<u8> {
    let mut code = Vec::new();
    let none: u8 = 0;
    Name::new("_S5_".into(), &Package::new(vec![&SLEEP_TYPE_S5, &none, &none, &none]))
        .to_aml_bytes(&mut code);
    let mut devices = Vec::new();
    for index in 0..VIRTIO_DEVICES {
        virtio(index, &mut devices);
    }
    pvpanic(&mut devices);
    if debug {
        serial(&mut devices);
    }
    scope(&devices, &mut code);
    let mut sdt = Sdt::new(*b"DSDT", 36, 2, *b"UVM   ", *b"UVMBUILD", 1);
    sdt.append_slice(&code);
    sdt.as_slice().to_vec()
}

fn scope(devices: &[u8], code: &mut Vec<u8>) {
    struct Raw<'a>(&'a [u8]);
    impl Aml for Raw<'_> {
        fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
            sink.vec(self.0);
        }
    }
    aml::Scope::new(Path::new("_SB_"), vec![&Raw(devices)]).to_aml_bytes(code);
}

/// A virtio-mmio device; `LNRO0005` is the id that Linux's driver answers to.
fn virtio(index: u32, code: &mut Vec<u8>) {
    let base = u32::try_from(virtio_base(index)).unwrap_or(u32::MAX);
    let size = u32::try_from(VIRTIO_STRIDE).unwrap_or(u32::MAX);
    let unique = u8::try_from(index).unwrap_or(u8::MAX);
    Device::new(
        Path::new(&format!("VR{index:02X}")),
        vec![
            &Name::new("_HID".into(), &"LNRO0005"),
            &Name::new("_UID".into(), &unique),
            &Name::new("_CCA".into(), &1u8),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &Memory32Fixed::new(true, base, size),
                    &Interrupt::new(true, true, false, false, virtio_gsi(index)),
                ]),
            ),
        ],
    )
    .to_aml_bytes(code);
}

/// The port through which a panicking kernel says so (QEMU `docs/specs/pvpanic`).
fn pvpanic(code: &mut Vec<u8>) {
    Device::new(
        Path::new("PEVT"),
        vec![
            &Name::new("_HID".into(), &"QEMU0001"),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&IO::new(PORT_PVPANIC, PORT_PVPANIC, 1, 1)]),
            ),
        ],
    )
    .to_aml_bytes(code);
}

fn serial(code: &mut Vec<u8>) {
    Device::new(
        Path::new("COM1"),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &0u8),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &IO::new(PORT_SERIAL, PORT_SERIAL, 1, 8),
                    &Interrupt::new(true, true, false, false, SERIAL_GSI),
                ]),
            ),
        ],
    )
    .to_aml_bytes(code);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fits_its_page_and_adds_up() {
        for debug in [false, true] {
            let table = table(debug);
            assert!(table.len() <= boot_abi::DSDT_MAX, "{}", table.len());
            assert_eq!(table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        }
    }

    #[test]
    fn only_debug_images_have_a_console() {
        let has_console = |table: Vec<u8>| table.windows(4).any(|name| name == b"COM1");
        assert!(has_console(table(true)));
        assert!(!has_console(table(false)));
    }
}
