//! How a launch is named on the command line: isolation, backend, processor model, number of virtual CPUs.

use std::ops::RangeInclusive;
use std::str::FromStr;

use anyhow::{Result, bail};
use clap::ValueEnum;
use launch::image::Image;
use launch::layout::MAX_VCPUS;
use launch::plan::Tee;
use launch::snp::Backend;
use measure::config;

/// Isolation under which a launch is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MeasuredTee {
    /// AMD SEV-SNP.
    Snp,
    /// Intel TDX.
    Tdx,
    /// SEV-SNP in software.
    Sim,
}

impl From<MeasuredTee> for Tee {
    fn from(tee: MeasuredTee) -> Self {
        match tee {
            MeasuredTee::Snp => Self::Snp,
            MeasuredTee::Tdx => Self::Tdx,
            MeasuredTee::Sim => Self::Sim,
        }
    }
}

/// Who loads the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Loader {
    /// Linux's KVM.
    Kvm,
    /// The Microsoft Hypervisor.
    Mshv,
}

impl From<Loader> for Backend {
    fn from(loader: Loader) -> Self {
        match loader {
            Loader::Kvm => Self::Kvm,
            Loader::Mshv => Self::Mshv,
        }
    }
}

/// Numbers of virtual CPUs: `4`, or `1-64`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vcpus(pub RangeInclusive<u32>);

impl FromStr for Vcpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error =
            || format!("expected a number from 1 to {MAX_VCPUS}, or a range such as 1-8, found {text:?}");
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let number = |text: &str| text.parse::<u32>().map_err(|_| error());
        let (first, last) = (number(first)?, number(last)?);
        if first == 0 || first > last || last > MAX_VCPUS {
            return Err(error());
        }
        Ok(Self(first..=last))
    }
}

/// The isolation that an image is for, by its measured configuration; none for an ordinary machine.
pub fn tee_of(image: &Image) -> Result<Option<Tee>> {
    use launch::image::Platform;
    let named = config::read(image).map(|config| config::tee(&config));
    Ok(match (image.platform, named.as_deref()) {
        (Platform::Native, _) => None,
        (Platform::Snp, Some("sim")) => Some(Tee::Sim),
        (Platform::Snp, Some("snp") | None) => Some(Tee::Snp),
        (Platform::Tdx, Some("tdx") | None) => Some(Tee::Tdx),
        (platform, Some(other)) => {
            bail!(
                "configuration page for {}: expected an isolation of that platform, found {other}",
                platform.name()
            )
        }
    })
}

/// Refuses more virtual CPUs than the image starts with.
pub fn check_limit(image: &Image, vcpus: u32) -> Result<()> {
    match config::read(image).map(|config| config.max_vcpus) {
        Some(limit) if vcpus > limit => {
            bail!("number of vCPUs: expected 1 to {limit}, which is the image's limit, found {vcpus}")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_ranges() {
        assert_eq!("4".parse(), Ok(Vcpus(4..=4)));
        assert_eq!("1-64".parse(), Ok(Vcpus(1..=64)));
        for bad in ["0", "65", "1-65", "3-2", "", "-", "1-", "x", "1-2-3", "-1"] {
            assert!(bad.parse::<Vcpus>().unwrap_err().contains("expected a number from 1 to 64"), "{bad}");
        }
    }
}
