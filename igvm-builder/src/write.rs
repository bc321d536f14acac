//! Writes an image's pieces as an IGVM file (`igvm_defs`: "Independent Guest Virtual Machine file format").

use boot_abi::{
    COMMAND_LINE_MAX, Config, DSDT_MAX, PARAMS_GPA, PARAMS_MEMORY_MAP, PARAMS_VP_COUNT, VMSA_GPA,
};
use igvm::{IgvmDirectiveHeader, IgvmFile, IgvmInitializationHeader, IgvmPlatformHeader, IgvmRevision};
use igvm_defs::{
    IGVM_NATIVE_PLATFORM_VERSION, IGVM_SEV_SNP_PLATFORM_VERSION, IGVM_TDX_PLATFORM_VERSION,
    IGVM_VHS_PARAMETER, IGVM_VHS_PARAMETER_INSERT, IGVM_VHS_SUPPORTED_PLATFORM, IgvmPageDataFlags,
    IgvmPageDataType, IgvmPlatformType,
};
use launch::image::{PageKind, Platform};
use launch::layout::{IOAPIC_BASE, PORT_RESET, PORT_SLEEP_CONTROL, PORT_STUB};
use launch::plan::Tee;
use zerocopy::IntoBytes as _;

use crate::bzimage::Kernel;
use crate::pieces::{self, Content, Piece};
use crate::recipe::Recipe;
use crate::stub::Program;
use crate::{BuildError, context, dsdt};

const PARAMETER_AREA: u32 = 0;
const PAGE: usize = 4096;

pub fn image(kernel: &Kernel<'_>, stub: &Program<'_>, recipe: &Recipe) -> Result<Vec<u8>, BuildError> {
    recipe.check()?;
    let dsdt = dsdt::table(recipe.debug);
    if dsdt.len() > DSDT_MAX {
        return Err(BuildError::Dsdt { max: DSDT_MAX, found: dsdt.len() });
    }
    let pieces = pieces::list(kernel, stub, &dsdt, recipe)?;
    let mut directives = Vec::new();
    for piece in &pieces {
        let mask = piece.tees.iter().fold(0, |mask, tee| mask | mask_of(*tee));
        match &piece.content {
            Content::Bytes(kind, bytes) => pages(&mut directives, mask, piece.gpa, *kind, bytes),
            Content::Config => {
                for &tee in &piece.tees {
                    let config = config(kernel, recipe, dsdt.len(), &pieces, tee)?;
                    pages(&mut directives, mask_of(tee), piece.gpa, PageKind::Measured, config.as_bytes());
                }
            }
            Content::Parameters => parameters(&mut directives, mask),
            Content::SaveArea => directives.push(IgvmDirectiveHeader::SnpVpContext {
                gpa: VMSA_GPA,
                compatibility_mask: mask,
                vp_index: 0,
                vmsa: Box::new(context::snp(stub.entry)),
            }),
        }
    }
    if recipe.tees.contains(&Tee::None) {
        directives.push(IgvmDirectiveHeader::X64NativeVpContext {
            compatibility_mask: mask_of(Tee::None),
            vp_index: 0,
            context: Box::new(context::native(stub.entry)),
        });
    }
    serialize(recipe, directives)
}

fn serialize(recipe: &Recipe, directives: Vec<IgvmDirectiveHeader>) -> Result<Vec<u8>, BuildError> {
    let snp = recipe.tees.iter().find(|tee| tee.platform() == Platform::Snp);
    let policy = snp.map(|tee| IgvmInitializationHeader::GuestPolicy {
        policy: recipe.snp_policy,
        compatibility_mask: mask_of(*tee),
    });
    let platforms = recipe.tees.iter().map(|tee| platform(*tee)).collect();
    let file = IgvmFile::new(IgvmRevision::V1, platforms, policy.into_iter().collect(), directives)
        .map_err(BuildError::Igvm)?;
    let mut bytes = Vec::new();
    file.serialize(&mut bytes).map_err(BuildError::Igvm)?;
    Ok(bytes)
}

/// The compatibility mask of an isolation's platform.
const fn mask_of(tee: Tee) -> u32 {
    match tee.platform() {
        Platform::Native => 1,
        Platform::Snp => 2,
        Platform::Tdx => 4,
    }
}

fn platform(tee: Tee) -> IgvmPlatformHeader {
    let (platform_type, platform_version) = match tee.platform() {
        Platform::Native => (IgvmPlatformType::NATIVE, IGVM_NATIVE_PLATFORM_VERSION),
        Platform::Snp => (IgvmPlatformType::SEV_SNP, IGVM_SEV_SNP_PLATFORM_VERSION),
        Platform::Tdx => (IgvmPlatformType::TDX, IGVM_TDX_PLATFORM_VERSION),
    };
    IgvmPlatformHeader::SupportedPlatform(IGVM_VHS_SUPPORTED_PLATFORM {
        compatibility_mask: mask_of(tee),
        highest_vtl: 0,
        platform_type,
        platform_version,
        // Guests of ours choose by page-table bit what is shared, nowhere by address.
        shared_gpa_boundary: 0,
    })
}

/// One directive for each page of `data`, the last one padded with zeros.
fn pages(directives: &mut Vec<IgvmDirectiveHeader>, mask: u32, gpa: u64, kind: PageKind, data: &[u8]) {
    let flags = IgvmPageDataFlags::new();
    let (flags, data_type) = match kind {
        PageKind::Measured => (flags, IgvmPageDataType::NORMAL),
        PageKind::Unmeasured => (flags.with_unmeasured(true), IgvmPageDataType::NORMAL),
        PageKind::Shared => (flags.with_shared(true), IgvmPageDataType::NORMAL),
        PageKind::Secrets => (flags, IgvmPageDataType::SECRETS),
        PageKind::Cpuid => (flags, IgvmPageDataType::CPUID_DATA),
    };
    for (gpa, page) in (gpa..).step_by(PAGE).zip(data.chunks(PAGE)) {
        let mut data = page.to_vec();
        // The format's own form of a page of zeros is one without data.
        data.resize(if page.iter().all(|byte| *byte == 0) { 0 } else { PAGE }, 0);
        directives.push(IgvmDirectiveHeader::PageData {
            gpa,
            compatibility_mask: mask,
            flags,
            data_type,
            data,
        });
    }
}

fn parameters(directives: &mut Vec<IgvmDirectiveHeader>, mask: u32) {
    let at = |offset: usize| IGVM_VHS_PARAMETER {
        parameter_area_index: PARAMETER_AREA,
        byte_offset: u32::try_from(offset).unwrap_or(u32::MAX),
    };
    directives.extend([
        IgvmDirectiveHeader::ParameterArea {
            number_of_bytes: 4096,
            parameter_area_index: PARAMETER_AREA,
            initial_data: Vec::new(),
        },
        IgvmDirectiveHeader::VpCount(at(PARAMS_VP_COUNT)),
        IgvmDirectiveHeader::MemoryMap(at(PARAMS_MEMORY_MAP)),
        IgvmDirectiveHeader::ParameterInsert(IGVM_VHS_PARAMETER_INSERT {
            gpa: PARAMS_GPA,
            compatibility_mask: mask,
            parameter_area_index: PARAMETER_AREA,
        }),
    ]);
}

fn config(
    kernel: &Kernel<'_>,
    recipe: &Recipe,
    dsdt_bytes: usize,
    pieces: &[Piece<'_>],
    tee: Tee,
) -> Result<Config, BuildError> {
    let text = recipe.full_command_line(tee);
    let max = COMMAND_LINE_MAX - 1;
    let too_long = || BuildError::CommandLine { max, found: text.len() };
    if text.len() > max || text.contains('\0') {
        return Err(too_long());
    }
    let mut command_line = [0; COMMAND_LINE_MAX];
    command_line[..text.len()].copy_from_slice(text.as_bytes());
    let not_small = |found: usize| BuildError::Kernel { expected: "a small size", found: found.to_string() };
    Ok(Config {
        magic: Config::MAGIC,
        kernel_sha256: kernel.sha256,
        kernel_bytes: u64::try_from(kernel.file.len()).map_err(|_| not_small(kernel.file.len()))?,
        window_gpa: pieces::kernel_gpa(kernel, recipe.layout),
        max_vcpus: recipe.max_vcpus,
        dsdt_bytes: u32::try_from(dsdt_bytes).map_err(|_| not_small(dsdt_bytes))?,
        ioapic_gpa: u32::try_from(IOAPIC_BASE).map_err(|_| not_small(0))?,
        sleep_port: PORT_SLEEP_CONTROL,
        reset_port: PORT_RESET,
        stub_port: PORT_STUB,
        command_line_bytes: u16::try_from(text.len()).map_err(|_| too_long())?,
        kernel_setup_bytes: kernel.setup_bytes,
        tee: boot_abi::Tee::from(tee) as u32,
        reserved: 0,
        guest_policy: if tee.platform() == Platform::Snp { recipe.snp_policy } else { 0 },
        loaded: pieces::loaded(pieces, tee)?,
        command_line,
    })
}
