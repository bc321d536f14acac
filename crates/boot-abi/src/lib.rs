//! What the image builder, the VMM and the boot stub agree on, byte for byte.
//!
//! `no_std`, so that the stub can use it. Addresses are guest-physical. Everything below [`PARAMS_GPA`] is
//! measured; the parameter page is the loader's word and is checked by [`ram::Ram::check`] before use.
#![no_std]
#![forbid(unsafe_code)]

pub mod ram;

use core::mem::{offset_of, size_of};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// First byte of the stub: its code, data and stack.
pub const STUB_GPA: u64 = 0x10_0000;
/// End of the room for the stub's code, data and stack.
pub const STUB_LIMIT: u64 = 0x14_0000;
/// Two pages of page tables: one PML4 and one PDPT that maps 512 GiB in 1 GiB pages, one to one but for
/// [`SHARED_ALIAS`].
pub const PAGE_TABLES_GPA: u64 = 0x14_0000;
/// The page with the [`Config`].
pub const CONFIG_GPA: u64 = 0x14_2000;
/// The page with the DSDT.
pub const DSDT_GPA: u64 = 0x14_3000;
/// The page that the loader fills: the number of virtual CPUs, then the memory map.
pub const PARAMS_GPA: u64 = 0x14_4000;
/// SEV-SNP: the CPUID page, filled by the loader and checked by the secure processor.
pub const CPUID_GPA: u64 = 0x14_5000;
/// SEV-SNP: the secrets page, filled by the secure processor.
pub const SECRETS_GPA: u64 = 0x14_6000;
/// SEV-SNP: where a loader that imports save areas puts the first virtual CPU's. Never touched by software.
pub const VMSA_GPA: u64 = 0x14_7000;
/// SEV-SNP: where the stub tells Linux of the two pages above (`cc_blob_sev_info` and its `setup_data`).
pub const CC_BLOB_GPA: u64 = 0x14_8000;
/// TDX: the mailbox through which Linux wakes the other virtual CPUs (ACPI specification 6.5, 5.2.12.19).
pub const MAILBOX_GPA: u64 = 0x14_9000;
/// SEV-SNP: the page that the stub shares with the hypervisor for the few requests that it makes (GHCB).
pub const GHCB_GPA: u64 = 0x14_A000;
/// TDX: the page that ends at 4 GiB, where virtual CPUs start in 32-bit mode. The stub's program file has it as a
/// loadable segment of its own, of 4096 bytes; it lies in the device hole, so it is never RAM.
pub const RESET_PAGE_GPA: u64 = 0xFFFF_F000;
/// End of everything that belongs to the stub; the kernel is told to keep off.
pub const STUB_END: u64 = 0x15_0000;

const _: () = assert!(SHARED_ALIAS == ram::MAPPED_END);

/// Offset of the virtual CPU count (u32) in the parameter page.
pub const PARAMS_VP_COUNT: usize = 0;
/// Offset of the memory map in the parameter page.
pub const PARAMS_MEMORY_MAP: usize = 64;
/// Entries that fit behind [`PARAMS_MEMORY_MAP`].
pub const MEMORY_MAP_ENTRIES: usize = (PAGE - PARAMS_MEMORY_MAP) / size_of::<MemoryMapEntry>();

/// SEV-SNP: reached through this much more, GiB 0 is memory shared with the hypervisor. So the page tables map
/// one to one only what lies below.
pub const SHARED_ALIAS: u64 = 511 << 30;

/// Where the kernel is run: the preferred address of a 64-bit bzImage.
pub const KERNEL_GPA: u64 = 0x100_0000;
/// Where the zero page (`boot_params`) is built.
pub const BOOT_PARAMS_GPA: u64 = 0x7000;
/// Where the kernel finds its command line.
pub const COMMAND_LINE_GPA: u64 = 0x8000;
/// Where the ACPI tables are built; the RSDP comes first.
pub const ACPI_GPA: u64 = 0xE_0000;
/// End of the room for ACPI tables.
pub const ACPI_LIMIT: u64 = 0x10_0000;
/// End of conventional RAM below the ACPI tables.
pub const CONVENTIONAL_LIMIT: u64 = 0x9_F000;

/// Longest command line with its terminating zero: `COMMAND_LINE_SIZE` of x86 Linux.
pub const COMMAND_LINE_MAX: usize = 2048;
/// Most bytes of DSDT: one page.
pub const DSDT_MAX: usize = PAGE;

const PAGE: usize = 4096;

/// The stub's measured configuration, at the start of the page at [`CONFIG_GPA`]. Little-endian.
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Config {
    /// [`Config::MAGIC`].
    pub magic: [u8; 8],
    /// SHA-256 of the kernel file.
    pub kernel_sha256: [u8; 32],
    /// Size of the kernel file in bytes.
    pub kernel_bytes: u64,
    /// Where the loader has put the kernel file: in shared memory, or, in measured pages, where the stub would
    /// have copied it to ([`KERNEL_GPA`] less the real-mode code).
    pub window_gpa: u64,
    /// Most virtual CPUs this image runs with.
    pub max_vcpus: u32,
    /// Bytes of DSDT in the page at [`DSDT_GPA`].
    pub dsdt_bytes: u32,
    /// Base address of the I/O APIC.
    pub ioapic_gpa: u32,
    /// I/O port of the ACPI sleep control register; the status register follows it.
    pub sleep_port: u16,
    /// I/O port of the ACPI reset register.
    pub reset_port: u16,
    /// I/O port that takes [`StubPort`] bytes.
    pub stub_port: u16,
    /// Bytes of command line, without a terminating zero.
    pub command_line_bytes: u16,
    /// Bytes of real-mode set-up code at the start of the kernel file.
    pub kernel_setup_bytes: u32,
    /// How the guest is isolated: a [`Tee`]'s number.
    pub tee: u32,
    /// Zero.
    pub reserved: u32,
    /// SEV-SNP: the policy that the guest must be launched with; otherwise 0.
    pub guest_policy: u64,
    /// What the launch puts into private memory; all other RAM is for the stub to accept. Unused: zeros.
    pub loaded: [LoadedRange; LOADED_RANGES],
    /// The kernel's command line, padded with zeros.
    pub command_line: [u8; COMMAND_LINE_MAX],
}

impl Config {
    /// First bytes of the configuration; the digit is the layout's version.
    pub const MAGIC: [u8; 8] = *b"UVMSTUB2";
}

/// Most ranges in [`Config::loaded`].
pub const LOADED_RANGES: usize = 4;

/// A run of pages that is in private memory from the launch on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LoadedRange {
    /// Guest-physical address of the first byte, page-aligned.
    pub base: u64,
    /// Past the last byte, page-aligned.
    pub end: u64,
}

/// How a guest is isolated, as [`Config::tee`] has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Tee {
    /// Not at all.
    None = 0,
    /// SEV-SNP in software: like [`Tee::None`] for the stub.
    Sim = 1,
    /// AMD SEV-SNP.
    Snp = 2,
    /// Intel TDX.
    Tdx = 3,
}

impl Tee {
    /// The isolation of this number.
    #[must_use]
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::None),
            1 => Some(Self::Sim),
            2 => Some(Self::Snp),
            3 => Some(Self::Tdx),
            _ => None,
        }
    }
}

const _: () = assert!(offset_of!(Config, kernel_bytes) == 40);
const _: () = assert!(offset_of!(Config, tee) == 80);
const _: () = assert!(offset_of!(Config, loaded) == 96);
const _: () = assert!(offset_of!(Config, command_line) == 160);
const _: () = assert!(size_of::<Config>() == 160 + COMMAND_LINE_MAX);

/// One entry of the memory map, in the form of IGVM's `IGVM_VHS_MEMORY_MAP_ENTRY`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MemoryMapEntry {
    /// First page, in units of 4096 bytes.
    pub first_page: u64,
    /// Number of pages; the first entry of none ends the map.
    pub pages: u64,
    /// Kind of memory; only [`MemoryMapEntry::RAM`] is accepted.
    pub kind: u16,
    /// Zero.
    pub flags: u16,
    /// Zero.
    pub reserved: u32,
}

impl MemoryMapEntry {
    /// Ordinary RAM (`MemoryMapEntryType::MEMORY`).
    pub const RAM: u16 = 0;
}

const _: () = assert!(size_of::<MemoryMapEntry>() == 24);

/// The bytes that the stub writes to its I/O port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum StubPort {
    /// Ends a refusal.
    End = 0,
    /// The stub runs.
    Started = 1,
    /// The kernel is verified and about to be entered.
    KernelEntry = 2,
    /// The stub will not go on; the reason follows as text and is ended by [`StubPort::End`].
    Refused = 3,
    /// The kernel has been copied into private memory, and its hash is about to be taken.
    Copied = 4,
}

/// Longest reason of a refusal, in bytes, that a VMM keeps.
pub const REFUSAL_MAX: usize = 256;
