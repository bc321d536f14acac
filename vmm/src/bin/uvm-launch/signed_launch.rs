//! The one launch that an owner signs: an image with a number of virtual CPUs, or a digest.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use launch::plan::Tee;
use measure::profile::Profile;

use crate::input::{ImageFile, bytes};
use crate::launch_arguments::{Loader, check_limit};

/// Arguments that name it.
#[derive(Debug, clap::Args)]
pub struct LaunchArguments {
    /// The image.
    #[arg(long, value_name = "FILE", required_unless_present = "measurement")]
    image: Option<PathBuf>,
    /// With --image: number of vCPUs; a signature is for one number.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    vcpus: u32,
    /// With --image: who loads it.
    #[arg(long, default_value = "kvm")]
    backend: Loader,
    /// The SEV-SNP launch digest itself, instead of an image.
    #[arg(long, value_name = "HEX", value_parser = bytes::<48>, conflicts_with = "image")]
    measurement: Option<[u8; 48]>,
}

/// The launch.
#[derive(Debug)]
pub struct SignedLaunch {
    /// Its digest.
    pub digest: [u8; 48],
    /// The image's guest policy; none if there is only a digest.
    pub policy: Option<u64>,
}

impl LaunchArguments {
    /// Reads the image, if there is one, and measures it.
    pub fn resolve(&self) -> Result<SignedLaunch> {
        if let Some(digest) = self.measurement {
            return Ok(SignedLaunch { digest, policy: None });
        }
        let Some(path) = &self.image else { bail!("expected --image or --measurement, found neither") };
        let file = ImageFile::read(path)?;
        let image = file.of(Tee::Snp)?;
        check_limit(image, self.vcpus)?;
        let digests = Profile::ours(Tee::Snp, self.backend.into()).digests(image, self.vcpus)?;
        let digest = digests.last().context("number of vCPUs: expected at least 1, found 0")?;
        Ok(SignedLaunch { digest: digest.0, policy: image.guest_policy })
    }
}
