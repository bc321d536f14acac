//! The processor that a virtual CPU shows: what KVM supports, with the machine's own topology.

use kvm_bindings::CpuId;

use crate::hv::HvError;

/// One entry's registers and key, apart from the list that KVM wants.
const LEAF_FEATURES: u32 = 0x1;
const LEAF_TOPOLOGY: u32 = 0xB;
const LEAF_TOPOLOGY_V2: u32 = 0x1F;
const LEAF_AMD_TOPOLOGY: u32 = 0x8000_001E;
const LEAF_AMD_SIZES: u32 = 0x8000_0008;

const FEATURE_TSC_DEADLINE: u32 = 1 << 24;
const FEATURE_HYPERVISOR: u32 = 1 << 31;
const FEATURE_HTT: u32 = 1 << 28;

/// Level types of leaf 0xB.
const LEVEL_SMT: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// KVM's own features (Linux `arch/x86/include/uapi/asm/kvm_para.h`): no delay after port accesses, the clock
/// by its newer registers, and that this clock never jumps.
const LEAF_KVM_FEATURES: u32 = 0x4000_0001;
const KVM_FEATURES_ISOLATED: u32 = 1 << 1 | 1 << 3 | 1 << 24;

/// What of it an isolated guest is shown: no feature by which the host writes into the guest's memory, save the
/// clock.
pub fn for_isolated(supported: &CpuId) -> CpuId {
    let mut cpuid = supported.clone();
    let features = cpuid.as_mut_slice().iter_mut().filter(|entry| entry.function == LEAF_KVM_FEATURES);
    features.for_each(|entry| entry.eax &= KVM_FEATURES_ISOLATED);
    cpuid
}

/// Adapts what KVM supports to virtual CPU `id` of `count`: one package of single-threaded cores.
pub fn for_vcpu(supported: &CpuId, id: u32, count: u32) -> Result<CpuId, HvError> {
    let mut cpuid = supported.clone();
    let core_bits = count.next_power_of_two().trailing_zeros();
    for entry in cpuid.as_mut_slice() {
        match (entry.function, entry.index) {
            (LEAF_FEATURES, _) => {
                entry.ebx = entry.ebx & 0xFFFF | count.min(0xFF) << 16 | id << 24;
                entry.ecx |= FEATURE_TSC_DEADLINE | FEATURE_HYPERVISOR;
                entry.edx = if count > 1 { entry.edx | FEATURE_HTT } else { entry.edx & !FEATURE_HTT };
            }
            (LEAF_TOPOLOGY | LEAF_TOPOLOGY_V2, level) => {
                let (shift, processors, kind) = match level {
                    0 => (0, 1, LEVEL_SMT),
                    1 => (core_bits, count, LEVEL_CORE),
                    _ => (0, 0, 0),
                };
                entry.eax = shift;
                entry.ebx = processors;
                entry.ecx = level | kind << 8;
                entry.edx = id;
            }
            (LEAF_AMD_TOPOLOGY, _) => {
                entry.eax = id;
                entry.ebx = id;
                entry.ecx = 0;
            }
            (LEAF_AMD_SIZES, _) => {
                entry.ecx = entry.ecx & !0xF0FF | core_bits << 12 | (count - 1).min(0xFF);
            }
            _ => {}
        }
    }
    for leaf in [LEAF_TOPOLOGY, LEAF_TOPOLOGY_V2] {
        add_missing_topology_level(&mut cpuid, leaf, id, count, core_bits)?;
    }
    Ok(cpuid)
}

/// KVM lists the topology leaves once; their second level has to be there for the first to mean anything.
fn add_missing_topology_level(
    cpuid: &mut CpuId,
    leaf: u32,
    id: u32,
    count: u32,
    core_bits: u32,
) -> Result<(), HvError> {
    let at =
        |level| move |entry: &&kvm_bindings::kvm_cpuid_entry2| entry.function == leaf && entry.index == level;
    let Some(first) = cpuid.as_slice().iter().find(at(0)).copied() else { return Ok(()) };
    if cpuid.as_slice().iter().any(|entry| at(1)(&entry)) {
        return Ok(());
    }
    let second = kvm_bindings::kvm_cpuid_entry2 {
        index: 1,
        eax: core_bits,
        ebx: count,
        ecx: 1 | LEVEL_CORE << 8,
        edx: id,
        ..first
    };
    cpuid.push(second).map_err(|_| HvError::Cpuid)
}

#[cfg(test)]
mod tests {
    use kvm_bindings::kvm_cpuid_entry2;

    use super::*;

    fn entry(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid.as_slice().iter().find(|entry| entry.function == function && entry.index == index).unwrap()
    }

    #[test]
    fn topology_names_the_processor() {
        let leaf = |function| kvm_cpuid_entry2 { function, ..Default::default() };
        let supported =
            CpuId::from_entries(&[1, LEAF_TOPOLOGY, LEAF_TOPOLOGY_V2, LEAF_AMD_TOPOLOGY].map(leaf)).unwrap();
        let cpuid = for_vcpu(&supported, 2, 3).unwrap();
        assert_eq!(entry(&cpuid, 1, 0).ebx, 3 << 16 | 2 << 24);
        assert_ne!(entry(&cpuid, 1, 0).ecx & FEATURE_TSC_DEADLINE, 0);
        assert_eq!(entry(&cpuid, LEAF_TOPOLOGY, 0).ecx, LEVEL_SMT << 8);
        for leaf in [LEAF_TOPOLOGY, LEAF_TOPOLOGY_V2] {
            let cores = entry(&cpuid, leaf, 1);
            assert_eq!((cores.eax, cores.ebx, cores.ecx, cores.edx), (2, 3, 1 | LEVEL_CORE << 8, 2));
        }
        assert_eq!(entry(&cpuid, LEAF_AMD_TOPOLOGY, 0).eax, 2);
    }
}
