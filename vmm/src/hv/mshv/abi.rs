//! What Linux's MSHV driver and the Microsoft Hypervisor take and give, byte for byte.
//!
//! Ioctls: `include/uapi/linux/mshv.h` of Microsoft's root partition kernel (the SEV-SNP requests are not in
//! mainline yet). Hypercalls, messages and registers: Hyper-V Top-Level Functional Specification and
//! `include/hyperv/hvhdk.h`. Every size and offset is asserted here at compile time, and in the tests against
//! Microsoft's own bindings.

use std::mem::{offset_of, size_of};

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::hv::id_block::ID_BLOCK_BYTES;
use crate::hv::seam::Request;

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// [`PAGE`], for buffers.
pub const PAGE_BYTES: usize = 4096;

const IOCTL_TYPE: u32 = 0xB8;
const WRITE: u32 = 1;
const READ: u32 = 2;

const fn request(name: &'static str, direction: u32, bytes: u32, number: u32) -> Request {
    Request { name, number: direction << 30 | bytes << 16 | IOCTL_TYPE << 8 | number }
}

/// On `/dev/mshv`: makes a partition. The number still declares the first form of the argument, which was
/// 16 bytes long; [`CreatePartition`] is the second, told apart by a flag.
pub const CREATE_PARTITION: Request = request("MSHV_CREATE_PARTITION", WRITE, 16, 0x00);
/// On a partition: makes it ready for memory and virtual processors.
pub const INITIALIZE_PARTITION: Request = request("MSHV_INITIALIZE_PARTITION", 0, 0, 0x00);
/// On a partition: makes a virtual processor.
pub const CREATE_VP: Request = request("MSHV_CREATE_VP", WRITE, 4, 0x01);
/// On a partition: gives it memory, or takes it away.
pub const SET_GUEST_MEMORY: Request = request("MSHV_SET_GUEST_MEMORY", WRITE, 32, 0x02);
/// On anything: makes a hypercall, with the partition's identifier filled in by the kernel.
pub const ROOT_HVCALL: Request = request("MSHV_ROOT_HVCALL", READ | WRITE, 32, 0x07);
/// On a partition: takes or gives back the host's access to pages.
pub const MODIFY_GPA_HOST_ACCESS: Request = request("MSHV_MODIFY_GPA_HOST_ACCESS", WRITE, 16, 0x09);
/// On a partition: imports private pages.
pub const IMPORT_ISOLATED_PAGES: Request = request("MSHV_IMPORT_ISOLATED_PAGES", WRITE, 16, 0x0A);
/// On a partition: finishes the launch.
pub const COMPLETE_ISOLATED_IMPORT: Request = request("MSHV_COMPLETE_ISOLATED_IMPORT", WRITE, 3334, 0xF4);
/// On a partition: passes a guest's message to the secure processor.
pub const ISSUE_PSP_GUEST_REQUEST: Request = request("MSHV_ISSUE_PSP_GUEST_REQUEST", WRITE, 16, 0xF5);
/// On a partition: starts a virtual processor with a save area that the guest has made.
pub const SEV_SNP_AP_CREATE: Request = request("MSHV_SEV_SNP_AP_CREATE", WRITE, 16, 0xF6);
/// On a virtual processor: runs it until it comes back with a message.
pub const RUN_VP: Request = request("MSHV_RUN_VP", READ, 256, 0x00);

/// Where, on a virtual processor's descriptor, the page is mapped that the hypervisor lays over its GHCB.
pub const GHCB_MAP_OFFSET: u64 = 2 * PAGE;

/// `MSHV_PT_BIT_*`: local APICs in the hypervisor, x2APIC, large pages, and the second form of the argument.
pub const PARTITION_FLAGS: u64 = 1 | 1 << 1 | 1 << 2 | 1 << 3;
/// `MSHV_PT_ISOLATION_SNP`.
pub const ISOLATION_SNP: u64 = 1;

/// Argument of [`CREATE_PARTITION`] (`struct mshv_create_partition_v2`).
#[derive(Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CreatePartition {
    /// [`PARTITION_FLAGS`].
    pub flags: U64,
    /// [`ISOLATION_SNP`].
    pub isolation: U64,
    /// Number of feature banks that follow.
    pub feature_banks: U16,
    /// Zero.
    pub reserved: [u8; 6],
    /// Processor features to hide, one bit each.
    pub hidden_features: [U64; 2],
    /// Zero.
    pub reserved_banks: [U64; 2],
    /// XSAVE features to hide, one bit each.
    pub hidden_xsave: U64,
}
const _: () = assert!(size_of::<CreatePartition>() == 64 && offset_of!(CreatePartition, hidden_xsave) == 56);

/// Feature bank bits that mean nothing: always hidden, whatever the host says.
pub const RESERVED_FEATURES: [u64; 2] = [1 << 63, 1 << 61 | 1 << 62];
/// XSAVE features that a guest gets: XSAVE, XSAVEOPT, AVX, AVX2, FMA and XSAVEC. Supervisor states would need
/// leaves that the SEV-SNP CPUID page has no room to describe.
pub const XSAVE_FEATURES: u64 = 0x1F | 1 << 11;

/// Argument of [`SET_GUEST_MEMORY`] (`struct mshv_user_mem_region`).
#[derive(Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct MemoryRegion {
    /// Size in bytes.
    pub bytes: U64,
    /// Guest page number.
    pub guest_pfn: U64,
    /// The host's address, filled in by the seam.
    pub address: U64,
    /// `MSHV_SET_MEM_BIT_*`.
    pub flags: u8,
    /// Zero.
    pub reserved: [u8; 7],
}
const _: () = assert!(size_of::<MemoryRegion>() == 32 && offset_of!(MemoryRegion, flags) == 24);

/// `flags` of memory that the guest may write to and run.
pub const MEMORY_READ_WRITE_EXECUTE: u8 = 1 | 1 << 1;
/// `flags` of memory that is taken away.
pub const MEMORY_UNMAP: u8 = 1 << 2;

/// Head of the arguments of [`IMPORT_ISOLATED_PAGES`] (page type; page numbers follow) and
/// [`MODIFY_GPA_HOST_ACCESS`] (flags; **addresses** follow: the kernel shifts what its header calls page
/// numbers).
#[derive(Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct PageList {
    /// Page type, or `MSHV_GPA_HOST_ACCESS_BIT_*`.
    pub kind: u8,
    /// Zero.
    pub reserved: [u8; 7],
    /// Number of pages that follow.
    pub count: U64,
}
const _: () = assert!(size_of::<PageList>() == 16 && offset_of!(PageList, count) == 8);

/// Acquire access, to read and to write.
pub const HOST_ACCESS_ACQUIRE: u8 = 1 | 1 << 1 | 1 << 2;
/// Release all access.
pub const HOST_ACCESS_RELEASE: u8 = 0;

/// Argument of [`COMPLETE_ISOLATED_IMPORT`] (`struct hv_psp_launch_finish_data`).
#[derive(Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct LaunchFinish {
    /// The ID block; its policy is the launch's even where there is no ID block.
    pub id_block: [u8; ID_BLOCK_BYTES],
    /// How it is signed: the ID authentication information without the reserved bytes at its end.
    pub id_auth: [u8; 3204],
    /// `HOST_DATA`.
    pub host_data: [u8; 32],
    /// Whether the ID block is to be checked.
    pub id_block_enabled: u8,
    /// Whether the key that signed it is signed in turn.
    pub author_key_enabled: u8,
}
const _: () = assert!(size_of::<LaunchFinish>() == 3334 && offset_of!(LaunchFinish, host_data) == 3300);
/// Where an ID block has the guest policy.
pub const ID_BLOCK_POLICY: usize = 88;

/// Argument of [`ISSUE_PSP_GUEST_REQUEST`] (addresses) and [`SEV_SNP_AP_CREATE`] (index and address).
#[derive(Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Pair {
    /// Address of the request page, or index of the virtual processor.
    pub first: U64,
    /// Address of the response page, or of the save area.
    pub second: U64,
}
const _: () = assert!(size_of::<Pair>() == 16);

/// Argument of [`ROOT_HVCALL`] (`struct mshv_root_hvcall`).
#[derive(Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Hypercall {
    /// `HVCALL_*`.
    pub code: U16,
    /// Repetitions asked for, and done afterwards.
    pub repetitions: U16,
    /// Bytes of input.
    pub input_bytes: U16,
    /// Bytes of output.
    pub output_bytes: U16,
    /// `HV_STATUS_*` afterwards.
    pub status: U16,
    /// Zero.
    pub reserved: [u8; 6],
    /// Address of the input, filled in by the seam.
    pub input: U64,
    /// Address of the output, filled in by the seam.
    pub output: U64,
}
const _: () = assert!(size_of::<Hypercall>() == 32);
/// Where the input's address is.
pub const HYPERCALL_INPUT: usize = offset_of!(Hypercall, input);
/// Where the output's address is.
pub const HYPERCALL_OUTPUT: usize = offset_of!(Hypercall, output);

/// `HVCALL_GET_PARTITION_PROPERTY`: [`PropertyName`] in, a u64 out.
pub const HVCALL_GET_PARTITION_PROPERTY: u16 = 0x44;
/// `HVCALL_SET_PARTITION_PROPERTY`: [`Property`] in.
pub const HVCALL_SET_PARTITION_PROPERTY: u16 = 0x45;
/// `HVCALL_SET_VP_REGISTERS`, once: [`Register`] in.
pub const HVCALL_SET_VP_REGISTERS: u16 = 0x51;
/// `HVCALL_ASSERT_VIRTUAL_INTERRUPT`: [`Interrupt`] in.
pub const HVCALL_ASSERT_VIRTUAL_INTERRUPT: u16 = 0x94;
/// `HVCALL_GET_VP_CPUID_VALUES`, once: [`CpuidQuery`] in, four u32 out.
pub const HVCALL_GET_VP_CPUID_VALUES: u16 = 0xF4;

/// Input of `HVCALL_GET_PARTITION_PROPERTY`.
#[derive(Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct PropertyName {
    /// Filled in by the kernel.
    pub partition: U64,
    /// `HV_PARTITION_PROPERTY_*`.
    pub code: U32,
    /// Zero.
    pub padding: U32,
}
const _: () = assert!(size_of::<PropertyName>() == 16);

/// Input of `HVCALL_SET_PARTITION_PROPERTY`.
#[derive(Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Property {
    /// Which.
    pub name: PropertyName,
    /// Its value.
    pub value: U64,
}
const _: () = assert!(size_of::<Property>() == 24);

/// Input of `HVCALL_SET_VP_REGISTERS` for one register.
#[derive(Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Register {
    /// Filled in by the kernel.
    pub partition: U64,
    /// Virtual processor.
    pub vp: U32,
    /// Virtual trust level and padding: zero.
    pub level: U32,
    /// `HV_X64_REGISTER_*`.
    pub name: U32,
    /// Zero.
    pub reserved: [U32; 3],
    /// Low half.
    pub value: U64,
    /// High half: zero for registers of 64 bits.
    pub high: U64,
}
const _: () = assert!(size_of::<Register>() == 48 && offset_of!(Register, value) == 32);

/// Input of `HVCALL_ASSERT_VIRTUAL_INTERRUPT`.
#[derive(Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Interrupt {
    /// Filled in by the kernel.
    pub partition: U64,
    /// Delivery mode; bit 32: level-triggered, bit 33: logical destination.
    pub control: U64,
    /// APIC identifier, or logical destination.
    pub destination: U64,
    /// Vector.
    pub vector: U32,
    /// Virtual trust level and padding: zero.
    pub level: U32,
}
const _: () = assert!(size_of::<Interrupt>() == 32);

/// Input of `HVCALL_GET_VP_CPUID_VALUES` for one leaf.
#[derive(Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CpuidQuery {
    /// Filled in by the kernel.
    pub partition: U64,
    /// Virtual processor.
    pub vp: U32,
    /// Bit 1: with what was registered for the partition.
    pub flags: U32,
    /// Zero.
    pub padding: U64,
    /// Leaf.
    pub eax: U32,
    /// Subleaf.
    pub ecx: U32,
    /// XCR0 that size leaves are for.
    pub xcr0: U64,
    /// `IA32_XSS` that size leaves are for.
    pub xss: U64,
}
const _: () = assert!(size_of::<CpuidQuery>() == 48 && offset_of!(CpuidQuery, eax) == 24);
/// `flags` of a query.
pub const CPUID_WITH_REGISTERED_VALUES: u32 = 1 << 1;

/// A partition property.
#[derive(Debug, Clone, Copy)]
pub struct PropertyCode {
    /// `HV_PARTITION_PROPERTY_*`.
    pub code: u32,
    /// What a message calls the attempt to set or read it.
    pub call: &'static str,
}

const fn property(code: u32, call: &'static str) -> PropertyCode {
    PropertyCode { code, call }
}

/// Enlightenments that the guest may use; set before the partition is initialised.
pub const SYNTHETIC_FEATURES: PropertyCode =
    property(0x0001_0001, "HVCALL_SET_PARTITION_PROPERTY (synthetic processor features)");
/// Whether time stands still.
pub const TIME_FREEZE: PropertyCode = property(0x0003_0003, "HVCALL_SET_PARTITION_PROPERTY (time freeze)");
/// State of the isolation.
pub const ISOLATION_STATE: PropertyCode =
    property(0x0005_000C, "HVCALL_SET_PARTITION_PROPERTY (isolation state)");
/// SEV-SNP guest policy.
pub const ISOLATION_POLICY: PropertyCode =
    property(0x0005_0014, "HVCALL_SET_PARTITION_PROPERTY (isolation policy)");
/// What unknown model-specific registers do.
pub const UNIMPLEMENTED_MSR_ACTION: PropertyCode =
    property(0x0005_0017, "HVCALL_SET_PARTITION_PROPERTY (unimplemented MSR action)");
/// Which requests of the guest the hypervisor answers by itself.
pub const SEV_VMGEXIT_OFFLOADS: PropertyCode =
    property(0x0005_0022, "HVCALL_SET_PARTITION_PROPERTY (SEV VMGEXIT offloads)");
/// Features of the host's processor, bank 0 and 1.
pub const PROCESSOR_FEATURES: [PropertyCode; 2] = [
    property(0x0006_000A, "HVCALL_GET_PARTITION_PROPERTY (processor features 0)"),
    property(0x0006_000B, "HVCALL_GET_PARTITION_PROPERTY (processor features 1)"),
];

/// Enlightenments offered: hypervisor present, the Hyper-V interface, reference counter, SynIC, synthetic
/// timers, interrupt control, hypercalls, VP index, reference TSC, guest idle, frequencies, direct timers, TLB
/// flush and cluster IPI hypercalls.
pub const OFFERED_SYNTHETIC_FEATURES: u64 = 1
    | 1 << 1
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 7
    | 1 << 8
    | 1 << 9
    | 1 << 10
    | 1 << 11
    | 1 << 22
    | 1 << 25
    | 1 << 26;
/// Answered by the hypervisor: RDTSC, CPUID (both protocols), RDMSR, WRMSR, VMMCALL, WBINVD and page-state
/// changes (both protocols).
pub const OFFLOADS: u64 = 1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 32 | 1 << 33;
/// Unknown model-specific registers read as zero and ignore writes.
pub const MSR_IGNORE_WRITE_READ_ZERO: u64 = 1;
/// `HV_PARTITION_ISOLATION_SECURE`.
pub const ISOLATION_SECURE: u64 = 3;

/// The guest's GHCB MSR.
pub const REGISTER_GHCB: u32 = 0x0009_0019;
/// Save area of a virtual processor; bit 0 turns its encrypted state on.
pub const REGISTER_SEV_CONTROL: u32 = 0x0009_0040;
/// The registered GHCB; bit 0 turns it on.
pub const REGISTER_SEV_GHCB_GPA: u32 = 0x0009_0041;
/// The registered doorbell page; bit 0 turns it on.
pub const REGISTER_SEV_DOORBELL_GPA: u32 = 0x0009_0042;

/// What [`RUN_VP`] answers with (`struct hv_message`).
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Message {
    /// `HVMSG_*`.
    pub kind: U32,
    /// Bytes of payload that are used.
    pub payload_bytes: u8,
    /// Flags, padding and sender.
    pub header: [u8; 11],
    /// Depends on the kind.
    pub payload: [u8; 240],
}
const _: () = assert!(size_of::<Message>() == 256 && offset_of!(Message, payload) == 16);

/// An access to memory that is not there.
pub const HVMSG_UNMAPPED_GPA: u32 = 0x8000_0000;
/// An access that memory does not permit.
pub const HVMSG_GPA_INTERCEPT: u32 = 0x8000_0001;
/// An access to private memory that the guest has not accepted.
pub const HVMSG_UNACCEPTED_GPA: u32 = 0x8000_0003;
/// The guest changes what the host may see: [`AttributeIntercept`].
pub const HVMSG_GPA_ATTRIBUTE_INTERCEPT: u32 = 0x8000_0004;
/// A triple fault.
pub const HVMSG_UNRECOVERABLE_EXCEPTION: u32 = 0x8000_0021;
/// The end of a level-triggered interrupt.
pub const HVMSG_X64_APIC_EOI: u32 = 0x8001_0004;
/// A request of the guest: [`VmgexitIntercept`].
pub const HVMSG_X64_SEV_VMGEXIT_INTERCEPT: u32 = 0x8001_0013;

/// Payload of [`HVMSG_GPA_ATTRIBUTE_INTERCEPT`].
#[derive(Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct AttributeIntercept {
    /// Virtual processor.
    pub vp: U32,
    /// Bits 0–4: number of ranges; 5: adjust; 6–7: what the host may do; 8–13: memory type.
    pub flags: U32,
    /// `union hv_gpa_page_range`.
    pub ranges: [U64; 29],
}
const _: () = assert!(size_of::<AttributeIntercept>() == 240);

/// Payload of [`HVMSG_X64_SEV_VMGEXIT_INTERCEPT`]: copies that the hypervisor has made, out of the guest's reach.
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct VmgexitIntercept {
    /// `struct hv_x64_intercept_message_header`.
    pub header: [u8; 40],
    /// Value of the GHCB MSR.
    pub ghcb_msr: U64,
    /// Bit 0: what follows is valid.
    pub flags: U64,
    /// Format of the GHCB.
    pub usage: U32,
    /// Unused.
    pub reserved: U32,
    /// GHCB protocol version.
    pub version: U16,
    /// Unused.
    pub reserved_version: [u8; 6],
    /// `SW_EXITCODE`.
    pub exit_code: U64,
    /// `SW_EXITINFO1`.
    pub info1: U64,
    /// `SW_EXITINFO2`.
    pub info2: U64,
    /// `SW_SCRATCH`.
    pub scratch: U64,
}
const _: () = assert!(size_of::<VmgexitIntercept>() == 104 && offset_of!(VmgexitIntercept, exit_code) == 72);

/// Payload of the memory intercepts (`struct hv_x64_memory_intercept_message`), as far as messages show it.
#[derive(Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct MemoryIntercept {
    /// `struct hv_x64_intercept_message_header`, cache type and access information.
    pub header: [u8; 48],
    /// Guest-virtual address.
    pub gva: U64,
    /// Guest-physical address.
    pub gpa: U64,
}
const _: () = assert!(offset_of!(MemoryIntercept, gpa) == 56);

/// One entry of a [`CpuidPage`].
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CpuidEntry {
    /// Leaf.
    pub eax_in: U32,
    /// Subleaf.
    pub ecx_in: U32,
    /// XCR0 that the sizes are for.
    pub xcr0_in: U64,
    /// `IA32_XSS` that the sizes are for.
    pub xss_in: U64,
    /// EAX to EDX.
    pub values: [U32; 4],
    /// Zero.
    pub reserved: U64,
}
const _: () = assert!(size_of::<CpuidEntry>() == 48);

/// Entries that a CPUID page has room for.
pub const CPUID_ENTRIES: usize = 64;

/// The CPUID page of a launch (AMD SEV-SNP firmware ABI specification, `SNP_LAUNCH_UPDATE`).
#[derive(Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CpuidPage {
    /// Entries in use.
    pub count: U32,
    /// Zero.
    pub reserved: [U32; 3],
    /// The entries.
    pub entries: [CpuidEntry; CPUID_ENTRIES],
    /// Zero.
    pub rest: [u8; 1008],
}
const _: () = assert!(size_of::<CpuidPage>() == PAGE_BYTES);

/// A structure of zeros, to be filled in.
pub fn zeroed<T: FromZeros>() -> T {
    T::new_zeroed()
}

/// Number of bytes in the 16 bits that a hypercall's argument has for it.
pub fn length(bytes: &[u8]) -> U16 {
    // Inputs and outputs are the structures above: tens of bytes.
    U16::new(u16::try_from(bytes.len()).unwrap_or(u16::MAX))
}
