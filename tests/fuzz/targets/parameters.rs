//! The boot stub's parameter page: whatever the loader writes is refused, or is a machine of ours, of which the stub
//! takes each page of RAM at most once and none that the launch loaded.
#![no_main]

use boot_abi::{Config, LoadedRange, STUB_END, STUB_GPA};
use boot_stub::params::Params;
use boot_stub::steps::Steps;
use libfuzzer_sys::fuzz_target;
use zerocopy::FromZeros as _;

/// Steps that are looked at: 500 GiB in small pages have more than a short run can follow.
const STEPS: usize = 4096;

fuzz_target!(|bytes: &[u8]| {
    let mut page = [0; 4096];
    let length = bytes.len().min(page.len());
    page[..length].copy_from_slice(&bytes[..length]);
    let mut config = Config::new_zeroed();
    config.max_vcpus = 64;
    config.kernel_bytes = 0x40_0000;
    config.loaded[0] = LoadedRange { base: STUB_GPA, end: STUB_END };
    let Ok(params) = Params::parse(&page, &config) else { return };
    assert!((1..=64).contains(&params.vcpus));
    let ranges = params.ram.ranges();
    assert!(ranges.iter().all(|range| range.base < range.end && range.end <= 511 << 30));
    assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].base));
    assert!(ranges[0].base == 0 && ranges[0].end >= 0x140_0000);
    let mut end = 0;
    for step in Steps::new(ranges, &config.loaded).take(STEPS) {
        assert!(step.gpa >= end && step.gpa.is_multiple_of(step.size.bytes()));
        end = step.gpa + step.size.bytes();
        assert!(config.loaded.iter().all(|kept| kept.end <= step.gpa || end <= kept.base));
        assert!(ranges.iter().any(|range| range.base <= step.gpa && end <= range.end));
    }
});
