//! Guests of a few instructions, as images of their own: what a VMM does with them needs no kernel.

use anyhow::Result;
use igvm::{IgvmDirectiveHeader, IgvmFile, IgvmPlatformHeader, IgvmRevision};
use igvm_defs::{
    IGVM_NATIVE_PLATFORM_VERSION, IGVM_VHS_SUPPORTED_PLATFORM, IgvmNativeVpContextX64, IgvmPageDataFlags,
    IgvmPageDataType, IgvmPlatformType,
};
use zerocopy::FromZeros as _;

const CODE: u64 = 0x10_0000;
const PML4: u64 = 0x14_0000;
const PDPT: u64 = PML4 + 0x1000;
/// Present, writable, accessed.
const TABLE: u64 = 0x23;
/// The same, dirty, a 1 GiB page.
const GIGABYTE: u64 = 0xE3;

/// An image whose first processor runs `code` in 64-bit mode, interrupts off, without an interrupt table.
///
/// # Errors
/// When the IGVM library refuses it.
pub fn image(code: &[u8]) -> Result<Vec<u8>> {
    let entry = |value: u64| value.to_le_bytes().to_vec();
    let directives = vec![
        page(CODE, code.to_vec()),
        page(PML4, entry(PDPT | TABLE)),
        page(PDPT, entry(GIGABYTE)),
        IgvmDirectiveHeader::X64NativeVpContext {
            compatibility_mask: 1,
            vp_index: 0,
            context: Box::new(context()),
        },
    ];
    let platform = IgvmPlatformHeader::SupportedPlatform(IGVM_VHS_SUPPORTED_PLATFORM {
        compatibility_mask: 1,
        highest_vtl: 0,
        platform_type: IgvmPlatformType::NATIVE,
        platform_version: IGVM_NATIVE_PLATFORM_VERSION,
        shared_gpa_boundary: 0,
    });
    let mut bytes = Vec::new();
    IgvmFile::new(IgvmRevision::V1, vec![platform], Vec::new(), directives)?.serialize(&mut bytes)?;
    Ok(bytes)
}

fn page(gpa: u64, mut data: Vec<u8>) -> IgvmDirectiveHeader {
    data.resize(4096, 0);
    IgvmDirectiveHeader::PageData {
        gpa,
        compatibility_mask: 1,
        flags: IgvmPageDataFlags::new(),
        data_type: IgvmPageDataType::NORMAL,
        data,
    }
}

fn context() -> IgvmNativeVpContextX64 {
    IgvmNativeVpContextX64 {
        rip: CODE,
        rsp: CODE + 0x2000,
        rflags: 2,
        code_selector: 0x10,
        code_attributes: 0xA09B,
        code_limit: u32::MAX,
        data_selector: 0x18,
        data_attributes: 0xC093,
        data_limit: u32::MAX,
        cr0: 0x8001_0031,
        cr3: PML4,
        cr4: 0x20,
        efer: 0x500,
        ..IgvmNativeVpContextX64::new_zeroed()
    }
}

/// Code that writes `byte` to `port` and then waits for ever.
#[must_use]
pub fn writes(port: u16, byte: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    // mov dx, port; mov al, byte; out dx, al; hlt; jmp to the hlt
    vec![0x66, 0xBA, low, high, 0xB0, byte, 0xEE, 0xF4, 0xEB, 0xFD]
}

/// Code that faults without anybody to take the fault.
#[must_use]
pub fn faults() -> Vec<u8> {
    // ud2
    vec![0x0F, 0x0B]
}
