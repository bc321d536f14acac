//! Numbers and sizes here are those of Microsoft's own bindings.
#![allow(unsafe_code, reason = "the bindings have unions, which only unsafe code reads")]

use std::mem::{offset_of, size_of};

use mshv_bindings as theirs;

use super::*;

#[test]
fn ioctl_numbers_agree() {
    let pairs = [
        (abi::CREATE_PARTITION, mshv_ioctls::MSHV_CREATE_PARTITION()),
        (abi::INITIALIZE_PARTITION, mshv_ioctls::MSHV_INITIALIZE_PARTITION()),
        (abi::CREATE_VP, mshv_ioctls::MSHV_CREATE_VP()),
        (abi::SET_GUEST_MEMORY, mshv_ioctls::MSHV_SET_GUEST_MEMORY()),
        (abi::ROOT_HVCALL, mshv_ioctls::MSHV_ROOT_HVCALL()),
        (abi::MODIFY_GPA_HOST_ACCESS, mshv_ioctls::MSHV_MODIFY_GPA_HOST_ACCESS()),
        (abi::IMPORT_ISOLATED_PAGES, mshv_ioctls::MSHV_IMPORT_ISOLATED_PAGES()),
        (abi::COMPLETE_ISOLATED_IMPORT, mshv_ioctls::MSHV_COMPLETE_ISOLATED_IMPORT()),
        (abi::ISSUE_PSP_GUEST_REQUEST, mshv_ioctls::MSHV_ISSUE_PSP_GUEST_REQUEST()),
        (abi::SEV_SNP_AP_CREATE, mshv_ioctls::MSHV_SEV_SNP_AP_CREATE()),
        (abi::RUN_VP, mshv_ioctls::MSHV_RUN_VP()),
    ];
    for (ours, theirs) in pairs {
        assert_eq!(u64::from(ours.number), theirs, "{}", ours.name);
    }
}

#[test]
fn structures_agree() {
    let sizes = [
        (size_of::<abi::CreatePartition>(), size_of::<theirs::mshv_create_partition_v2>()),
        (size_of::<abi::MemoryRegion>(), size_of::<theirs::mshv_user_mem_region>()),
        (size_of::<abi::PageList>(), size_of::<theirs::mshv_import_isolated_pages>()),
        (size_of::<abi::PageList>(), size_of::<theirs::mshv_modify_gpa_host_access>()),
        (size_of::<abi::LaunchFinish>(), size_of::<theirs::mshv_complete_isolated_import>()),
        (size_of::<abi::Pair>(), size_of::<theirs::mshv_issue_psp_guest_request>()),
        (size_of::<abi::Pair>(), size_of::<theirs::mshv_sev_snp_ap_create>()),
        (size_of::<abi::Hypercall>(), size_of::<theirs::mshv_root_hvcall>()),
        (size_of::<abi::PropertyName>(), size_of::<theirs::hv_input_get_partition_property>()),
        (size_of::<abi::Property>(), size_of::<theirs::hv_input_set_partition_property>()),
        (
            size_of::<abi::Register>(),
            size_of::<theirs::hv_input_set_vp_registers>() + size_of::<theirs::hv_register_assoc>(),
        ),
        (size_of::<abi::Interrupt>(), size_of::<theirs::hv_input_assert_virtual_interrupt>()),
        (
            size_of::<abi::CpuidQuery>(),
            size_of::<theirs::hv_input_get_vp_cpuid_values>() + size_of::<theirs::hv_cpuid_leaf_info>(),
        ),
        (size_of::<abi::Message>(), size_of::<theirs::hv_message>()),
        (size_of::<abi::AttributeIntercept>(), size_of::<theirs::hv_x64_gpa_attribute_intercept_message>()),
        (size_of::<abi::VmgexitIntercept>(), size_of::<theirs::hv_x64_vmgexit_intercept_message>()),
        (
            offset_of!(abi::MemoryIntercept, gpa),
            offset_of!(theirs::hv_x64_memory_intercept_message, guest_physical_address),
        ),
        (offset_of!(abi::LaunchFinish, host_data), offset_of!(theirs::hv_psp_launch_finish_data, host_data)),
        (offset_of!(abi::LaunchFinish, id_auth), offset_of!(theirs::hv_psp_launch_finish_data, id_auth_info)),
        (abi::ID_BLOCK_POLICY, offset_of!(theirs::hv_snp_id_block, policy)),
        (
            offset_of!(abi::VmgexitIntercept, ghcb_msr),
            offset_of!(theirs::hv_x64_vmgexit_intercept_message, ghcb_msr),
        ),
    ];
    for (index, (ours, theirs)) in sizes.into_iter().enumerate() {
        assert_eq!(ours, theirs, "pair {index}");
    }
}

#[test]
fn codes_agree() {
    use theirs::*;
    let pairs = [
        (
            abi::SYNTHETIC_FEATURES.code,
            hv_partition_property_code_HV_PARTITION_PROPERTY_SYNTHETIC_PROC_FEATURES,
        ),
        (abi::TIME_FREEZE.code, hv_partition_property_code_HV_PARTITION_PROPERTY_TIME_FREEZE),
        (abi::ISOLATION_STATE.code, hv_partition_property_code_HV_PARTITION_PROPERTY_ISOLATION_STATE),
        (abi::ISOLATION_POLICY.code, hv_partition_property_code_HV_PARTITION_PROPERTY_ISOLATION_POLICY),
        (
            abi::UNIMPLEMENTED_MSR_ACTION.code,
            hv_partition_property_code_HV_PARTITION_PROPERTY_UNIMPLEMENTED_MSR_ACTION,
        ),
        (
            abi::SEV_VMGEXIT_OFFLOADS.code,
            hv_partition_property_code_HV_PARTITION_PROPERTY_SEV_VMGEXIT_OFFLOADS,
        ),
        (
            abi::PROCESSOR_FEATURES[0].code,
            hv_partition_property_code_HV_PARTITION_PROPERTY_PROCESSOR_FEATURES0,
        ),
        (
            abi::PROCESSOR_FEATURES[1].code,
            hv_partition_property_code_HV_PARTITION_PROPERTY_PROCESSOR_FEATURES1,
        ),
        (abi::HVCALL_GET_PARTITION_PROPERTY.into(), HVCALL_GET_PARTITION_PROPERTY),
        (abi::HVCALL_SET_PARTITION_PROPERTY.into(), HVCALL_SET_PARTITION_PROPERTY),
        (abi::HVCALL_SET_VP_REGISTERS.into(), HVCALL_SET_VP_REGISTERS),
        (abi::HVCALL_ASSERT_VIRTUAL_INTERRUPT.into(), HVCALL_ASSERT_VIRTUAL_INTERRUPT),
        (abi::HVCALL_GET_VP_CPUID_VALUES.into(), HVCALL_GET_VP_CPUID_VALUES),
        (abi::REGISTER_GHCB, hv_register_name_HV_X64_REGISTER_GHCB),
        (abi::REGISTER_SEV_CONTROL, hv_register_name_HV_X64_REGISTER_SEV_CONTROL),
        (abi::REGISTER_SEV_GHCB_GPA, hv_register_name_HV_X64_REGISTER_SEV_GHCB_GPA),
        (abi::REGISTER_SEV_DOORBELL_GPA, hv_register_name_HV_X64_REGISTER_SEV_DOORBELL_GPA),
        (abi::HVMSG_UNMAPPED_GPA, hv_message_type_HVMSG_UNMAPPED_GPA),
        (abi::HVMSG_GPA_INTERCEPT, hv_message_type_HVMSG_GPA_INTERCEPT),
        (abi::HVMSG_UNACCEPTED_GPA, hv_message_type_HVMSG_UNACCEPTED_GPA),
        (abi::HVMSG_GPA_ATTRIBUTE_INTERCEPT, hv_message_type_HVMSG_GPA_ATTRIBUTE_INTERCEPT),
        (abi::HVMSG_UNRECOVERABLE_EXCEPTION, hv_message_type_HVMSG_UNRECOVERABLE_EXCEPTION),
        (abi::HVMSG_X64_APIC_EOI, hv_message_type_HVMSG_X64_APIC_EOI),
        (abi::HVMSG_X64_SEV_VMGEXIT_INTERCEPT, hv_message_type_HVMSG_X64_SEV_VMGEXIT_INTERCEPT),
        (
            u32::from(abi::HOST_ACCESS_ACQUIRE),
            1 << MSHV_GPA_HOST_ACCESS_BIT_ACQUIRE
                | 1 << MSHV_GPA_HOST_ACCESS_BIT_READABLE
                | 1 << MSHV_GPA_HOST_ACCESS_BIT_WRITABLE,
        ),
        (u32::from(abi::MEMORY_UNMAP), 1 << MSHV_SET_MEM_BIT_UNMAP),
        (
            u32::from(abi::MEMORY_READ_WRITE_EXECUTE),
            1 << MSHV_SET_MEM_BIT_WRITABLE | 1 << MSHV_SET_MEM_BIT_EXECUTABLE,
        ),
    ];
    for (index, (ours, theirs)) in pairs.into_iter().enumerate() {
        assert_eq!(ours, theirs, "pair {index}");
    }
    assert_eq!(abi::GHCB_MAP_OFFSET, u64::from(MSHV_VP_MMAP_OFFSET_GHCB) * abi::PAGE);
}

#[test]
fn defaults_agree() {
    let offloads = theirs::get_default_vmgexit_offload_features();
    // SAFETY: both views of the union are 64 bits, and all of their values are valid.
    assert_eq!(unsafe { offloads.as_uint64 }, abi::OFFLOADS);
    let isolated = [
        theirs::MSHV_ISOLATED_PAGE_NORMAL,
        theirs::MSHV_ISOLATED_PAGE_VMSA,
        theirs::MSHV_ISOLATED_PAGE_ZERO,
        theirs::MSHV_ISOLATED_PAGE_UNMEASURED,
        theirs::MSHV_ISOLATED_PAGE_SECRETS,
        theirs::MSHV_ISOLATED_PAGE_CPUID,
    ];
    assert_eq!(isolated, [0, 1, 2, 3, 4, 5]);
    assert_eq!(theirs::get_sev_control_register(VMSA_GPA / 4096), VMSA_GPA | 1);
}
