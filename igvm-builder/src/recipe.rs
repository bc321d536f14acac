//! What an image is made for.

use evidence::policy::GuestPolicy;
use launch::layout::MAX_VCPUS;
use launch::plan::Tee;
use serde::{Deserialize, Serialize};

use crate::BuildError;

/// The parts of an image that are not files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The kernel's command line: what the measured root file system needs comes from its packer. The builder
    /// appends what the guest must know of its isolation.
    pub command_line: String,
    /// Most virtual CPUs that the image starts with.
    #[serde(default = "max_vcpus")]
    pub max_vcpus: u32,
    /// A debug image has a serial console; it measures differently, and says so.
    #[serde(default)]
    pub debug: bool,
    /// What the image starts under. `sim` and `snp` exclude each other: both are the file's SEV-SNP part.
    #[serde(default = "tees")]
    pub tees: Vec<Tee>,
    /// How the kernel travels.
    #[serde(default)]
    pub layout: Layout,
    /// SEV-SNP guest policy, which the host must launch with.
    #[serde(default = "snp_policy")]
    pub snp_policy: u64,
}

/// How the kernel reaches the guest's private memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// In shared, unmeasured pages; the stub copies it and verifies the copy. Few pages are measured.
    #[default]
    Window,
    /// In measured pages, where it is run: for loaders that know no shared pages. SEV-SNP only.
    Measured,
}

fn max_vcpus() -> u32 {
    MAX_VCPUS
}

fn tees() -> Vec<Tee> {
    vec![Tee::None, Tee::Snp, Tee::Tdx]
}

fn snp_policy() -> u64 {
    GuestPolicy::PRODUCTION.0
}

/// The marker that the command line of every debug image carries, and no other's.
pub const DEBUG_MARKER: &str = "uvm.debug";

impl Default for Recipe {
    /// What a recipe file without a word in it means.
    fn default() -> Self {
        Self {
            command_line: String::new(),
            max_vcpus: max_vcpus(),
            debug: false,
            tees: tees(),
            layout: Layout::default(),
            snp_policy: snp_policy(),
        }
    }
}

impl Recipe {
    /// The command line as the kernel gets it under `tee`. What the guest is told to expect of its isolation is
    /// measured with it.
    #[must_use]
    pub fn full_command_line(&self, tee: Tee) -> String {
        let mut line = self.command_line.clone();
        if self.debug {
            line += &format!(" console=ttyS0 8250.nr_uarts=1 {DEBUG_MARKER}");
        }
        line += &format!(" uvm.tee={tee}");
        if matches!(tee, Tee::Sim | Tee::Snp) {
            line += &format!(" uvm.snp_policy={:#x}", self.snp_policy);
        }
        line
    }

    /// Checks what does not depend on the files.
    pub(crate) fn check(&self) -> Result<(), BuildError> {
        let field = |field, expected, found: String| BuildError::Recipe { field, expected, found };
        if !(1..=MAX_VCPUS).contains(&self.max_vcpus) {
            return Err(BuildError::Vcpus { max: MAX_VCPUS, found: self.max_vcpus });
        }
        let names = || self.tees.iter().map(Tee::to_string).collect::<Vec<_>>().join(", ");
        let mut platforms: Vec<_> = self.tees.iter().map(|tee| tee.platform().name()).collect();
        platforms.sort_unstable();
        if platforms.is_empty() || platforms.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(field("tees", "none, tdx, and sim or snp, at most once each", names()));
        }
        if self.layout == Layout::Measured && platforms != [Tee::Snp.platform().name()] {
            return Err(field("tees", "sim or snp alone, because the layout is measured", names()));
        }
        let policy = GuestPolicy(self.snp_policy);
        if !policy.reserved_bits_hold() {
            return Err(field("snp_policy", "bit 17 set, bits 26 to 63 clear", policy.to_string()));
        }
        Ok(())
    }
}
