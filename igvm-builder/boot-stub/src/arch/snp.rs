//! SEV-SNP's instructions: `VMGEXIT` and `PVALIDATE` (AMD64 architecture manual, volumes 2 and 3).

use core::arch::asm;
use core::ptr;

use boot_abi::{GHCB_GPA, SHARED_ALIAS};
use boot_stub::snp::{Processor, Validation};
use boot_stub::steps::PageSize;

const GHCB_MSR: u32 = 0xC001_0130;

/// The processor of an SEV-SNP guest.
#[derive(Debug)]
pub struct Cpu(());

impl Cpu {
    /// # Safety
    /// The guest must run under SEV-SNP, on the page tables that the image has for it.
    pub const unsafe fn promised() -> Self {
        Self(())
    }

    /// The field at `offset` of the shared page. Its address is never that of a Rust object, and it is reached
    /// by volatile accesses alone: the hypervisor may write it at any time.
    fn field(offset: u16) -> *mut u64 {
        let offset = usize::from(offset & 0xFF8);
        ptr::with_exposed_provenance_mut(GHCB_GPA as usize + SHARED_ALIAS as usize + offset)
    }
}

impl Processor for Cpu {
    fn exchange(&mut self, request: u64) -> u64 {
        let (low, high): (u32, u32);
        // SAFETY: the MSR is the guest's to write; what the hypervisor does meanwhile reaches the shared page
        // and the register that is read back, nothing else.
        unsafe {
            asm!(
                "wrmsr",
                "rep vmmcall",
                "rdmsr",
                in("ecx") GHCB_MSR,
                inout("eax") request as u32 => low,
                inout("edx") (request >> 32) as u32 => high,
                options(nostack),
            );
        }
        u64::from(high) << 32 | u64::from(low)
    }

    fn validate(&mut self, gpa: u64, size: PageSize) -> Validation {
        let status: u64;
        let unchanged: u8;
        // SAFETY: changes whether memory may be used, which nothing refers to before it was validated.
        unsafe {
            asm!(
                "pvalidate",
                "setc {unchanged}",
                unchanged = lateout(reg_byte) unchanged,
                inout("rax") gpa => status,
                in("ecx") u32::from(size == PageSize::Large),
                in("edx") 1,
                options(nostack),
            );
        }
        Validation { code: status as u32, unchanged: unchanged != 0 }
    }

    fn read(&mut self, offset: u16) -> u64 {
        // SAFETY: the page is mapped, shared, and within it the offset is bounded.
        unsafe { Self::field(offset).read_volatile() }
    }

    fn write(&mut self, offset: u16, value: u64) {
        // SAFETY: as above, and no reference to the page exists.
        unsafe { Self::field(offset).write_volatile(value) }
    }
}
