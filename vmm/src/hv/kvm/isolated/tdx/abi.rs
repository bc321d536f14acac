//! TDX commands of `KVM_MEMORY_ENCRYPT_OP` (Linux `arch/x86/include/uapi/asm/kvm.h`,
//! `Documentation/virt/kvm/x86/intel-tdx.rst`), and what `KVM_EXIT_TDX` tells.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::super::abi::layout;

/// A command: its number and name.
pub type Command = (u32, &'static str);

pub const CAPABILITIES: Command = (0, "KVM_TDX_CAPABILITIES");
pub const INIT_VM: Command = (1, "KVM_TDX_INIT_VM");
pub const INIT_VCPU: Command = (2, "KVM_TDX_INIT_VCPU");
pub const INIT_MEM_REGION: Command = (3, "KVM_TDX_INIT_MEM_REGION");
pub const FINALIZE_VM: Command = (4, "KVM_TDX_FINALIZE_VM");

/// `KVM_TDX_MEASURE_MEMORY_REGION`: `INIT_MEM_REGION` extends the measurement by the pages' content.
pub const MEASURE_MEMORY_REGION: u32 = 1;

/// `struct kvm_tdx_cmd`.
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TdxCmd {
    pub id: u32,
    pub flags: u32,
    pub data: u64,
    pub hw_error: u64,
}
layout!(TdxCmd, 24, id @ 0, flags @ 4, data @ 8, hw_error @ 16);
/// Offset of the pointer in [`TdxCmd`].
pub const TDX_CMD_DATA: usize = 8;

/// Head of `struct kvm_tdx_capabilities`; `struct kvm_cpuid2` follows.
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Capabilities {
    pub supported_attrs: u64,
    pub supported_xfam: u64,
    pub kernel_tdvmcallinfo_1_r11: u64,
    pub user_tdvmcallinfo_1_r11: u64,
    pub kernel_tdvmcallinfo_1_r12: u64,
    pub user_tdvmcallinfo_1_r12: u64,
    pub reserved: [u64; 250],
}
layout!(Capabilities, 2048, supported_attrs @ 0, supported_xfam @ 8, user_tdvmcallinfo_1_r11 @ 24, reserved @ 48);

/// Head of `struct kvm_tdx_init_vm`; `struct kvm_cpuid2` follows.
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InitVm {
    pub attributes: u64,
    pub xfam: u64,
    pub mrconfigid: [u8; 48],
    pub mrowner: [u8; 48],
    pub mrownerconfig: [u8; 48],
    pub reserved: [u64; 12],
}
layout!(InitVm, 256, attributes @ 0, xfam @ 8, mrconfigid @ 16, mrowner @ 64, mrownerconfig @ 112, reserved @ 160);

/// `struct kvm_tdx_init_mem_region`.
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InitMemRegion {
    pub source_addr: u64,
    pub gpa: u64,
    pub nr_pages: u64,
}
layout!(InitMemRegion, 24, source_addr @ 0, gpa @ 8, nr_pages @ 16);
/// Offset of the pointer in [`InitMemRegion`].
pub const INIT_MEM_REGION_SOURCE: usize = 0;

/// `TDG.VP.VMCALL<GetTdVmCallInfo>`.
pub const TDVMCALL_GET_TD_VM_CALL_INFO: u64 = 0x10000;
/// `TDG.VP.VMCALL<GetQuote>`: the address of a buffer and its size.
pub const TDVMCALL_GET_QUOTE: u64 = 0x10002;
/// What `GetTdVmCallInfo` says of `GetQuote` in its first register.
pub const TDVMCALL_INFO_GET_QUOTE: u64 = 1;
/// What a request gets whose operands are wrong (`TDVMCALL_STATUS_INVALID_OPERAND`).
pub const TDVMCALL_INVALID_OPERAND: u64 = 0x8000_0000_0000_0000;
/// What a request gets that this program does not serve (`TDVMCALL_STATUS_SUBFUNC_UNSUPPORTED`).
pub const TDVMCALL_UNSUPPORTED: u64 = 0x8000_0000_0000_0003;
