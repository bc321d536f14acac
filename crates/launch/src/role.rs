//! What the pages of an image are for, by where they are.

/// The role of the page at `gpa` (the map of [`boot_abi`]), for people.
#[must_use]
pub fn of(gpa: u64) -> &'static str {
    match gpa {
        boot_abi::STUB_GPA..boot_abi::STUB_LIMIT => "boot stub",
        boot_abi::PAGE_TABLES_GPA..boot_abi::CONFIG_GPA => "page tables",
        boot_abi::CONFIG_GPA..boot_abi::DSDT_GPA => "configuration",
        boot_abi::DSDT_GPA..boot_abi::PARAMS_GPA => "DSDT",
        boot_abi::PARAMS_GPA..boot_abi::CPUID_GPA => "parameters",
        boot_abi::CPUID_GPA..boot_abi::SECRETS_GPA => "CPUID table",
        boot_abi::SECRETS_GPA..boot_abi::VMSA_GPA => "secrets",
        boot_abi::VMSA_GPA..boot_abi::CC_BLOB_GPA => "save area of vCPU 0",
        boot_abi::CC_BLOB_GPA..boot_abi::MAILBOX_GPA => "confidential computing blob",
        boot_abi::MAILBOX_GPA..boot_abi::GHCB_GPA => "vCPU wake-up mailbox",
        boot_abi::GHCB_GPA..boot_abi::STUB_END => "GHCB",
        boot_abi::RESET_PAGE_GPA..0x1_0000_0000 => "reset vector",
        crate::layout::WINDOW_BASE..crate::layout::VIRTIO_BASE => "kernel, in the shared window",
        boot_abi::STUB_END..crate::layout::LOW_RAM_MAX => "kernel",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::of;

    #[test]
    fn roles_follow_the_map() {
        assert_eq!(of(boot_abi::STUB_GPA), "boot stub");
        assert_eq!(of(boot_abi::STUB_LIMIT), "page tables");
        assert_eq!(of(boot_abi::RESET_PAGE_GPA), "reset vector");
        assert_eq!(of(boot_abi::KERNEL_GPA), "kernel");
        assert_eq!(of(crate::layout::WINDOW_BASE), "kernel, in the shared window");
        assert_eq!(of(0), "other");
        assert_eq!(of(u64::MAX), "other");
    }
}
