//! Files that nobody should launch: each is refused in words, and none makes the decoder panic.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod inputs;

use std::sync::LazyLock;

use igvm::{IgvmDirectiveHeader as Directive, IgvmFile, IgvmRevision};
use igvm_builder::build;
use igvm_defs::{IGVM_VHS_PARAMETER, IgvmPageDataFlags, IgvmPageDataType};
use inputs::{PRODUCTION, kernel, recipe, stub};
use launch::image::{Image, Platform};
use proptest::prelude::*;

const PLATFORMS: [Platform; 3] = [Platform::Native, Platform::Snp, Platform::Tdx];
/// Bytes of the fixed header, and where its checksum is.
const FIXED: usize = 24;
const CHECKSUM: usize = 20;

static FILE: LazyLock<Vec<u8>> =
    LazyLock::new(|| build(&kernel(20_000), &stub(&[0xF4; 5000]), &recipe(&PRODUCTION)).unwrap().file);

/// The image with its directives changed.
fn with(change: impl FnOnce(&mut Vec<Directive>)) -> Vec<u8> {
    let file = IgvmFile::new_from_binary(&FILE, None).unwrap();
    let mut directives = file.directives().to_vec();
    change(&mut directives);
    let (platforms, policies) = (file.platforms().to_vec(), file.initializations().to_vec());
    let file = IgvmFile::new(IgvmRevision::V1, platforms, policies, directives).unwrap();
    let mut bytes = Vec::new();
    file.serialize(&mut bytes).unwrap();
    bytes
}

fn refusal(file: &[u8], platform: Platform) -> String {
    Image::decode(file, platform).unwrap_err().to_string()
}

fn position(directives: &[Directive], wanted: impl Fn(&Directive) -> bool) -> usize {
    directives.iter().position(wanted).unwrap()
}

fn has_type(directive: &Directive, wanted: IgvmPageDataType) -> bool {
    matches!(directive, Directive::PageData { data_type, .. } if *data_type == wanted)
}

fn page(gpa: u64, mask: u32, data_type: IgvmPageDataType) -> Directive {
    Directive::PageData {
        gpa,
        compatibility_mask: mask,
        flags: IgvmPageDataFlags::new(),
        data_type,
        data: Vec::new(),
    }
}

#[test]
fn an_unchanged_file_decodes() {
    let file = with(|_| {});
    assert!(PLATFORMS.iter().all(|platform| Image::decode(&file, *platform).is_ok()));
}

#[test]
fn a_page_loaded_twice_is_refused() {
    let cases = [
        (boot_abi::STUB_GPA, "page at 0x100000 is loaded twice"),
        (boot_abi::PARAMS_GPA, "page at 0x144000 is loaded twice"),
        (boot_abi::VMSA_GPA, "page at 0x147000 is loaded twice"),
        (launch::layout::WINDOW_BASE, "page at 0xc0000000 is loaded twice"),
    ];
    for (gpa, message) in cases {
        let file = with(|directives| directives.push(page(gpa, 2, IgvmPageDataType::NORMAL)));
        assert!(refusal(&file, Platform::Snp).contains(message), "{message}");
    }
}

#[test]
fn what_snp_has_once_is_there_once() {
    let cases = [
        (IgvmPageDataType::CPUID_DATA, "CPUID page: expected one"),
        (IgvmPageDataType::SECRETS, "secrets page: expected one"),
    ];
    for (data_type, message) in cases {
        let twice = with(|directives| directives.push(page(0x50_0000, 2, data_type)));
        assert!(refusal(&twice, Platform::Snp).contains(&format!("{message}, found 2")));
        let missing = with(|directives| directives.retain(|directive| !has_type(directive, data_type)));
        assert!(refusal(&missing, Platform::Snp).contains(&format!("{message}, found 0")));
        let elsewhere = with(|directives| directives.push(page(0x50_0000, 4, data_type)));
        let message = "expected normal data, or on SEV-SNP secrets or CPUID data";
        assert!(refusal(&elsewhere, Platform::Tdx).contains(message));
    }
}

#[test]
fn save_areas_of_other_processors_are_refused() {
    for (vcpus, message) in [(1, "expected one processor context, found 2"), (64, "virtual CPU 0 alone")] {
        let file = with(|directives| {
            let at = position(directives, |directive| matches!(directive, Directive::SnpVpContext { .. }));
            let Directive::SnpVpContext { gpa, compatibility_mask, vmsa, .. } = directives[at].clone() else {
                unreachable!("found above");
            };
            directives.extend((0..vcpus).map(|index| Directive::SnpVpContext {
                gpa: gpa + 0x1000 * u64::from(index),
                compatibility_mask,
                vp_index: index,
                vmsa: vmsa.clone(),
            }));
        });
        assert!(refusal(&file, Platform::Snp).contains(message), "{}", refusal(&file, Platform::Snp));
        assert!(Image::decode(&file, Platform::Native).is_ok(), "the others' part is untouched");
    }
}

#[test]
fn unknown_directives_are_refused_whatever_platform_they_are_for() {
    let file = with(|directives| {
        directives.push(Directive::RequiredMemory {
            gpa: 0,
            compatibility_mask: 4,
            number_of_bytes: 4096,
            vtl2_protectable: false,
        });
    });
    for platform in PLATFORMS {
        assert!(refusal(&file, platform).contains("unsupported header IGVM_VHT_REQUIRED_MEMORY"));
    }
    let file = with(|directives| {
        let at = position(directives, |directive| matches!(directive, Directive::VpCount(_)));
        let parameter = IGVM_VHS_PARAMETER { parameter_area_index: 0, byte_offset: 0 };
        directives.insert(at, Directive::CommandLine(parameter));
    });
    assert!(refusal(&file, Platform::Native).contains("unsupported header IGVM_VHT_COMMAND_LINE"));
}

#[test]
fn an_area_that_another_platform_alone_uses_is_left_out() {
    let file = with(|directives| {
        directives.push(Directive::ParameterArea {
            number_of_bytes: 4096,
            parameter_area_index: 7,
            initial_data: Vec::new(),
        });
        directives.push(Directive::ParameterInsert(igvm_defs::IGVM_VHS_PARAMETER_INSERT {
            gpa: 0x60_0000,
            compatibility_mask: 4,
            parameter_area_index: 7,
        }));
    });
    let areas = PLATFORMS.map(|platform| Image::decode(&file, platform).unwrap().parameters.len());
    assert_eq!(areas, [1, 1, 2]);
}

#[test]
fn other_platforms_and_revisions_are_named() {
    let snp = build(&kernel(20_000), &stub(&[0xF4]), &recipe(&[launch::plan::Tee::Sim])).unwrap().file;
    let message = "expected platform TDX, found SEV-SNP";
    assert!(refusal(&snp, Platform::Tdx).contains(message));
    let mut file = FILE.clone();
    file[4] = 2;
    assert!(refusal(&file, Platform::Native).contains("format version: expected 0x1, found 0x2"));
    file[4] = 1;
    file[FIXED + 16] ^= 1;
    assert!(refusal(&file, Platform::Native).contains("checksum: expected 0x"));
    file.push(0);
    assert!(refusal(&file, Platform::Native).contains("file size: expected 0x"));
    assert!(refusal(&vec![0; 17 << 20], Platform::Native).contains("expected at most 16777216 bytes"));
}

/// The file with the checksum that its headers have.
fn checksummed(mut file: Vec<u8>) -> Vec<u8> {
    let number = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap()) as usize;
    let (start, size) = (number(8), number(12));
    let Some(headers) = start.checked_add(size).and_then(|end| file.get(start..end)) else { return file };
    let mut crc = crc32fast::Hasher::new();
    crc.update(&file[..CHECKSUM]);
    crc.update(&[0; 4]);
    crc.update(headers);
    let crc = crc.finalize();
    file[CHECKSUM..FIXED].copy_from_slice(&crc.to_le_bytes());
    file
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the headers say, the decoder answers, and what it takes has each page once.
    #[test]
    fn damaged_headers_do_not_panic(
        damage in prop::collection::vec((0..2000usize, any::<u8>()), 1..6),
        numbers in prop::collection::vec((0..250usize, any::<u64>()), 0..3),
    ) {
        let mut file = FILE.clone();
        for (at, byte) in damage {
            file[at] = byte;
        }
        for (at, number) in numbers {
            file[at * 8..at * 8 + 8].copy_from_slice(&number.to_le_bytes());
        }
        let total = u32::try_from(file.len()).unwrap();
        file[..4].copy_from_slice(b"IGVM");
        file[4..8].copy_from_slice(&1u32.to_le_bytes());
        file[16..20].copy_from_slice(&total.to_le_bytes());
        let file = checksummed(file);
        for platform in PLATFORMS {
            if let Ok(image) = Image::decode(&file, platform) {
                let mut places: Vec<u64> = image.pages.iter().map(|page| page.gpa).collect();
                places.sort_unstable();
                prop_assert!(places.is_sorted_by(|a, b| a < b));
                prop_assert!(image.pages.iter().all(|page| [0, 4096].contains(&page.data.len())));
            }
        }
    }
}
