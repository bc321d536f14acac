//! What only instructions can do: entry, exit, I/O ports, physical memory, and the confidential processors' own.
#![allow(clippy::cast_possible_truncation, reason = "addresses of this machine are as wide as pointers")]

mod entry;
pub mod snp;
pub mod tdx;

use core::arch::asm;
use core::arch::x86_64::__cpuid;

use boot_stub::sha256::{Engine, Extensions};

/// `bytes` of physical memory at `gpa`, which the page tables map one to one.
///
/// # Safety
/// The range must be mapped, and nothing may write it while the slice lives.
pub unsafe fn memory(gpa: u64, bytes: usize) -> &'static [u8] {
    // SAFETY: the caller's promise; physical memory has no provenance to keep.
    unsafe { core::slice::from_raw_parts(core::ptr::with_exposed_provenance(gpa as usize), bytes) }
}

/// `bytes` of physical memory at `gpa`, to write.
///
/// # Safety
/// The range must be mapped, and nothing else may refer to it while the slice lives.
pub unsafe fn memory_mut(gpa: u64, bytes: usize) -> &'static mut [u8] {
    // SAFETY: the caller's promise.
    unsafe { core::slice::from_raw_parts_mut(core::ptr::with_exposed_provenance_mut(gpa as usize), bytes) }
}

/// Copies `bytes` from physical memory that others may be writing.
///
/// # Safety
/// Both ranges must be mapped, must not overlap, and nothing may refer to the target.
pub unsafe fn copy(target: u64, source: u64, bytes: usize) {
    // SAFETY: the caller's promise. One pass of string moves reads each source byte once; no reference to
    // the shared source ever exists.
    unsafe {
        asm!(
            "rep movsq",
            "mov rcx, {tail}",
            "rep movsb",
            tail = in(reg) bytes % 8,
            inout("rcx") bytes / 8 => _,
            inout("rdi") target => _,
            inout("rsi") source => _,
            options(nostack, preserves_flags),
        );
    }
}

/// Writes one byte to an I/O port of the VMM's.
pub fn write_port(port: u16, byte: u8) {
    // SAFETY: the VMM's ports change no memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") byte, options(nomem, nostack, preserves_flags)) };
}

/// How to hash on this processor. Not for confidential guests, in which `CPUID` faults.
pub fn detect_hash_engine() -> Engine {
    const SHA: u32 = 1 << 29;
    const SSSE3_SSE41: u32 = 1 << 9 | 1 << 19;
    let there =
        __cpuid(0).eax >= 7 && __cpuid(7).ebx & SHA != 0 && __cpuid(1).ecx & SSSE3_SSE41 == SSSE3_SSE41;
    // SAFETY: just detected.
    if there { unsafe { hash_extensions() } } else { Engine::Portable }
}

/// The hash engine of processors that have the SHA extensions.
///
/// # Safety
/// As [`Extensions::promised`].
pub unsafe fn hash_extensions() -> Engine {
    // SAFETY: the caller's promise.
    Engine::Extensions(unsafe { Extensions::promised() })
}

/// Jumps to a kernel's 64-bit entry.
pub fn enter_kernel(entry: u64, boot_params: u64) -> ! {
    // SAFETY: the kernel at `entry` was verified; it takes the machine as it is and does not return.
    unsafe { asm!("jmp {entry}", entry = in(reg) entry, in("rsi") boot_params, options(noreturn)) }
}

/// Stops this processor for good.
pub fn halt() -> ! {
    loop {
        // SAFETY: interrupts are off: nothing runs any more.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // No code here panics on purpose. A fault with an empty interrupt table ends the machine, visibly.
    // SAFETY: `ud2` faults and does nothing else.
    unsafe { asm!("ud2", options(noreturn)) }
}
