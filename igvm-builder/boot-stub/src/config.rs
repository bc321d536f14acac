//! The measured configuration, checked for what the stub relies on.
//!
//! It is the image owner's word, so nothing here defends against the host: a mistake of a builder's is to fail
//! here, by name, and not as a fault later.

use boot_abi::{Config, DSDT_MAX, KERNEL_GPA, LoadedRange, STUB_END, Tee};

use crate::refusal::Refusal;

/// Where the loader's shared window may be: in the device hole's first GiB.
const WINDOW: core::ops::Range<u64> = 0xC000_0000..0x1_0000_0000;

/// How the guest is isolated, from a configuration that is consistent.
///
/// # Errors
/// [`Refusal::Config`] names the field.
pub fn check(config: &Config) -> Result<Tee, Refusal> {
    if config.magic != Config::MAGIC {
        return Err(Refusal::Config("magic"));
    }
    let tee = Tee::from_number(config.tee).ok_or(Refusal::Config("isolation"))?;
    let dsdt_fits = usize::try_from(config.dsdt_bytes).is_ok_and(|bytes| bytes <= DSDT_MAX);
    let checks = [
        (config.reserved == 0, "reserved field"),
        (dsdt_fits, "DSDT size"),
        (kernel_is_placed(config), "place of the kernel"),
        (in_order(&config.loaded), "loaded ranges"),
    ];
    match checks.iter().find(|(good, _)| !good) {
        Some((_, field)) => Err(Refusal::Config(field)),
        None => Ok(tee),
    }
}

/// Where the kernel file is verified: its protected-mode part lies at [`KERNEL_GPA`].
#[must_use]
pub fn kernel_file_gpa(config: &Config) -> u64 {
    KERNEL_GPA.saturating_sub(u64::from(config.kernel_setup_bytes))
}

/// Whether the kernel file is loaded into private memory, at its place, so that it is not copied.
#[must_use]
pub fn kernel_is_private(config: &Config) -> bool {
    config.window_gpa == kernel_file_gpa(config)
}

fn kernel_is_placed(config: &Config) -> bool {
    let window_end = config.window_gpa.checked_add(config.kernel_bytes);
    kernel_file_gpa(config) >= STUB_END
        && config.kernel_bytes > u64::from(config.kernel_setup_bytes)
        && window_end.is_some_and(|end| {
            let inside = |base, limit| config.window_gpa >= base && end <= limit;
            inside(WINDOW.start, WINDOW.end)
                || kernel_is_private(config)
                    && config.loaded.iter().any(|range| inside(range.base, range.end))
        })
}

/// Page-aligned, in address order, apart.
fn in_order(loaded: &[LoadedRange]) -> bool {
    let mut end = 0;
    loaded.iter().filter(|range| **range != LoadedRange::default()).all(|range| {
        let good =
            range.base >= end && range.base < range.end && (range.base | range.end).is_multiple_of(4096);
        end = range.end;
        good
    })
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros as _;

    use super::*;

    fn config() -> Config {
        let mut config = Config::new_zeroed();
        config.magic = Config::MAGIC;
        config.tee = Tee::Snp as u32;
        config.kernel_bytes = 0x40_0000;
        config.kernel_setup_bytes = 0x1000;
        config.window_gpa = 0xC000_0000;
        config.loaded[0] = LoadedRange { base: 0x10_0000, end: 0x10_A000 };
        config.loaded[1] = LoadedRange { base: 0x14_0000, end: 0x14_7000 };
        config
    }

    #[test]
    fn both_places_of_the_kernel_are_known() {
        let mut config = config();
        assert_eq!(check(&config), Ok(Tee::Snp));
        assert!(!kernel_is_private(&config));
        config.window_gpa = KERNEL_GPA - 0x1000;
        assert_eq!(check(&config), Err(Refusal::Config("place of the kernel")));
        config.loaded[2] = LoadedRange { base: 0xFF_F000, end: 0x13F_F000 };
        assert_eq!(check(&config), Ok(Tee::Snp));
        assert!(kernel_is_private(&config));
    }

    #[test]
    fn each_inconsistent_field_is_named() {
        type Spoil = fn(&mut Config);
        let cases: [(Spoil, &str); 8] = [
            (|config| config.magic[7] = b'1', "magic"),
            (|config| config.tee = 4, "isolation"),
            (|config| config.reserved = 1, "reserved field"),
            (|config| config.dsdt_bytes = 4097, "DSDT size"),
            (|config| config.window_gpa = u64::MAX, "place of the kernel"),
            (|config| config.kernel_setup_bytes = u32::MAX, "place of the kernel"),
            (|config| config.loaded[1].base = 0x10_9000, "loaded ranges"),
            (|config| config.loaded[0].base += 1, "loaded ranges"),
        ];
        for (spoil, field) in cases {
            let mut bad = config();
            spoil(&mut bad);
            assert_eq!(check(&bad), Err(Refusal::Config(field)));
        }
    }
}
