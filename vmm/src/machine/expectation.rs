//! What an image's measured configuration page says about the machine that it is for.
//!
//! The guest checks the same for itself, and its owner by the launch digest; a refusal here only comes earlier,
//! and in clearer words.

use boot_abi::{CONFIG_GPA, Config};
use launch::image::{Image, PageKind};
use launch::plan::{LaunchPlan, Tee};
use zerocopy::FromBytes as _;

/// Why an image is not for the planned machine.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExpectationError {
    /// No configuration page of a layout that is known.
    #[error("image: isolation {0}: expected a measured configuration page at {CONFIG_GPA:#x}, found none")]
    NoConfig(Tee),
    /// Built for another isolation.
    #[error("image: expected one built for isolation {expected}, found one for {found}")]
    Isolation {
        /// The plan's.
        expected: Tee,
        /// The image's, in words.
        found: String,
    },
    /// More virtual CPUs than it takes.
    #[error("image: expected at most {most} virtual CPUs, found {found}")]
    Vcpus {
        /// The image's limit.
        most: u32,
        /// The plan's number.
        found: u32,
    },
    /// It is launched with another policy than its stub expects.
    #[error("image: expected the guest policy {expected:#x} of its configuration, found {found:#x}")]
    Policy {
        /// In the configuration page.
        expected: u64,
        /// In the header.
        found: u64,
    },
}

/// Checks that `image` is one for the machine of `plan`. An image without a configuration page is none of
/// ours, and has nothing to say about machines that are not isolated.
pub fn check(image: &Image, plan: &LaunchPlan) -> Result<(), ExpectationError> {
    let Some(config) = config(image) else {
        return if plan.tee == Tee::None { Ok(()) } else { Err(ExpectationError::NoConfig(plan.tee)) };
    };
    let expected = match plan.tee {
        Tee::None => boot_abi::Tee::None,
        Tee::Sim => boot_abi::Tee::Sim,
        Tee::Snp => boot_abi::Tee::Snp,
        Tee::Tdx => boot_abi::Tee::Tdx,
    };
    if boot_abi::Tee::from_number(config.tee) != Some(expected) {
        return Err(ExpectationError::Isolation { expected: plan.tee, found: name(config.tee) });
    }
    if plan.vcpus > config.max_vcpus {
        return Err(ExpectationError::Vcpus { most: config.max_vcpus, found: plan.vcpus });
    }
    match image.guest_policy {
        Some(found) if found != config.guest_policy => {
            Err(ExpectationError::Policy { expected: config.guest_policy, found })
        }
        _ => Ok(()),
    }
}

fn config(image: &Image) -> Option<Config> {
    let is_config = |page: &&launch::image::Page| page.gpa == CONFIG_GPA && page.kind == PageKind::Measured;
    let page = image.pages.iter().find(is_config)?;
    let (config, _) = Config::read_from_prefix(&page.data).ok()?;
    (config.magic == Config::MAGIC).then_some(config)
}

fn name(tee: u32) -> String {
    match boot_abi::Tee::from_number(tee) {
        Some(boot_abi::Tee::None) => Tee::None.to_string(),
        Some(boot_abi::Tee::Sim) => Tee::Sim.to_string(),
        Some(boot_abi::Tee::Snp) => Tee::Snp.to_string(),
        Some(boot_abi::Tee::Tdx) => Tee::Tdx.to_string(),
        None => format!("unknown number {tee}"),
    }
}

#[cfg(test)]
mod tests {
    use launch::image::{Page, Platform, Start};
    use launch::plan::{HostData, Hypervisor};
    use zerocopy::{FromZeros as _, IntoBytes as _};

    use super::*;

    fn image(config: Option<&Config>) -> Image {
        let page = |config: &Config| {
            let mut data = config.as_bytes().to_vec();
            data.resize(4096, 0);
            Page { gpa: CONFIG_GPA, kind: PageKind::Measured, data: data.into() }
        };
        Image {
            platform: Platform::Snp,
            pages: config.map(page).into_iter().collect(),
            parameters: Vec::new(),
            start: Start::Reset,
            guest_policy: Some(0x3_0000),
            id_block: None,
        }
    }

    fn plan(tee: Tee) -> LaunchPlan {
        LaunchPlan {
            image: "/i".into(),
            rootfs: "/r".into(),
            vcpus: 2,
            memory_mib: 64,
            tee,
            host_data: HostData::default(),
            hypervisor: Hypervisor::Auto,
            vsock: "/v".into(),
            console: None,
        }
    }

    fn config() -> Config {
        Config {
            magic: Config::MAGIC,
            tee: boot_abi::Tee::Sim as u32,
            max_vcpus: 2,
            guest_policy: 0x3_0000,
            ..Config::new_zeroed()
        }
    }

    #[test]
    fn an_image_starts_as_what_it_was_built_for() {
        let image = image(Some(&config()));
        assert_eq!(check(&image, &plan(Tee::Sim)), Ok(()));
        let error = check(&image, &plan(Tee::Snp)).unwrap_err().to_string();
        assert_eq!(error, "image: expected one built for isolation snp, found one for sim");
        assert!(check(&image, &plan(Tee::None)).is_err());
    }

    #[test]
    fn limits_and_policy_are_the_image_s() {
        let one = image(Some(&Config { max_vcpus: 1, ..config() }));
        assert_eq!(check(&one, &plan(Tee::Sim)), Err(ExpectationError::Vcpus { most: 1, found: 2 }));
        let policy = image(Some(&Config { guest_policy: 0xB_0000, ..config() }));
        assert!(matches!(check(&policy, &plan(Tee::Sim)), Err(ExpectationError::Policy { .. })));
    }

    #[test]
    fn images_of_others_are_for_no_isolation() {
        for image in [image(None), image(Some(&Config { magic: *b"UVMSTUB1", ..config() }))] {
            assert_eq!(check(&image, &plan(Tee::None)), Ok(()));
            assert_eq!(check(&image, &plan(Tee::Tdx)), Err(ExpectationError::NoConfig(Tee::Tdx)));
        }
    }
}
