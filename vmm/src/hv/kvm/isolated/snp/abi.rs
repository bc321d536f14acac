//! SEV-SNP commands of `KVM_MEMORY_ENCRYPT_OP` (Linux `arch/x86/include/uapi/asm/kvm.h`,
//! `Documentation/virt/kvm/x86/amd-memory-encryption.rst`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::super::abi::layout;

/// A command: its number and name.
pub type Command = (u32, &'static str);

pub const INIT2: Command = (22, "KVM_SEV_INIT2");
pub const LAUNCH_START: Command = (100, "KVM_SEV_SNP_LAUNCH_START");
pub const LAUNCH_UPDATE: Command = (101, "KVM_SEV_SNP_LAUNCH_UPDATE");
pub const LAUNCH_FINISH: Command = (102, "KVM_SEV_SNP_LAUNCH_FINISH");
/// Since Linux 6.20.
pub const ENABLE_REQ_CERTS: Command = (103, "KVM_SEV_SNP_ENABLE_REQ_CERTS");

/// Version 2 of the GHCB protocol: the first with SEV-SNP.
pub const GHCB_VERSION: u16 = 2;
/// `SEV_RET_INVALID_PARAM`: what the firmware answers to a CPUID page that it has corrected.
pub const STATUS_INVALID_PARAM: u32 = 0x16;

/// `struct kvm_sev_cmd`.
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SevCmd {
    pub id: u32,
    pub pad0: u32,
    pub data: u64,
    pub error: u32,
    pub sev_fd: u32,
}
layout!(SevCmd, 24, id @ 0, pad0 @ 4, data @ 8, error @ 16, sev_fd @ 20);
/// Offset of the pointer in [`SevCmd`].
pub const SEV_CMD_DATA: usize = 8;

/// `struct kvm_sev_init`.
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SevInit {
    pub vmsa_features: u64,
    pub flags: u32,
    pub ghcb_version: u16,
    pub pad1: u16,
    pub pad2: [u32; 8],
}
layout!(SevInit, 48, vmsa_features @ 0, flags @ 8, ghcb_version @ 12, pad1 @ 14, pad2 @ 16);

/// `struct kvm_sev_snp_launch_start`.
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LaunchStart {
    pub policy: u64,
    pub gosvw: [u8; 16],
    pub flags: u16,
    pub pad0: [u8; 6],
    pub pad1: [u64; 4],
}
layout!(LaunchStart, 64, policy @ 0, gosvw @ 8, flags @ 24, pad0 @ 26, pad1 @ 32);

/// `struct kvm_sev_snp_launch_update`. The pointer to the pages is at 8.
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LaunchUpdate {
    pub gfn_start: u64,
    pub uaddr: u64,
    pub len: u64,
    pub page_type: u8,
    pub pad0: u8,
    pub flags: u16,
    pub pad1: u32,
    pub pad2: [u64; 4],
}
layout!(LaunchUpdate, 64, gfn_start @ 0, uaddr @ 8, len @ 16, page_type @ 24, flags @ 26, pad1 @ 28, pad2 @ 32);
/// Offset of the pointer in [`LaunchUpdate`].
pub const LAUNCH_UPDATE_UADDR: usize = 8;

/// `struct kvm_sev_snp_launch_finish`. The pointers to the ID block and its authentication are at 0 and 8.
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LaunchFinish {
    pub id_block_uaddr: u64,
    pub id_auth_uaddr: u64,
    pub id_block_en: u8,
    pub auth_key_en: u8,
    pub vcek_disabled: u8,
    pub host_data: [u8; 32],
    pub pad0: [u8; 3],
    pub flags: u16,
    pub pad1: [u64; 4],
}
layout!(LaunchFinish, 88, id_block_uaddr @ 0, id_auth_uaddr @ 8, id_block_en @ 16, auth_key_en @ 17,
    vcek_disabled @ 18, host_data @ 19, pad0 @ 51, flags @ 54, pad1 @ 56);
/// Offset of the pointer to the ID block in [`LaunchFinish`].
pub const LAUNCH_FINISH_ID_BLOCK: usize = 0;
/// Offset of the pointer to the ID block's authentication in [`LaunchFinish`].
pub const LAUNCH_FINISH_ID_AUTH: usize = 8;
