//! Cloud Hypervisor. Its disks are PCI devices, which the product's kernel does not know: a kernel of the same version
//! with PCI has to be named for it, and the table says so.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::Result;

use super::program::{boot, word};
use super::{Booted, Monitor, Size};
use crate::bench::marker::MarkerGuest;

/// Cloud Hypervisor, started with its command line alone.
pub struct CloudHypervisor {
    /// Its program.
    pub program: PathBuf,
    /// What it boots.
    pub guest: Rc<MarkerGuest>,
    /// A kernel that knows its disks.
    pub kernel: PathBuf,
    /// The machine's size.
    pub size: Size,
}

impl Monitor for CloudHypervisor {
    fn name(&self) -> String {
        "cloud-hypervisor".into()
    }

    fn command(&self) -> Vec<String> {
        let Size { memory_mib, vcpus } = self.size;
        let valued = [
            ("--kernel", word(&self.kernel)),
            ("--cmdline", self.guest.command_line.clone()),
            ("--disk", format!("path={},readonly=on", word(&self.guest.rootfs))),
            ("--memory", format!("size={memory_mib}M")),
            ("--cpus", format!("boot={vcpus}")),
            ("--console", "off".into()),
            ("--serial", "file=FOLDER/serial".into()),
        ];
        let words = valued.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]);
        [word(&self.program)].into_iter().chain(words).collect()
    }

    fn boot(&self, folder: &Path) -> Result<Booted> {
        boot(&self.command(), folder, false)
    }
}
