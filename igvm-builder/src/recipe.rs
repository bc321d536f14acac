//! What an image is made for.

use serde::{Deserialize, Serialize};

/// The parts of an image that are not files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The kernel's command line: what the measured root file system needs comes from its packer.
    pub command_line: String,
    /// Most virtual CPUs that the image starts with.
    #[serde(default = "max_vcpus")]
    pub max_vcpus: u32,
    /// A debug image has a serial console; it measures differently, and says so.
    #[serde(default)]
    pub debug: bool,
}

fn max_vcpus() -> u32 {
    launch::layout::MAX_VCPUS
}

/// The marker that the command line of every debug image carries, and no other's.
pub const DEBUG_MARKER: &str = "uvm.debug";

impl Recipe {
    /// The command line as the kernel gets it.
    #[must_use]
    pub fn full_command_line(&self) -> String {
        if self.debug {
            format!("{} console=ttyS0 8250.nr_uarts=1 {DEBUG_MARKER}", self.command_line)
        } else {
            self.command_line.clone()
        }
    }
}
