//! A virtual machine of KVM: memory slots, interrupts, kicks.
#![allow(unsafe_code, reason = "handing host memory to KVM is an unsafe call")]

use std::io;
use std::sync::Arc;

use kvm_bindings::{
    CpuId, KVM_CAP_SPLIT_IRQCHIP, KVM_MAX_CPUID_ENTRIES, kvm_enable_cap, kvm_msi, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VmFd};
use launch::layout::IOAPIC_PINS;
use launch::snp::Backend;
use vm_memory::MmapRegion;
use vmm_sys_util::eventfd::EventFd;

use super::vcpu::KvmVcpu;
use super::{call, cpuid};
use crate::hv::{self, HvError, KVM_DEVICE, Launch, Vcpu};

/// Three pages below the BIOS area that Intel's real-mode emulation wants; never RAM in this layout.
const TSS_ADDRESS: usize = 0xFFFB_D000;

/// A virtual machine.
pub struct Vm {
    fd: VmFd,
    supported: CpuId,
    vcpus: u32,
    /// Memory that KVM has been told of: it must outlive the slots.
    slots: std::sync::Mutex<Vec<Option<Arc<MmapRegion>>>>,
}

impl std::fmt::Debug for Vm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vm").field("vcpus", &self.vcpus).finish_non_exhaustive()
    }
}

impl Vm {
    /// Creates a machine for `vcpus` virtual CPUs.
    ///
    /// # Errors
    /// When KVM is missing, lacks something, or refuses.
    pub fn create(vcpus: u32) -> Result<Self, HvError> {
        let kvm = Kvm::new().map_err(|errno| HvError::Open {
            path: KVM_DEVICE,
            source: io::Error::from_raw_os_error(errno.errno()),
        })?;
        let needed = [
            (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP"),
            (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI"),
            (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
            (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
            (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
            (Cap::TscDeadlineTimer, "KVM_CAP_TSC_DEADLINE_TIMER"),
        ];
        if let Some((_, name)) = needed.into_iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
            return Err(HvError::Capability(name));
        }
        let supported =
            kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(call("KVM_GET_SUPPORTED_CPUID"))?;
        let fd = kvm.create_vm().map_err(call("KVM_CREATE_VM"))?;
        fd.set_tss_address(TSS_ADDRESS).map_err(call("KVM_SET_TSS_ADDR"))?;
        let mut split = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
        split.args[0] = u64::from(IOAPIC_PINS);
        fd.enable_cap(&split).map_err(call("KVM_ENABLE_CAP (split irqchip)"))?;
        Ok(Self { fd, supported, vcpus, slots: std::sync::Mutex::default() })
    }

    fn set_region(&self, slot: u32, gpa: u64, size: u64, host: u64) -> Result<(), HvError> {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: gpa,
            memory_size: size,
            userspace_addr: host,
        };
        // SAFETY: the host range is one whole mapping that `slots` keeps alive until the slot is emptied,
        // and guests may write to it at any time: it is only ever accessed as volatile memory.
        unsafe { self.fd.set_user_memory_region(region) }.map_err(call("KVM_SET_USER_MEMORY_REGION"))
    }
}

impl hv::Vm for Vm {
    fn backend(&self) -> Backend {
        Backend::Kvm
    }

    fn map(&self, gpa: u64, memory: Arc<MmapRegion>) -> Result<u32, HvError> {
        let mut slots = self.slots.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let slot = u32::try_from(slots.len()).unwrap_or(u32::MAX);
        self.set_region(slot, gpa, memory.size() as u64, memory.as_ptr().expose_provenance() as u64)?;
        slots.push(Some(memory));
        Ok(slot)
    }

    fn map_private(&self, gpa: u64, shared: Arc<MmapRegion>) -> Result<u32, HvError> {
        self.map(gpa, shared)
    }

    fn unmap(&self, slot: u32) -> Result<(), HvError> {
        let mut slots = self.slots.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let entry = usize::try_from(slot).ok().and_then(|index| slots.get_mut(index));
        if let Some(memory) = entry.filter(|memory| memory.is_some()) {
            self.set_region(slot, 0, 0, 0)?;
            *memory = None;
        }
        Ok(())
    }

    fn signal_on_write(&self, gpa: u64, value: u32, event: &EventFd) -> Result<(), HvError> {
        let address = IoEventAddress::Mmio(gpa);
        self.fd.register_ioevent(event, &address, value).map_err(call("KVM_IOEVENTFD"))
    }

    fn send_msi(&self, address: u64, data: u32) -> Result<(), HvError> {
        let [low, high] = [address & 0xFFFF_FFFF, address >> 32].map(|half| u32::try_from(half).unwrap_or(0));
        let message = kvm_msi { address_lo: low, address_hi: high, data, ..Default::default() };
        self.fd.signal_msi(message).map(|_| ()).map_err(call("KVM_SIGNAL_MSI"))
    }

    fn create_vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>, HvError> {
        let fd = self.fd.create_vcpu(u64::from(id)).map_err(call("KVM_CREATE_VCPU"))?;
        let cpuid = cpuid::for_vcpu(&self.supported, id, self.vcpus)?;
        Ok(Box::new(KvmVcpu::new(fd, &cpuid)?))
    }

    fn launch(&self, launch: &Launch<'_>, vcpus: &mut [Box<dyn Vcpu>]) -> Result<(), HvError> {
        // The image lies in RAM, and the other virtual CPUs wait for the first to start them.
        vcpus.iter_mut().take(1).try_for_each(|first| first.set_start(&launch.image.start))
    }
}
