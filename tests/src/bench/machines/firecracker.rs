//! Firecracker, with a configuration file and without its API socket, which is how it starts fastest.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::Result;
use serde_json::{Value, json};

use super::program::{boot, word};
use super::{Booted, Monitor, Size};
use crate::bench::marker::MarkerGuest;

/// Firecracker.
pub struct Firecracker {
    /// Its program.
    pub program: PathBuf,
    /// What it boots.
    pub guest: Rc<MarkerGuest>,
    /// The kernel as an ELF file, the only form that it takes.
    pub vmlinux: PathBuf,
    /// The machine's size.
    pub size: Size,
}

impl Firecracker {
    fn configuration(&self) -> Value {
        json!({
            "boot-source": {
                "kernel_image_path": word(&self.vmlinux),
                "boot_args": self.guest.command_line,
            },
            "drives": [{
                "drive_id": "root",
                "path_on_host": word(&self.guest.rootfs),
                "is_root_device": false,
                "is_read_only": true,
            }],
            "machine-config": { "vcpu_count": self.size.vcpus, "mem_size_mib": self.size.memory_mib },
        })
    }
}

impl Monitor for Firecracker {
    fn name(&self) -> String {
        "firecracker".into()
    }

    fn command(&self) -> Vec<String> {
        let program = word(&self.program);
        [program.as_str(), "--no-api", "--config-file", "FOLDER/machine.json"].map(str::to_owned).into()
    }

    fn boot(&self, folder: &Path) -> Result<Booted> {
        std::fs::write(folder.join("machine.json"), self.configuration().to_string())?;
        boot(&self.command(), folder, true)
    }
}
