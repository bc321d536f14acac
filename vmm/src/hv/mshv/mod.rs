//! SEV-SNP on the Microsoft Hypervisor, through Linux's `/dev/mshv`.
//!
//! A launch: make a partition that is isolated by SEV-SNP, take its memory, make its virtual processors, declare
//! it secure, hand the memory over (from then on the host cannot touch it), import the image's private pages in
//! the order of their addresses, and finish. Nothing has run before that: time stands still until then.
//!
//! Afterwards the hypervisor answers CPUID, model-specific registers and page-state changes; everything else
//! that the guest asks for by `VMGEXIT` comes here. Pages that the guest shares are acquired when the hypervisor
//! says so or a device needs them, and released when the guest takes them back.
//!
//! All calls go through [`seam`](crate::hv::seam): there is no unsafe code here.

mod abi;
mod cpuid;
mod ghcb;
mod launch;
mod memory;
mod partition;
#[cfg(test)]
mod tests;
mod vcpu;

use std::io::ErrorKind;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use ::launch::snp::Backend;
use vm_memory::MmapRegion;
use vmm_sys_util::eventfd::EventFd;
use zerocopy::IntoBytes as _;

use self::launch::Stage;
use self::partition::{Call, Partition};
use self::vcpu::MshvVcpu;
use super::seam::{Argument, Kernel};
use super::{HvError, Launch, Vcpu, Vm};

/// The device.
const DEVICE: &str = "/dev/mshv";

/// A machine: a partition of the hypervisor.
#[derive(Debug)]
pub struct MshvVm {
    partition: Arc<Partition>,
    guest_policy: u64,
    stage: Stage,
}

impl MshvVm {
    /// Makes a machine for `vcpus` virtual CPUs that is isolated by SEV-SNP under `guest_policy`.
    ///
    /// # Errors
    /// When there is no such hypervisor, or it refuses something.
    pub fn create(kernel: Arc<dyn Kernel>, vcpus: u32, guest_policy: u64) -> Result<Self, HvError> {
        let device = kernel.open(c"/dev/mshv").map_err(|source| HvError::Open { path: DEVICE, source })?;
        let fd = create_partition(&*kernel, device.as_fd())?;
        let partition = Arc::new(Partition::new(kernel, fd, vcpus));
        partition.set_property(abi::SYNTHETIC_FEATURES, abi::OFFERED_SYNTHETIC_FEATURES)?;
        partition.command(abi::INITIALIZE_PARTITION)?;
        partition.set_property(abi::ISOLATION_POLICY, guest_policy)?;
        partition.set_property(abi::SEV_VMGEXIT_OFFLOADS, abi::OFFLOADS)?;
        partition.set_property(abi::UNIMPLEMENTED_MSR_ACTION, abi::MSR_IGNORE_WRITE_READ_ZERO)?;
        partition.set_property(abi::TIME_FREEZE, 1)?;
        Ok(Self { partition, guest_policy, stage: Stage::default() })
    }

    /// Creates virtual processor `id`.
    fn vcpu(&self, id: u32) -> Result<MshvVcpu, HvError> {
        MshvVcpu::create(Arc::clone(&self.partition), id)
    }
}

/// Makes a partition with the host's processor features.
fn create_partition(kernel: &dyn Kernel, device: BorrowedFd<'_>) -> Result<OwnedFd, HvError> {
    let mut argument: abi::CreatePartition = abi::zeroed();
    argument.flags = abi::PARTITION_FLAGS.into();
    argument.isolation = abi::ISOLATION_SNP.into();
    argument.feature_banks = 2.into();
    let banks = argument.hidden_features.iter_mut().zip(abi::PROCESSOR_FEATURES).zip(abi::RESERVED_FEATURES);
    for ((hidden, property), reserved) in banks {
        let mut name: abi::PropertyName = abi::zeroed();
        name.code = property.code.into();
        let mut features = [0; 8];
        let call = Call::once(abi::HVCALL_GET_PARTITION_PROPERTY, property.call);
        partition::hypercall(kernel, device, call, &mut name, &mut features)?;
        *hidden = (!u64::from_le_bytes(features) | reserved).into();
    }
    argument.hidden_xsave = (!abi::XSAVE_FEATURES).into();
    let request = abi::CREATE_PARTITION;
    loop {
        let structure = Argument::Structure(argument.as_mut_bytes(), &mut []);
        match kernel.create(device, request, structure) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            created => return created.map_err(partition::failed(request.name)),
        }
    }
}

impl Vm for MshvVm {
    fn backend(&self) -> Backend {
        Backend::Mshv
    }

    // All memory of a partition is the guest's alone until it shares a page, so nothing can be shared from the
    // start.
    fn map(&self, gpa: u64, memory: Arc<MmapRegion>) -> Result<u32, HvError> {
        Err(HvError::Refused {
            what: "image on MSHV",
            expected: "one without shared pages (layout `measured`)".into(),
            found: format!("{:#x} bytes of shared pages at {gpa:#x}", memory.size()),
        })
    }

    // Memory is kept until the launch, which fills it and hands it over.
    fn map_private(&self, gpa: u64, shared: Arc<MmapRegion>) -> Result<u32, HvError> {
        let bytes = shared.size();
        self.stage.expect_new()?;
        self.partition.memory().add(gpa, shared).ok_or(HvError::Refused {
            what: "guest memory",
            expected: "whole pages that overlap no others".into(),
            found: format!("{bytes:#x} bytes at {gpa:#x}"),
        })
    }

    fn unmap(&self, slot: u32) -> Result<(), HvError> {
        let mut memory = self.partition.memory();
        if let Some(mapped) = memory.slot_mut(slot).filter(|slot| slot.mapped) {
            self.partition.set_memory(mapped, abi::MEMORY_UNMAP)?;
        }
        memory.remove(slot);
        Ok(())
    }

    // Accesses to devices leave the guest by its GHCB, which the kernel's ioeventfd never sees.
    fn signal_on_write(&self, gpa: u64, value: u32, event: &EventFd) -> Result<(), HvError> {
        self.partition.signal_on_write(gpa, value, event)
    }

    fn send_msi(&self, address: u64, data: u32) -> Result<(), HvError> {
        self.partition.send_msi(address, data)
    }

    fn create_vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>, HvError> {
        Ok(Box::new(self.vcpu(id)?))
    }

    fn must_acquire(&self) -> bool {
        true
    }

    fn acquire(&self, gpa: u64, length: u64) -> Result<(), HvError> {
        self.partition.acquire(gpa, length)
    }

    fn launch(&self, launch: &Launch<'_>, vcpus: &mut [Box<dyn Vcpu>]) -> Result<(), HvError> {
        self.stage.start()?;
        self::launch::run(&self.partition, self.guest_policy, launch, vcpus)?;
        self.stage.finish();
        Ok(())
    }
}
