//! `fuzz-seeds FOLDER`: small valid inputs for the fuzz targets, one folder a target.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use boot_abi::{MemoryMapEntry, PARAMS_MEMORY_MAP, PARAMS_VP_COUNT};
use evidence::report::Report;
use igvm::{IgvmDirectiveHeader, IgvmFile, IgvmInitializationHeader, IgvmPlatformHeader, IgvmRevision};
use igvm_defs::{
    IGVM_NATIVE_PLATFORM_VERSION, IGVM_SEV_SNP_PLATFORM_VERSION, IGVM_TDX_PLATFORM_VERSION,
    IGVM_VHS_PARAMETER, IGVM_VHS_PARAMETER_INSERT, IGVM_VHS_SUPPORTED_PLATFORM, IgvmNativeVpContextX64,
    IgvmPageDataFlags, IgvmPageDataType, IgvmPlatformType,
};
use launch::snp::vmsa;
use zerocopy::{FromZeros as _, IntoBytes as _};

/// Largest seed: small ones are mutated faster.
const SEED_BYTES: usize = 32 * 1024;

fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [folder] = &arguments[..] else {
        bail!("expected one argument, the folder to write to: {arguments:?}")
    };
    let folder = Path::new(folder);
    ensure!(folder.is_dir(), "expected a folder, found {}", folder.display());
    let write = |target: &str, name: &str, seed: &[u8]| {
        let folder = folder.join(target);
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        fs::write(folder.join(name), seed).with_context(|| folder.display().to_string())
    };
    write("image", "seed", &image()?)?;
    write("report", "seed", &report()?)?;
    write("parameters", "seed", &parameters())?;
    for odd in layer_corpus::corpus().iter().filter(|odd| odd.tar.len() <= SEED_BYTES) {
        write("layer_tar", odd.name, &odd.tar)?;
    }
    write("erofs_writer", "seed", &actions())
}

/// Whatever they say to the target: some of each.
fn actions() -> Vec<u8> {
    (0..=u8::MAX).map(|number| number.wrapping_mul(37)).collect()
}

/// One file for three platforms, with every kind of header that the loader knows.
fn image() -> Result<Vec<u8>> {
    let platform = |compatibility_mask, platform_type, platform_version| {
        IgvmPlatformHeader::SupportedPlatform(IGVM_VHS_SUPPORTED_PLATFORM {
            compatibility_mask,
            highest_vtl: 0,
            platform_type,
            platform_version,
            shared_gpa_boundary: 0,
        })
    };
    let platforms = vec![
        platform(1, IgvmPlatformType::NATIVE, IGVM_NATIVE_PLATFORM_VERSION),
        platform(2, IgvmPlatformType::SEV_SNP, IGVM_SEV_SNP_PLATFORM_VERSION),
        platform(4, IgvmPlatformType::TDX, IGVM_TDX_PLATFORM_VERSION),
    ];
    let page = |gpa, compatibility_mask, flags, data_type, fill: u8| IgvmDirectiveHeader::PageData {
        gpa,
        compatibility_mask,
        flags,
        data_type,
        data: if fill == 0 { Vec::new() } else { vec![fill; 4096] },
    };
    let flags = IgvmPageDataFlags::new();
    let at = |byte_offset| IGVM_VHS_PARAMETER { parameter_area_index: 0, byte_offset };
    let directives = vec![
        page(0x10_0000, 7, flags, IgvmPageDataType::NORMAL, 0xF4),
        page(0x10_1000, 7, flags, IgvmPageDataType::NORMAL, 0),
        page(boot_abi::CPUID_GPA, 2, flags, IgvmPageDataType::CPUID_DATA, 0),
        page(boot_abi::SECRETS_GPA, 2, flags, IgvmPageDataType::SECRETS, 0),
        page(0xC000_0000, 7, flags.with_shared(true), IgvmPageDataType::NORMAL, 0x90),
        IgvmDirectiveHeader::ParameterArea {
            number_of_bytes: 4096,
            parameter_area_index: 0,
            initial_data: Vec::new(),
        },
        IgvmDirectiveHeader::VpCount(at(0)),
        IgvmDirectiveHeader::MemoryMap(at(64)),
        IgvmDirectiveHeader::ParameterInsert(IGVM_VHS_PARAMETER_INSERT {
            gpa: boot_abi::PARAMS_GPA,
            compatibility_mask: 7,
            parameter_area_index: 0,
        }),
        IgvmDirectiveHeader::X64NativeVpContext {
            compatibility_mask: 1,
            vp_index: 0,
            context: Box::new(IgvmNativeVpContextX64::new_zeroed()),
        },
        IgvmDirectiveHeader::SnpVpContext {
            gpa: boot_abi::VMSA_GPA,
            compatibility_mask: 2,
            vp_index: 0,
            vmsa: Box::new(vmsa::base()),
        },
    ];
    let policy = IgvmInitializationHeader::GuestPolicy { policy: 0x3_0000, compatibility_mask: 2 };
    let mut bytes = Vec::new();
    IgvmFile::new(IgvmRevision::V1, platforms, vec![policy], directives)?.serialize(&mut bytes)?;
    Ok(bytes)
}

/// A report of version 3: all other fields are zeros.
fn report() -> Result<Vec<u8>> {
    Ok(Report::unsigned(3)?.as_bytes().to_vec())
}

/// What a loader writes for two processors and 512 MiB.
fn parameters() -> Vec<u8> {
    let mut page = vec![0; 4096];
    page[PARAMS_VP_COUNT..PARAMS_VP_COUNT + 4].copy_from_slice(&2u32.to_le_bytes());
    let ram =
        MemoryMapEntry { first_page: 0, pages: 0x2_0000, kind: MemoryMapEntry::RAM, flags: 0, reserved: 0 };
    let bytes = ram.as_bytes();
    page[PARAMS_MEMORY_MAP..PARAMS_MEMORY_MAP + bytes.len()].copy_from_slice(bytes);
    page
}
