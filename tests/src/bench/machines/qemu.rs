//! QEMU's `microvm` machine: no PCI, ACPI with hardware-reduced registers, virtio over MMIO, its small firmware.

use std::path::Path;
use std::rc::Rc;

use anyhow::Result;

use super::program::{boot, word};
use super::{Booted, Monitor, Size};
use crate::bench::marker::MarkerGuest;

/// QEMU as the distribution builds it.
pub struct Qemu {
    /// What it boots.
    pub guest: Rc<MarkerGuest>,
    /// The machine's size.
    pub size: Size,
}

impl Monitor for Qemu {
    fn name(&self) -> String {
        "qemu microvm".into()
    }

    /// Legacy devices are off, and there is one disk: what the guest does not need costs it nothing.
    fn command(&self) -> Vec<String> {
        let Size { memory_mib, vcpus } = self.size;
        let words = [
            "qemu-system-x86_64",
            "-machine",
            "microvm,accel=kvm,pit=off,pic=off,rtc=off,isa-serial=on",
            "-cpu",
            "host",
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
            "-global",
            "virtio-mmio.force-legacy=false",
            "-device",
            "virtio-blk-device,drive=root",
            "-serial",
            "file:FOLDER/serial",
        ];
        let mut words: Vec<String> = words.map(str::to_owned).into();
        let drive = format!("id=root,if=none,format=raw,readonly=on,file={}", word(&self.guest.rootfs));
        let valued = [
            ("-m", format!("{memory_mib}M")),
            ("-smp", vcpus.to_string()),
            ("-drive", drive),
            ("-kernel", word(&self.guest.kernel)),
            ("-append", self.guest.command_line.clone()),
        ];
        words.extend(valued.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]));
        words
    }

    fn boot(&self, folder: &Path) -> Result<Booted> {
        boot(&self.command(), folder, false)
    }
}
