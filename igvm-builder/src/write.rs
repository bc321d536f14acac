//! Puts an image together: which page goes where, in which order.

use boot_abi::{
    COMMAND_LINE_MAX, CONFIG_GPA, Config, DSDT_GPA, DSDT_MAX, PAGE_TABLES_GPA, PARAMS_GPA, PARAMS_MEMORY_MAP,
    PARAMS_VP_COUNT, STUB_GPA,
};
use igvm::{IgvmDirectiveHeader, IgvmFile, IgvmPlatformHeader, IgvmRevision};
use igvm_defs::{
    IGVM_NATIVE_PLATFORM_VERSION, IGVM_VHS_PARAMETER, IGVM_VHS_PARAMETER_INSERT, IGVM_VHS_SUPPORTED_PLATFORM,
    IgvmPageDataFlags, IgvmPageDataType, IgvmPlatformType,
};
use launch::layout::{IOAPIC_BASE, MAX_VCPUS, PORT_RESET, PORT_SLEEP_CONTROL, PORT_STUB, WINDOW_BASE};
use zerocopy::IntoBytes as _;

use crate::bzimage::Kernel;
use crate::recipe::Recipe;
use crate::stub::Program;
use crate::{BuildError, context, dsdt, page_tables};

/// Compatibility mask of the native platform; SNP and TDX take the next bits.
const NATIVE: u32 = 1;
const PARAMETER_AREA: u32 = 0;
const PAGE: usize = 4096;

pub fn image(kernel: &Kernel<'_>, stub: &Program<'_>, recipe: &Recipe) -> Result<Vec<u8>, BuildError> {
    let dsdt = dsdt::table(recipe.debug);
    if dsdt.len() > DSDT_MAX {
        return Err(BuildError::Dsdt { max: DSDT_MAX, found: dsdt.len() });
    }
    let config = config(kernel, recipe, dsdt.len())?;
    let [pml4, pdpt] = page_tables::tables();

    let mut directives = Vec::new();
    pages(&mut directives, STUB_GPA, stub.image, measured());
    pages(&mut directives, PAGE_TABLES_GPA, &pml4, measured());
    pages(&mut directives, PAGE_TABLES_GPA + 4096, &pdpt, measured());
    pages(&mut directives, CONFIG_GPA, config.as_bytes(), measured());
    pages(&mut directives, DSDT_GPA, &dsdt, measured());
    parameters(&mut directives);
    pages(&mut directives, WINDOW_BASE, kernel.file, IgvmPageDataFlags::new().with_shared(true));
    directives.push(IgvmDirectiveHeader::X64NativeVpContext {
        compatibility_mask: NATIVE,
        vp_index: 0,
        context: Box::new(context::native(stub.entry)),
    });

    let platforms = vec![IgvmPlatformHeader::SupportedPlatform(IGVM_VHS_SUPPORTED_PLATFORM {
        compatibility_mask: NATIVE,
        highest_vtl: 0,
        platform_type: IgvmPlatformType::NATIVE,
        platform_version: IGVM_NATIVE_PLATFORM_VERSION,
        shared_gpa_boundary: 0,
    })];
    let file =
        IgvmFile::new(IgvmRevision::V1, platforms, Vec::new(), directives).map_err(BuildError::Igvm)?;
    let mut bytes = Vec::new();
    file.serialize(&mut bytes).map_err(BuildError::Igvm)?;
    Ok(bytes)
}

fn measured() -> IgvmPageDataFlags {
    IgvmPageDataFlags::new()
}

/// One directive for each page of `data`, the last one padded with zeros.
fn pages(directives: &mut Vec<IgvmDirectiveHeader>, gpa: u64, data: &[u8], flags: IgvmPageDataFlags) {
    for (gpa, page) in (gpa..).step_by(PAGE).zip(data.chunks(PAGE)) {
        let mut data = page.to_vec();
        // The format's own form of a page of zeros is one without data.
        data.resize(if page.iter().all(|byte| *byte == 0) { 0 } else { PAGE }, 0);
        directives.push(IgvmDirectiveHeader::PageData {
            gpa,
            compatibility_mask: NATIVE,
            flags,
            data_type: IgvmPageDataType::NORMAL,
            data,
        });
    }
}

fn parameters(directives: &mut Vec<IgvmDirectiveHeader>) {
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
            compatibility_mask: NATIVE,
            parameter_area_index: PARAMETER_AREA,
        }),
    ]);
}

fn config(kernel: &Kernel<'_>, recipe: &Recipe, dsdt_bytes: usize) -> Result<Config, BuildError> {
    if !(1..=MAX_VCPUS).contains(&recipe.max_vcpus) {
        return Err(BuildError::Vcpus { max: MAX_VCPUS, found: recipe.max_vcpus });
    }
    let text = recipe.full_command_line();
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
        window_gpa: WINDOW_BASE,
        max_vcpus: recipe.max_vcpus,
        dsdt_bytes: u32::try_from(dsdt_bytes).map_err(|_| not_small(dsdt_bytes))?,
        ioapic_gpa: u32::try_from(IOAPIC_BASE).map_err(|_| not_small(0))?,
        sleep_port: PORT_SLEEP_CONTROL,
        reset_port: PORT_RESET,
        stub_port: PORT_STUB,
        command_line_bytes: u16::try_from(text.len()).map_err(|_| too_long())?,
        kernel_setup_bytes: kernel.setup_bytes,
        tee: boot_abi::Tee::None as u32,
        reserved: 0,
        guest_policy: 0,
        loaded: [boot_abi::LoadedRange::default(); boot_abi::LOADED_RANGES],
        command_line,
    })
}
