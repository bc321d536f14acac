//! The loader's parameter page, checked against the measured configuration.
//!
//! The loader is the host, and no measurement covers what it writes: the number of virtual CPUs at 0, the memory
//! map at 64. A pure function over the page, so that it can be fuzzed.

use boot_abi::ram::Ram;
use boot_abi::{
    Config, KERNEL_GPA, MEMORY_MAP_ENTRIES, MemoryMapEntry, PARAMS_MEMORY_MAP, PARAMS_VP_COUNT, STUB_END,
};
use zerocopy::FromBytes;

use crate::refusal::Refusal;

/// What the loader may choose, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Params {
    /// Number of virtual CPUs.
    pub vcpus: u32,
    /// RAM: it has room for the stub, for all that the launch loaded, and for the kernel file.
    pub ram: Ram,
}

impl Params {
    /// Reads the parameter page.
    ///
    /// # Errors
    /// When the image does not run with that many virtual CPUs, or the memory map is not a machine's of ours.
    pub fn parse(page: &[u8; 4096], config: &Config) -> Result<Self, Refusal> {
        let vcpus = field::<u32>(page, PARAMS_VP_COUNT)?;
        if !(1..=config.max_vcpus).contains(&vcpus) {
            return Err(Refusal::Vcpus { max: config.max_vcpus, found: vcpus });
        }
        let map = field::<[MemoryMapEntry; MEMORY_MAP_ENTRIES]>(page, PARAMS_MEMORY_MAP)?;
        let kernel_end = KERNEL_GPA.checked_add(config.kernel_bytes).ok_or(Refusal::Config("kernel size"))?;
        let ram = Ram::check(&map, kernel_end.max(STUB_END))?;
        ram.holds(&config.loaded)?;
        Ok(Self { vcpus, ram })
    }
}

/// The constants of `boot_abi` keep each field within the page.
fn field<T: FromBytes>(page: &[u8; 4096], offset: usize) -> Result<T, Refusal> {
    let bytes = page.get(offset..).and_then(|rest| T::read_from_prefix(rest).ok());
    bytes.map(|(value, _)| value).ok_or(Refusal::Config("parameter page"))
}

#[cfg(test)]
mod tests {
    use boot_abi::LoadedRange;
    use boot_abi::ram::RamError;
    use zerocopy::FromZeros as _;

    use super::*;

    fn config() -> Config {
        let mut config = Config::new_zeroed();
        config.max_vcpus = 64;
        config.kernel_bytes = 0x40_0000;
        config.loaded[0] = LoadedRange { base: 0x10_0000, end: 0x14_7000 };
        config
    }

    fn page(vcpus: u32, map: &[(u64, u64)]) -> [u8; 4096] {
        let mut page = [0; 4096];
        page[..4].copy_from_slice(&vcpus.to_le_bytes());
        for (slot, (first, pages)) in page[64..].chunks_exact_mut(24).zip(map) {
            slot[..8].copy_from_slice(&first.to_le_bytes());
            slot[8..16].copy_from_slice(&pages.to_le_bytes());
        }
        page
    }

    const ALL: (u64, u64) = (0, 0x8000);

    #[test]
    fn a_machine_of_ours_passes() {
        let params = Params::parse(&page(3, &[ALL, (0x10_0000, 0x1000)]), &config()).unwrap();
        assert_eq!((params.vcpus, params.ram.ranges().len()), (3, 2));
    }

    #[test]
    fn impossible_vcpu_counts_are_refused() {
        for found in [0, 65, 5_000, u32::MAX] {
            let refused = Params::parse(&page(found, &[ALL]), &config());
            assert_eq!(refused, Err(Refusal::Vcpus { max: 64, found }));
        }
    }

    #[test]
    fn hostile_maps_are_refused() {
        let endless = [(0, 1); MEMORY_MAP_ENTRIES];
        let cases: [(&[(u64, u64)], RamError); 9] = [
            (&[], RamError::Empty),
            (&[ALL, (0x7FFF, 2)], RamError::Order(1)),
            (&[ALL, ALL], RamError::Order(1)),
            (&[(u64::MAX, 2)], RamError::Beyond(0)),
            (&[(1, u64::MAX)], RamError::Beyond(0)),
            // Not all of what the stub lies in.
            (&[(0, 0x148)], RamError::Missing(0x14_8000)),
            (&[(0, 0x100), (0x150, 0x8000)], RamError::Missing(0x10_0000)),
            (&[(0, 0x1000)], RamError::Missing(0x100_0000)),
            (&endless, RamError::Unterminated),
        ];
        for (map, error) in cases {
            let refused = Params::parse(&page(1, map), &config());
            assert_eq!(refused, Err(Refusal::Ram(error)), "{map:?}");
        }
    }

    #[test]
    fn a_map_without_what_was_loaded_is_refused() {
        let mut config = config();
        config.loaded[1] = LoadedRange { base: 0x1_0000_0000, end: 0x1_0000_2000 };
        let refused = Params::parse(&page(1, &[ALL]), &config);
        assert_eq!(refused, Err(Refusal::Ram(RamError::Loaded(0x1_0000_0000))));
        let refused = Params::parse(&page(1, &[ALL, (0x10_0000, 1)]), &config);
        assert_eq!(refused, Err(Refusal::Ram(RamError::Loaded(0x1_0000_1000))));
        assert!(Params::parse(&page(1, &[ALL, (0x10_0000, 2)]), &config).is_ok());
    }
}
