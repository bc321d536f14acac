//! What an image's measured configuration page says about the machine that it is for.
//!
//! The guest checks the same for itself, and its owner by the launch digest; a refusal here only comes earlier,
//! and in clearer words.

use launch::image::{Image, ImageError};
use launch::plan::{LaunchPlan, Tee};

/// Why an image is not for the planned machine.
#[derive(Debug, thiserror::Error)]
pub enum ExpectationError {
    /// No configuration that says so.
    #[error("isolation {tee}: {source}")]
    Config {
        /// The plan's isolation.
        tee: Tee,
        /// What there is.
        source: ImageError,
    },
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
    let config = match (image.config(), plan.tee) {
        (Ok(config), _) => config,
        (Err(_), Tee::None) => return Ok(()),
        (Err(source), tee) => return Err(ExpectationError::Config { tee, source }),
    };
    if boot_abi::Tee::from_number(config.tee) != Some(plan.tee.into()) {
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
    use boot_abi::{CONFIG_GPA, Config};
    use launch::image::{Page, PageKind, Platform, Start};
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
        assert!(check(&image, &plan(Tee::Sim)).is_ok());
        let error = check(&image, &plan(Tee::Snp)).unwrap_err().to_string();
        assert_eq!(error, "image: expected one built for isolation snp, found one for sim");
        assert!(check(&image, &plan(Tee::None)).is_err());
    }

    #[test]
    fn limits_and_policy_are_the_image_s() {
        let one = image(Some(&Config { max_vcpus: 1, ..config() }));
        assert!(matches!(check(&one, &plan(Tee::Sim)), Err(ExpectationError::Vcpus { most: 1, found: 2 })));
        let policy = image(Some(&Config { guest_policy: 0xB_0000, ..config() }));
        assert!(matches!(check(&policy, &plan(Tee::Sim)), Err(ExpectationError::Policy { .. })));
    }

    #[test]
    fn images_of_others_are_for_no_isolation() {
        for image in [image(None), image(Some(&Config { magic: *b"UVMSTUB1", ..config() }))] {
            assert!(check(&image, &plan(Tee::None)).is_ok());
            assert!(matches!(check(&image, &plan(Tee::Tdx)), Err(ExpectationError::Config { .. })));
        }
    }
}
