//! Machines that KVM isolates from the host: SEV-SNP and TDX.
//!
//! Both are made by the same steps — a machine of its own type, RAM in a `guest_memfd`, pages imported before
//! any virtual CPU runs, conversions at the guest's request — and differ in the commands that go through
//! `KVM_MEMORY_ENCRYPT_OP` ([`snp`], [`tdx`]). All of them go through the [seam](crate::hv::seam).

mod abi;
mod machine;
mod pages;
mod snp;
mod tdx;
#[cfg(test)]
mod tests;
mod vcpu;
mod words;

use std::path::Path;
use std::sync::Arc;

use kvm_bindings::CpuId;
use launch::plan::HostData;
use launch::snp::Backend;
use vm_memory::MmapRegion;
use vmm_sys_util::eventfd::EventFd;

use super::cpuid;
use crate::hv::seam::Kernel;
use crate::hv::{self, HvError, Launch, Vcpu};

use machine::Machine;
use vcpu::IsolatedVcpu;

/// Who isolates the machine.
#[derive(Debug)]
enum Technology {
    Snp(snp::Snp),
    Tdx(tdx::Tdx),
}

/// What the host adds to the evidence of its guests. All of it is public, and without it a guest's report is as
/// good: somebody else has to find the certificates, or to make the quote.
#[derive(Debug, Clone, Default)]
pub struct Services {
    /// SEV-SNP: the table of certificates that guests get with their reports.
    pub certificates: Option<Arc<[u8]>>,
    /// TDX: the socket of the quoting service.
    pub quoting: Option<Arc<Path>>,
}

/// An isolated machine.
#[derive(Debug)]
pub struct IsolatedVm {
    machine: Arc<Machine>,
    technology: Technology,
    services: Services,
    shown: CpuId,
    vcpus: u32,
}

impl IsolatedVm {
    /// Creates an SEV-SNP machine for `vcpus` virtual CPUs.
    ///
    /// # Errors
    /// When KVM or the secure processor lacks something, or refuses.
    pub fn snp(kernel: Arc<dyn Kernel>, vcpus: u32, mut services: Services) -> Result<Self, HvError> {
        let machine = Machine::create(kernel, snp::MACHINE_TYPE)?;
        let shown = cpuid::for_isolated(&machine.supported()?);
        let snp = snp::Snp::init(&machine)?;
        if services.certificates.is_some() && !snp.enable_certificates(&machine)? {
            log::warn!("this kernel cannot hand certificates to guests: they get none");
            services.certificates = None;
        }
        let technology = Technology::Snp(snp);
        Ok(Self { machine: Arc::new(machine), technology, services, shown, vcpus })
    }

    /// Creates a trust domain for `vcpus` virtual CPUs, bound to `host_data`.
    ///
    /// # Errors
    /// When KVM or the TDX module lacks something, or refuses.
    pub fn tdx(
        kernel: Arc<dyn Kernel>,
        vcpus: u32,
        host_data: HostData,
        services: Services,
    ) -> Result<Self, HvError> {
        let machine = Machine::create(kernel, tdx::MACHINE_TYPE)?;
        let mut shown = cpuid::for_isolated(&machine.supported()?);
        tdx::widen_addresses(&mut shown);
        let first = cpuid::for_vcpu(&shown, 0, vcpus)?;
        let technology = Technology::Tdx(tdx::Tdx::init(&machine, vcpus, &first, host_data)?);
        Ok(Self { machine: Arc::new(machine), technology, services, shown, vcpus })
    }
}

impl hv::Vm for IsolatedVm {
    fn backend(&self) -> Backend {
        Backend::Kvm
    }

    fn map(&self, gpa: u64, memory: Arc<MmapRegion>) -> Result<u32, HvError> {
        self.machine.map(gpa, memory, false)
    }

    fn map_private(&self, gpa: u64, shared: Arc<MmapRegion>) -> Result<u32, HvError> {
        self.machine.map(gpa, shared, true)
    }

    fn unmap(&self, slot: u32) -> Result<(), HvError> {
        self.machine.unmap(slot)
    }

    fn signal_on_write(&self, gpa: u64, value: u32, event: &EventFd) -> Result<(), HvError> {
        self.machine.signal_on_write(gpa, value, event)
    }

    fn send_msi(&self, address: u64, data: u32) -> Result<(), HvError> {
        self.machine.send_msi(address, data)
    }

    fn create_vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>, HvError> {
        let cpuid = cpuid::for_vcpu(&self.shown, id, self.vcpus)?;
        let (machine, services) = (Arc::clone(&self.machine), self.services.clone());
        Ok(Box::new(IsolatedVcpu::create(machine, &self.technology, services, id, &cpuid)?))
    }

    fn launch(&self, launch: &Launch<'_>, vcpus: &mut [Box<dyn Vcpu>]) -> Result<(), HvError> {
        let (asked, made) = (launch.vcpus, self.machine.vcpus().len());
        if usize::try_from(asked) != Ok(made) || vcpus.len() != made {
            let found = format!("{made} made and {} given", vcpus.len());
            return Err(HvError::Launch(format!("virtual CPUs: expected {asked}, found {found}")));
        }
        if self.machine.is_launched() {
            return Err(HvError::Launch("expected one launch, found a second".into()));
        }
        match &self.technology {
            Technology::Snp(snp) => {
                let shown = cpuid::for_vcpu(&self.shown, 0, self.vcpus)?;
                snp.launch(&self.machine, launch, &shown, vcpus)?;
            }
            Technology::Tdx(tdx) => tdx.launch(&self.machine, launch)?,
        }
        self.machine.set_launched();
        Ok(())
    }
}
