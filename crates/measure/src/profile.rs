//! The circumstances of a launch that its measurement depends on, beside the image: under which isolation, who
//! loads it, with how many virtual CPUs.

use launch::digest::LaunchDigest;
use launch::image::Image;
use launch::plan::Tee;
use launch::snp::vmsa::RESET_RDX;
use launch::snp::{self, Backend};
use launch::tdx;

use crate::config;
use crate::cpu::Model;

/// Circumstances of a launch, but for the number of virtual CPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// The isolation.
    pub tee: Tee,
    /// Who loads the image.
    pub backend: Backend,
    /// The processor's model, for monitors that leave RDX of the other virtual CPUs at reset; none for our own.
    pub cpu: Option<Model>,
}

/// Why an image has no measurement under a profile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    /// Nobody measures the launch of an ordinary machine.
    #[error("isolation: expected snp, tdx or sim, found none: no processor measures such a launch")]
    NotMeasured,
    /// Only SEV-SNP is launched on the Microsoft Hypervisor.
    #[error("backend: expected kvm for {0}, found mshv")]
    Backend(Tee),
    /// Only save areas of SEV-SNP on KVM have what depends on the model.
    #[error("processor model: it matters only to SEV-SNP and sim on KVM, expected none here")]
    Model,
    /// The image is for something else.
    #[error("isolation: expected {expected}, which the image's configuration page names, found {found}")]
    Tee {
        /// What the image is for.
        expected: String,
        /// What was asked for.
        found: Tee,
    },
}

impl Profile {
    /// A profile of our own monitor.
    #[must_use]
    pub const fn ours(tee: Tee, backend: Backend) -> Self {
        Self { tee, backend, cpu: None }
    }

    /// Whether `image` can be launched so.
    ///
    /// # Errors
    /// The profile contradicts itself, or the image's measured configuration.
    pub fn check(&self, image: &Image) -> Result<(), ProfileError> {
        if self.tee == Tee::None {
            return Err(ProfileError::NotMeasured);
        }
        if self.backend == Backend::Mshv && self.tee != Tee::Snp {
            return Err(ProfileError::Backend(self.tee));
        }
        if self.cpu.is_some() && (self.tee == Tee::Tdx || self.backend == Backend::Mshv) {
            return Err(ProfileError::Model);
        }
        match config::read(image).as_ref().map(config::tee) {
            Some(expected) if expected != self.tee.to_string() => {
                Err(ProfileError::Tee { expected, found: self.tee })
            }
            _ => Ok(()),
        }
    }

    /// The measurements of `image` with 1 to `max_vcpus` virtual CPUs, in that order.
    ///
    /// # Errors
    /// As [`Profile::check`].
    pub fn digests(&self, image: &Image, max_vcpus: u32) -> Result<Vec<LaunchDigest>, ProfileError> {
        self.check(image)?;
        let count = usize::try_from(max_vcpus).unwrap_or(0);
        Ok(match self.tee {
            Tee::Tdx => vec![tdx::mrtd(image); count],
            _ => snp::digests(image, self.backend, max_vcpus, self.reset_rdx()),
        })
    }

    /// What the other virtual CPUs' RDX holds.
    #[must_use]
    pub fn reset_rdx(&self) -> u64 {
        self.cpu.as_ref().map_or(RESET_RDX, |model| model.signature.into())
    }
}

/// The backend's name, as the command line has it.
#[must_use]
pub const fn backend_name(backend: Backend) -> &'static str {
    match backend {
        Backend::Kvm => "kvm",
        Backend::Mshv => "mshv",
    }
}

/// `snp on kvm`, and the model where it matters.
impl std::fmt::Display for Profile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} on {}", self.tee, backend_name(self.backend))?;
        self.cpu.as_ref().map_or(Ok(()), |model| write!(f, ", processor {}", model.name))
    }
}
