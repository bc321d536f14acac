//! KVM's interface, as far as isolated machines use it (Linux `include/uapi/linux/kvm.h` and
//! `arch/x86/include/uapi/asm/kvm.h`).
//!
//! The structures are spelled out here, with every size and offset asserted, because their bytes are what the
//! tests compare: a field that lands elsewhere is a launch with other contents.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::hv::seam::Request;

/// `KVMIO`.
const TYPE: u32 = 0xAE << 8;

const fn io(name: &'static str, number: u32) -> Request {
    Request { name, number: TYPE | number }
}

const fn iow(name: &'static str, number: u32, bytes: u32) -> Request {
    Request { name, number: 1 << 30 | bytes << 16 | TYPE | number }
}

const fn ior(name: &'static str, number: u32, bytes: u32) -> Request {
    Request { name, number: 2 << 30 | bytes << 16 | TYPE | number }
}

const fn iowr(name: &'static str, number: u32, bytes: u32) -> Request {
    Request { name, number: 3 << 30 | bytes << 16 | TYPE | number }
}

pub const CREATE_VM: Request = io("KVM_CREATE_VM", 0x01);
pub const CHECK_EXTENSION: Request = io("KVM_CHECK_EXTENSION", 0x03);
pub const GET_VCPU_MMAP_SIZE: Request = io("KVM_GET_VCPU_MMAP_SIZE", 0x04);
pub const GET_SUPPORTED_CPUID: Request = iowr("KVM_GET_SUPPORTED_CPUID", 0x05, 8);
pub const CREATE_VCPU: Request = io("KVM_CREATE_VCPU", 0x41);
pub const SET_USER_MEMORY_REGION2: Request = iow("KVM_SET_USER_MEMORY_REGION2", 0x49, 160);
pub const IOEVENTFD: Request = iow("KVM_IOEVENTFD", 0x79, 64);
pub const RUN: Request = io("KVM_RUN", 0x80);
pub const SET_REGS: Request = iow("KVM_SET_REGS", 0x82, 144);
pub const GET_SREGS: Request = ior("KVM_GET_SREGS", 0x83, 312);
pub const SET_SREGS: Request = iow("KVM_SET_SREGS", 0x84, 312);
pub const SET_MSRS: Request = iow("KVM_SET_MSRS", 0x89, 8);
pub const SET_CPUID2: Request = iow("KVM_SET_CPUID2", 0x90, 8);
pub const ENABLE_CAP: Request = iow("KVM_ENABLE_CAP", 0xA3, 104);
pub const SIGNAL_MSI: Request = iow("KVM_SIGNAL_MSI", 0xA5, 32);
pub const SET_MEMORY_ATTRIBUTES: Request = iow("KVM_SET_MEMORY_ATTRIBUTES", 0xD2, 32);
pub const CREATE_GUEST_MEMFD: Request = iowr("KVM_CREATE_GUEST_MEMFD", 0xD4, 64);

/// `KVM_MEMORY_ENCRYPT_OP` with the name of the command that goes through it.
pub const fn memory_encrypt_op(command: &'static str) -> Request {
    iowr(command, 0xBA, 8)
}

/// Capabilities, by their number and name.
pub mod cap {
    /// A capability.
    pub type Capability = (u32, &'static str);

    pub const IOEVENTFD: Capability = (36, "KVM_CAP_IOEVENTFD");
    pub const MAX_VCPUS: Capability = (66, "KVM_CAP_MAX_VCPUS");
    pub const TSC_DEADLINE_TIMER: Capability = (72, "KVM_CAP_TSC_DEADLINE_TIMER");
    pub const SIGNAL_MSI: Capability = (77, "KVM_CAP_SIGNAL_MSI");
    pub const SPLIT_IRQCHIP: Capability = (121, "KVM_CAP_SPLIT_IRQCHIP");
    pub const EXIT_HYPERCALL: Capability = (201, "KVM_CAP_EXIT_HYPERCALL");
    pub const USER_MEMORY2: Capability = (231, "KVM_CAP_USER_MEMORY2");
    pub const MEMORY_ATTRIBUTES: Capability = (233, "KVM_CAP_MEMORY_ATTRIBUTES");
    pub const GUEST_MEMFD: Capability = (234, "KVM_CAP_GUEST_MEMFD");
    pub const VM_TYPES: Capability = (235, "KVM_CAP_VM_TYPES");
}

/// `KVM_HC_MAP_GPA_RANGE`: the guest converts memory.
pub const HYPERCALL_MAP_GPA_RANGE: u64 = 12;
/// `KVM_MAP_GPA_RANGE_ENCRYPTED`: to private.
pub const MAP_GPA_RANGE_ENCRYPTED: u64 = 1 << 4;
/// `KVM_MEMORY_ATTRIBUTE_PRIVATE`, and `KVM_MEMORY_EXIT_FLAG_PRIVATE`.
pub const MEMORY_PRIVATE: u64 = 1 << 3;
/// `KVM_MEM_GUEST_MEMFD`.
pub const MEM_GUEST_MEMFD: u32 = 1 << 2;
/// `KVM_IOEVENTFD_FLAG_DATAMATCH`.
pub const IOEVENTFD_DATAMATCH: u32 = 1;

/// Asserts a structure's size and where its fields are.
macro_rules! layout {
    ($type:ty, $size:literal, $($field:ident @ $offset:literal),+) => {
        const _: () = {
            assert!(size_of::<$type>() == $size);
            $(assert!(std::mem::offset_of!($type, $field) == $offset);)+
        };
    };
}
pub(super) use layout;

/// `struct kvm_enable_cap`.
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct EnableCap {
    pub cap: u32,
    pub flags: u32,
    pub args: [u64; 4],
    pub pad: [u8; 64],
}
layout!(EnableCap, 104, cap @ 0, flags @ 4, args @ 8, pad @ 40);

/// `struct kvm_userspace_memory_region2`. The pointer to the shared memory is at 24.
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MemoryRegion2 {
    pub slot: u32,
    pub flags: u32,
    pub guest_phys_addr: u64,
    pub memory_size: u64,
    pub userspace_addr: u64,
    pub guest_memfd_offset: u64,
    pub guest_memfd: u32,
    pub pad1: u32,
    pub pad2: [u64; 14],
}
layout!(MemoryRegion2, 160, slot @ 0, flags @ 4, guest_phys_addr @ 8, memory_size @ 16, userspace_addr @ 24,
    guest_memfd_offset @ 32, guest_memfd @ 40, pad2 @ 48);

/// `struct kvm_create_guest_memfd`.
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CreateGuestMemfd {
    pub size: u64,
    pub flags: u64,
    pub reserved: [u64; 6],
}
layout!(CreateGuestMemfd, 64, size @ 0, flags @ 8, reserved @ 16);

/// `struct kvm_memory_attributes`.
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MemoryAttributes {
    pub address: u64,
    pub size: u64,
    pub attributes: u64,
    pub flags: u64,
}
layout!(MemoryAttributes, 32, address @ 0, size @ 8, attributes @ 16, flags @ 24);

/// `struct kvm_msi`.
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Msi {
    pub address_lo: u32,
    pub address_hi: u32,
    pub data: u32,
    pub flags: u32,
    pub devid: u32,
    pub pad: [u8; 12],
}
layout!(Msi, 32, address_lo @ 0, address_hi @ 4, data @ 8, flags @ 12, devid @ 16);

/// `struct kvm_ioeventfd`.
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IoEventFd {
    pub datamatch: u64,
    pub addr: u64,
    pub len: u32,
    pub fd: i32,
    pub flags: u32,
    pub pad: [u8; 36],
}
layout!(IoEventFd, 64, datamatch @ 0, addr @ 8, len @ 16, fd @ 20, flags @ 24);

/// Head of `struct kvm_cpuid2`; `struct kvm_cpuid_entry2` of 40 bytes each follow.
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CpuidHead {
    pub nent: u32,
    pub padding: u32,
}
layout!(CpuidHead, 8, nent @ 0, padding @ 4);

/// Head of `struct kvm_msrs`; `struct kvm_msr_entry` of 16 bytes each follow.
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MsrsHead {
    pub nmsrs: u32,
    pub pad: u32,
}
layout!(MsrsHead, 8, nmsrs @ 0, pad @ 4);

/// Where `struct kvm_run` has what an exit tells.
pub mod run {
    use std::mem::offset_of;

    use kvm_bindings::{kvm_run, kvm_run__bindgen_ty_1 as union};

    pub const EXIT_REASON: usize = 8;
    /// The union of what the reasons tell.
    pub const UNION: usize = 32;

    const _: () = assert!(offset_of!(kvm_run, exit_reason) == EXIT_REASON);
    const _: () = assert!(offset_of!(kvm_run, __bindgen_anon_1) == UNION);
    const _: () = assert!(size_of::<union>() == 256);

    pub const EXIT_UNKNOWN: u32 = 0;
    pub const EXIT_IO: u32 = 2;
    pub const EXIT_HYPERCALL: u32 = 3;
    pub const EXIT_MMIO: u32 = 6;
    pub const EXIT_SHUTDOWN: u32 = 8;
    pub const EXIT_FAIL_ENTRY: u32 = 9;
    pub const EXIT_INTR: u32 = 10;
    pub const EXIT_INTERNAL_ERROR: u32 = 17;
    pub const EXIT_SYSTEM_EVENT: u32 = 24;
    pub const EXIT_IOAPIC_EOI: u32 = 26;
    pub const EXIT_MEMORY_FAULT: u32 = 39;
    pub const EXIT_TDX: u32 = 40;
    pub const EXIT_SNP_REQ_CERTS: u32 = 43;

    pub const SYSTEM_EVENT_SEV_TERM: u32 = 6;
    pub const SYSTEM_EVENT_TDX_FATAL: u32 = 7;
}
