//! Entry, exit, I/O ports and physical memory of x86-64.
#![allow(clippy::cast_possible_truncation, reason = "addresses of this machine are as wide as pointers")]

use core::arch::{asm, global_asm};
use core::fmt;

// The loader enters here with the measured register state: 64-bit mode, paging on, interrupts off.
// Compiled code uses SSE, and Linux wants its boot selectors (0x10 code, 0x18 data) in the table that it
// finds, so both are set up first. An empty interrupt table makes every fault final.
global_asm!(
    ".section .text.start, \"ax\"",
    ".globl _start",
    "_start:",
    "cli",
    "cld",
    "lea rsp, [rip + stack_top]",
    "lgdt [rip + 3f]",
    "lidt [rip + 4f]",
    "mov eax, 0x18",
    "mov ds, eax",
    "mov es, eax",
    "mov fs, eax",
    "mov gs, eax",
    "mov ss, eax",
    "push 0x10",
    "lea rax, [rip + 2f]",
    "push rax",
    "retfq",
    "2:",
    "mov rax, cr0",
    "and eax, 0xfffffffb", // EM off
    "or eax, 2",           // MP on
    "mov cr0, rax",
    "mov rax, cr4",
    "or eax, 0x600", // OSFXSR, OSXMMEXCPT
    "mov cr4, rax",
    "xor ebp, ebp",
    "call {start}",
    "ud2",
    ".balign 8",
    "5:",
    ".quad 0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff",
    "3:",
    ".word 31",
    ".quad 5b",
    "4:",
    ".word 0",
    ".quad 0",
    ".text",
    start = sym super::start,
);

// The compiler calls these for bulk copies; there is no C library to bring them.
global_asm!(
    ".text",
    ".globl memcpy",
    "memcpy:",
    "mov rax, rdi",
    "mov rcx, rdx",
    "shr rcx, 3",
    "rep movsq",
    "mov ecx, edx",
    "and ecx, 7",
    "rep movsb",
    "ret",
    ".globl memmove",
    "memmove:",
    "mov rax, rdi",
    "mov r8, rdi",
    "sub r8, rsi",
    "cmp r8, rdx",
    "jae memcpy",
    "lea rdi, [rdi + rdx - 1]",
    "lea rsi, [rsi + rdx - 1]",
    "mov rcx, rdx",
    "std",
    "rep movsb",
    "cld",
    "ret",
    ".globl memset",
    "memset:",
    "mov r8, rdi",
    "mov eax, esi",
    "mov rcx, rdx",
    "rep stosb",
    "mov rax, r8",
    "ret",
    ".globl memcmp",
    ".globl bcmp",
    "memcmp:",
    "bcmp:",
    "xor eax, eax",
    "mov rcx, rdx",
    "test rcx, rcx",
    "je 2f",
    "repe cmpsb",
    "je 2f",
    "movzx eax, byte ptr [rdi - 1]",
    "movzx ecx, byte ptr [rsi - 1]",
    "sub eax, ecx",
    "2:",
    "ret",
);

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

/// An I/O port that takes bytes.
pub struct Port(pub u16);

impl Port {
    /// Writes one byte.
    pub fn write(&mut self, byte: u8) {
        // SAFETY: the port is the VMM's report port; writing it changes no memory.
        unsafe {
            asm!("out dx, al", in("dx") self.0, in("al") byte, options(nomem, nostack, preserves_flags))
        };
    }
}

impl fmt::Write for Port {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| self.write(byte));
        Ok(())
    }
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
