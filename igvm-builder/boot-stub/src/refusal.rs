//! Why the stub will not start a kernel.

use core::fmt;

use boot_abi::ram::RamError;

/// A reason to stop, in words that the VMM passes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The measured configuration is not of this stub's making.
    Config,
    /// The loader's number of virtual CPUs.
    Vcpus {
        /// Most that the image allows.
        max: u32,
        /// What the loader said.
        found: u32,
    },
    /// The loader's memory map.
    Ram(RamError),
    /// The kernel that was copied is not the one that was measured. First four bytes of each SHA-256.
    KernelHash {
        /// Measured.
        expected: u32,
        /// Of what was found.
        found: u32,
    },
    /// The kernel is what was measured, but nothing that can be started. Names the field.
    Kernel(&'static str),
    /// The ACPI tables do not fit.
    Acpi,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Config => f.write_str("configuration page: unknown magic"),
            Self::Vcpus { max, found } => write!(f, "vCPU count: expected 1 to {max}, found {found}"),
            Self::Ram(error) => error.fmt(f),
            Self::KernelHash { expected, found } => {
                write!(
                    f,
                    "kernel does not match its hash: expected SHA-256 {expected:08x}…, found {found:08x}…"
                )
            }
            Self::Kernel(field) => write!(f, "kernel file: unusable {field}"),
            Self::Acpi => f.write_str("ACPI tables: no room"),
        }
    }
}

impl From<RamError> for Refusal {
    fn from(error: RamError) -> Self {
        Self::Ram(error)
    }
}
