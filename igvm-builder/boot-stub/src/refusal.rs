//! Why the stub will not start a kernel.

use core::fmt;

use boot_abi::ram::RamError;

use crate::snp::SnpError;
use crate::snp::cpuid::CpuidError;
use crate::tdx::TdxError;

/// A reason to stop, in words that the VMM passes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The measured configuration is not of this stub's making. Names the field.
    Config(&'static str),
    /// The loader's number of virtual CPUs.
    Vcpus {
        /// Most that the image allows.
        max: u32,
        /// What the loader said.
        found: u32,
    },
    /// The loader's memory map.
    Ram(RamError),
    /// The loader's CPUID page.
    Cpuid(CpuidError),
    /// SEV-SNP's hypervisor or memory.
    Snp(SnpError),
    /// TDX's module or hypervisor or memory.
    Tdx(TdxError),
    /// The kernel in private memory is not the one that was measured. First four bytes of each SHA-256.
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
            Self::Config(field) => write!(f, "configuration page: unusable {field}"),
            Self::Vcpus { max, found } => write!(f, "vCPU count: expected 1 to {max}, found {found}"),
            Self::Ram(error) => error.fmt(f),
            Self::Cpuid(error) => error.fmt(f),
            Self::Snp(error) => error.fmt(f),
            Self::Tdx(error) => error.fmt(f),
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

impl From<CpuidError> for Refusal {
    fn from(error: CpuidError) -> Self {
        Self::Cpuid(error)
    }
}

impl From<SnpError> for Refusal {
    fn from(error: SnpError) -> Self {
        Self::Snp(error)
    }
}

impl From<TdxError> for Refusal {
    fn from(error: TdxError) -> Self {
        Self::Tdx(error)
    }
}
