//! The first instructions, and what compiled code expects around it.

use core::arch::global_asm;
use core::sync::atomic::AtomicU32;

use boot_abi::{MAILBOX_GPA, PAGE_TABLES_GPA};

/// Not 0: the mailbox may be read. TDX starts all virtual CPUs at once, and memory must be accepted first.
pub static MAILBOX_READY: AtomicU32 = AtomicU32::new(0);

// The loader enters at `_start` with the measured register state: 64-bit mode, paging on, interrupts off.
// Compiled code uses SSE, and Linux wants its boot selectors (0x10 code, 0x18 data) in the table that it
// finds, so both are set up first. An empty interrupt table makes every fault final.
//
// On TDX, each virtual CPU starts at the reset vector in 32-bit mode without paging, with flat segments, long mode
// enabled, the width of guest-physical addresses in EBX and its own index in ESI. The page there only jumps down:
// the addresses that it lies among are to become shared memory as soon as the first virtual CPU gets to Rust, and
// no instruction runs from shared memory. The first goes on at `_start`; the others wait in a loop that needs no
// stack, first for the mailbox, then in it (ACPI specification 6.5, 5.2.12.19).
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
    "mov edi, ebx", // TDX: the width of addresses
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
    ".code32",
    "tdx_start:",
    "cli",
    "cld",
    "lgdt [3b]",
    "mov eax, {page_tables}",
    "mov cr3, eax",
    "mov eax, cr4",
    "or eax, 0x20", // PAE; machine checks stay on, as TDX wants them
    "mov cr4, eax",
    "mov eax, cr0",
    "or eax, 0x80000000", // paging
    "mov cr0, eax",
    ".byte 0xEA", // far jump to 64-bit code
    ".long tdx_long_mode",
    ".word 0x10",
    ".code64",
    "tdx_long_mode:",
    "test esi, esi",
    "jz _start",
    "7:",
    "pause",
    "cmp dword ptr [rip + {ready}], 0",
    "je 7b",
    "mov edi, {mailbox}",
    "8:",
    "pause",
    "cmp word ptr [rdi], 1", // command: wake up
    "jne 8b",
    "cmp dword ptr [rdi + 4], esi", // APIC id
    "jne 8b",
    "mov rax, [rdi + 8]",     // where to
    "mov word ptr [rdi], 0", // taken
    "jmp rax",
    ".section .reset, \"ax\"",
    ".code32",
    "mov eax, offset tdx_start",
    "jmp eax",
    ".code64",
    ".text",
    start = sym crate::start,
    page_tables = const PAGE_TABLES_GPA,
    ready = sym MAILBOX_READY,
    mailbox = const MAILBOX_GPA,
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
