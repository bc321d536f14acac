//! Images built from a made-up kernel and stub: what is in them for each isolation, and that it all counts.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod inputs;

use boot_abi::{Config, LoadedRange};
use igvm_builder::{BuildError, Layout, MEASURED_PAGES_MAX, Recipe, build};
use inputs::{PRODUCTION, elf, kernel, recipe, stub};
use launch::image::{Image, PageKind, Platform};
use launch::plan::Tee;

const KERNEL_BYTES: usize = 40_000;

fn digests(kernel: &[u8], stub: &[u8], recipe: &Recipe) -> Vec<String> {
    let sidecar = build(kernel, stub, recipe).unwrap().sidecar;
    sidecar.platforms.iter().map(|platform| platform.measurement.first().to_owned()).collect()
}

fn config(file: &[u8], tee: Tee) -> Config {
    Image::decode(file, tee.platform()).unwrap().config().unwrap()
}

#[test]
fn the_same_inputs_give_the_same_bytes() {
    let build = || build(&kernel(KERNEL_BYTES), &stub(&[0xF4; 5000]), &recipe(&PRODUCTION)).unwrap();
    assert_eq!(build().file, build().file);
}

#[test]
fn few_pages_are_measured_and_the_kernel_is_shared() {
    let built = build(&kernel(KERNEL_BYTES), &stub(&[0xF4; 5000]), &recipe(&PRODUCTION)).unwrap();
    let cost = |tee| {
        let cost = &built.sidecar.platform(tee).unwrap().cost;
        assert_eq!(cost.shared_pages, 10);
        (cost.measured_pages, cost.unmeasured_pages)
    };
    // Two pages of stub, two of page tables, configuration, DSDT; the parameter page.
    assert_eq!(cost(Tee::None), (6, 1));
    // Also the save area; the CPUID and secrets pages.
    assert_eq!(cost(Tee::Snp), (7, 3));
    // Also the mailbox and the reset vector.
    assert_eq!(cost(Tee::Tdx), (8, 1));
}

#[test]
fn a_stub_that_makes_a_launch_slow_is_refused() {
    // Six more pages are measured on SEV-SNP than the stub has.
    let largest = vec![0xF4; (MEASURED_PAGES_MAX - 5) * 4096];
    let built = build(&kernel(KERNEL_BYTES), &stub(&largest), &recipe(&[Tee::Snp])).unwrap();
    assert_eq!(built.sidecar.platforms[0].cost.measured_pages, MEASURED_PAGES_MAX);
    let larger = vec![0xF4; largest.len() + 1];
    let error = build(&kernel(KERNEL_BYTES), &stub(&larger), &recipe(&[Tee::Snp])).unwrap_err();
    assert_eq!(error.to_string(), "snp: expected at most 32 measured pages, found 33");
}

#[test]
fn each_isolation_has_its_own_configuration() {
    let file = build(&kernel(KERNEL_BYTES), &stub(&[0xF4; 5000]), &recipe(&PRODUCTION)).unwrap().file;
    let sim = build(&kernel(KERNEL_BYTES), &stub(&[0xF4; 5000]), &recipe(&[Tee::Sim])).unwrap().file;
    let cases = [
        (&file, Tee::None, 0, "root=/dev/dm-0 uvm.tee=none"),
        (&file, Tee::Snp, 0x30000, "root=/dev/dm-0 uvm.tee=snp uvm.snp_policy=0x30000"),
        (&file, Tee::Tdx, 0, "root=/dev/dm-0 uvm.tee=tdx"),
        (&sim, Tee::Sim, 0x30000, "root=/dev/dm-0 uvm.tee=sim uvm.snp_policy=0x30000"),
    ];
    for (file, tee, policy, command_line) in cases {
        let config = config(file, tee);
        assert_eq!(config.tee, boot_abi::Tee::from(tee) as u32);
        assert_eq!(config.guest_policy, policy);
        assert_eq!(config.window_gpa, launch::layout::WINDOW_BASE);
        let text = std::str::from_utf8(&config.command_line).unwrap().trim_end_matches('\0');
        assert_eq!(text, command_line);
        assert_eq!(usize::from(config.command_line_bytes), text.len());
    }
}

#[test]
fn the_configuration_lists_every_private_page_that_is_ram() {
    let file = build(&kernel(KERNEL_BYTES), &stub(&[0xF4; 5000]), &recipe(&PRODUCTION)).unwrap().file;
    for tee in PRODUCTION {
        let image = Image::decode(&file, tee.platform()).unwrap();
        let loaded = image.config().unwrap().loaded;
        let listed = |gpa: u64| loaded.iter().any(|range| (range.base..range.end).contains(&gpa));
        let private = image.pages.iter().filter(|page| page.kind != PageKind::Shared);
        let ram: Vec<u64> = private.map(|page| page.gpa).filter(|gpa| *gpa < 0xC000_0000).collect();
        assert!(ram.iter().all(|gpa| listed(*gpa)), "{tee}");
        let pages: u64 = loaded.iter().map(|range| (range.end - range.base) / 4096).sum();
        // The save area's page is listed, though not every loader imports it.
        assert_eq!(pages, ram.len() as u64 + u64::from(tee == Tee::Snp), "{tee}");
    }
}

#[test]
fn the_measured_layout_has_the_kernel_where_it_runs() {
    let kernel = kernel(KERNEL_BYTES);
    for tee in [Tee::Sim, Tee::Snp] {
        let recipe = Recipe { layout: Layout::Measured, ..recipe(&[tee]) };
        let built = build(&kernel, &stub(&[0xF4; 5000]), &recipe).unwrap();
        let image = Image::decode(&built.file, Platform::Snp).unwrap();
        assert!(image.pages.iter().all(|page| page.kind != PageKind::Shared));
        // Four sectors of set-up code lie before the kernel's preferred address.
        let start = boot_abi::KERNEL_GPA - 4 * 512;
        let config = image.config().unwrap();
        assert_eq!(config.window_gpa, start);
        let in_memory: Vec<u8> = image
            .pages
            .iter()
            .filter(|page| page.gpa >= boot_abi::STUB_END)
            .flat_map(|page| if page.data.is_empty() { vec![0; 4096] } else { page.data.to_vec() })
            .collect();
        let padding = usize::try_from(start % 4096).unwrap();
        assert!(in_memory[..padding].iter().all(|byte| *byte == 0));
        assert!(in_memory[padding..].starts_with(&kernel));
        assert_eq!(
            config.loaded[2],
            LoadedRange { base: start - start % 4096, end: start - start % 4096 + in_memory.len() as u64 }
        );
        assert_eq!(built.sidecar.platforms[0].cost.measured_pages, 7 + in_memory.len() / 4096);
    }
}

#[test]
fn every_input_moves_the_digest() {
    let (kernel, stub_file, production) = (kernel(KERNEL_BYTES), stub(&[0xF4; 5000]), recipe(&PRODUCTION));
    let mut other_kernel = kernel.clone();
    other_kernel[39_999] ^= 1;
    let mut code = [0xF4; 5000];
    code[4999] ^= 1;
    let variants = [
        digests(&kernel, &stub_file, &production),
        digests(&other_kernel, &stub_file, &production),
        digests(&kernel, &stub(&code), &production),
        digests(&kernel, &stub_file, &Recipe { command_line: "root=/dev/dm-1".into(), ..production.clone() }),
        digests(&kernel, &stub_file, &Recipe { max_vcpus: 5, ..production.clone() }),
        digests(&kernel, &stub_file, &Recipe { debug: true, ..production.clone() }),
    ];
    for (index, variant) in variants.iter().enumerate() {
        for (other_index, other) in variants.iter().enumerate().filter(|(other, _)| *other != index) {
            assert!(variant.iter().all(|digest| !other.contains(digest)), "{index} and {other_index}");
        }
    }
}

#[test]
fn every_policy_bit_moves_the_snp_digest_and_no_other() {
    let (kernel, stub_file, production) = (kernel(KERNEL_BYTES), stub(&[0xF4; 5000]), recipe(&PRODUCTION));
    let base = digests(&kernel, &stub_file, &production);
    for bit in (0..26).filter(|bit| *bit != 17) {
        let policy = production.snp_policy ^ 1 << bit;
        let other = digests(&kernel, &stub_file, &Recipe { snp_policy: policy, ..production.clone() });
        assert_ne!(other[1], base[1], "{bit}");
        assert_eq!((&other[0], &other[2]), (&base[0], &base[2]), "{bit}");
    }
}

#[test]
fn unusable_inputs_are_named() {
    let (kernel, good, recipe) = (kernel(KERNEL_BYTES), stub(&[0xF4]), recipe(&PRODUCTION));
    let refusal = |kernel: &[u8], stub: &[u8], recipe: &Recipe| build(kernel, stub, recipe).unwrap_err();
    let long = Recipe { command_line: "x".repeat(2048), ..recipe.clone() };
    assert!(matches!(refusal(&kernel, &good, &long), BuildError::CommandLine { max: 2047, .. }));
    let zero = Recipe { command_line: "a\0b".into(), ..recipe.clone() };
    assert!(matches!(refusal(&kernel, &good, &zero), BuildError::CommandLine { .. }));
    let none = Recipe { max_vcpus: 0, ..recipe.clone() };
    assert!(matches!(refusal(&kernel, &good, &none), BuildError::Vcpus { found: 0, .. }));
    assert!(matches!(refusal(b"no kernel", &good, &recipe), BuildError::Kernel { .. }));
    assert!(matches!(refusal(&kernel, &kernel, &recipe), BuildError::Stub { .. }));
    for length in 0..good.len() {
        assert!(matches!(refusal(&kernel, &good[..length], &recipe), BuildError::Stub { .. }), "{length}");
    }
}

#[test]
fn unusable_recipes_are_named() {
    let refusal =
        |recipe: &Recipe| build(&kernel(KERNEL_BYTES), &stub(&[0xF4]), recipe).unwrap_err().to_string();
    let measured = |tees: &[Tee]| Recipe { layout: Layout::Measured, ..recipe(tees) };
    let policy = |snp_policy| Recipe { snp_policy, ..recipe(&[Tee::Snp]) };
    let twice = "tees: expected none, tdx, and sim or snp, at most once each";
    let alone = "tees: expected sim or snp alone";
    let bits = "snp_policy: expected bit 17 set, bits 26 to 63 clear";
    let cases = [
        (recipe(&[]), twice),
        (recipe(&[Tee::Sim, Tee::Snp]), twice),
        (recipe(&[Tee::Tdx, Tee::Tdx]), twice),
        (measured(&PRODUCTION), alone),
        (measured(&[Tee::Tdx]), alone),
        (policy(0x10000), bits),
        (policy(0x30000 | 1 << 26), bits),
    ];
    for (recipe, message) in cases {
        assert!(refusal(&recipe).contains(message), "{message}: {}", refusal(&recipe));
    }
}

#[test]
fn stubs_with_other_segments_are_refused() {
    let kernel = kernel(KERNEL_BYTES);
    let refusal = |stub: &[u8]| build(&kernel, stub, &recipe(&PRODUCTION)).unwrap_err().to_string();
    let (code, page) = ([0xF4; 16], [0xF4; 4096]);
    let no_reset_page = elf(&[(boot_abi::STUB_GPA, &code)]);
    assert!(refusal(&no_reset_page).contains("a segment at 0xfffff000, because the recipe names tdx"));
    assert!(build(&kernel, &no_reset_page, &recipe(&[Tee::None, Tee::Snp])).is_ok());
    let cases: [&[(u64, &[u8])]; 3] = [
        &[(boot_abi::STUB_GPA, &code), (boot_abi::STUB_GPA, &code)],
        &[(boot_abi::STUB_GPA, &code), (0x20_0000, &code)],
        &[(boot_abi::RESET_PAGE_GPA, &page)],
    ];
    for segments in cases {
        assert!(refusal(&elf(segments)).starts_with("boot stub: expected"), "{segments:x?}");
    }
}

#[test]
fn damaged_files_do_not_decode() {
    let whole = build(&kernel(KERNEL_BYTES), &stub(&[0xF4; 5000]), &recipe(&PRODUCTION)).unwrap().file;
    for length in (0..whole.len()).step_by(97) {
        for platform in [Platform::Native, Platform::Snp, Platform::Tdx] {
            assert!(Image::decode(&whole[..length], platform).is_err(), "{length}");
        }
    }
}
