//! Requests that a guest makes by its GHCB.

use zerocopy::IntoBytes as _;

use super::{GHCB_ACCESS, MshvVcpu, Next, Unanswered};
use crate::hv::HvError;
use crate::hv::mshv::abi;
use crate::hv::mshv::ghcb::{self, Doorbell, Fault, Ghcb, Refusal, Request};
use crate::hv::mshv::partition;

/// A save area at such a boundary meets an erratum of the reverse map table.
const UNSAFE_VMSA_ALIGNMENT: u64 = 2 << 20;
/// Error of the host's, in the upper half of a guest request's result: something general.
const VMM_ERROR_GENERIC: u64 = 1 << 63;
/// Most pages that a guest may offer for certificates: as many as Linux's driver ever does, and more.
const MAX_CERTIFICATE_PAGES: u64 = 16;

impl MshvVcpu {
    /// Serves the request in the GHCB at `gpa`, or refuses it there.
    pub(super) fn page_request(
        &mut self,
        intercept: &abi::VmgexitIntercept,
        gpa: u64,
    ) -> Result<Next, HvError> {
        if intercept.flags.get() & 1 == 0 || self.registered != Some(gpa) {
            return Ok(Next::Failed(format!("the guest uses a GHCB at {gpa:#x} that it has not registered")));
        }
        let served = match Ghcb::new(&mut self.ghcb).request(intercept, gpa) {
            Ok(request) => self.serve(request),
            Err(fault) => Err(fault),
        };
        match served {
            Ok(next) => Ok(next),
            Err(Fault::Refused(refusal)) => {
                let (code, info1) = (intercept.exit_code.get(), intercept.info1.get());
                log::debug!("virtual CPU {}: request {code:#x} ({info1:#x}) refused: {refusal:?}", self.id);
                Ghcb::new(&mut self.ghcb).refuse(refusal).map_err(partition::failed(GHCB_ACCESS))?;
                Ok(Next::Again)
            }
            Err(Fault::Page(error)) => Err(partition::failed(GHCB_ACCESS)(error)),
        }
    }

    fn serve(&mut self, request: Request) -> Result<Next, Fault> {
        let mut ghcb = Ghcb::new(&mut self.ghcb);
        match request {
            Request::PortOut { port, data, length } => {
                ghcb.succeed()?;
                self.data[..4].copy_from_slice(&data);
                Ok(Next::PortOut(port, length))
            }
            Request::PortIn { port, length } => {
                self.unanswered = Some(Unanswered::Port(length));
                self.data = [0; 8];
                Ok(Next::PortIn(port, length))
            }
            Request::MmioRead { gpa, length } => {
                self.unanswered = Some(Unanswered::Mmio(length));
                self.data = [0; 8];
                Ok(Next::MmioRead(gpa, length))
            }
            Request::MmioWrite { gpa, data, length } => {
                ghcb.succeed()?;
                if self.partition.signal(gpa, data.get(..length).unwrap_or_default()) {
                    return Ok(Next::Again);
                }
                self.data = data;
                Ok(Next::MmioWrite(gpa, length))
            }
            Request::SecureProcessor { request, response, certificates } => {
                self.guest_request(request, response, certificates)
            }
            Request::CreateVcpu { apic_id, vmsa, features } => self.create_vcpu(apic_id, vmsa, features),
            Request::Doorbell(doorbell) => self.serve_doorbell(doorbell),
            Request::Features => {
                ghcb.succeed_with(ghcb::FEATURES)?;
                Ok(Next::Again)
            }
            Request::Terminate { set, code } => Ok(Next::Terminated(ghcb::termination(set, code))),
        }
    }

    /// Passes a message to the secure processor. There are no certificates on this host: where there is room
    /// for them, the list is one that ends at once.
    fn guest_request(
        &mut self,
        request: u64,
        response: u64,
        certificates: Option<(u64, u64)>,
    ) -> Result<Next, Fault> {
        const END_OF_CERTIFICATES: [u8; 24] = [0; 24];
        let whole = |gpa: u64| self.partition.memory().is_page(gpa);
        if request == response || !whole(request) || !whole(response) {
            return Err(Refusal::Input.into());
        }
        if let Some((gpa, pages)) = certificates.filter(|(_, pages)| *pages > 0) {
            let apart = gpa != request && gpa != response;
            let length = END_OF_CERTIFICATES.len() as u64;
            if pages > MAX_CERTIFICATE_PAGES
                || !whole(gpa)
                || !apart
                || self.partition.acquire(gpa, length).is_err()
            {
                return Err(Refusal::Input.into());
            }
            if !self.partition.memory().write(gpa, &END_OF_CERTIFICATES) {
                return Err(Refusal::Input.into());
            }
        }
        let mut pair = abi::Pair { first: request.into(), second: response.into() };
        let issued = self.partition.call(abi::ISSUE_PSP_GUEST_REQUEST, pair.as_mut_bytes());
        // The kernel has released the host's access to both pages, whatever came of the request.
        self.partition.forget(request);
        self.partition.forget(response);
        let mut ghcb = Ghcb::new(&mut self.ghcb);
        match issued {
            Ok(()) => ghcb.succeed_with(0)?,
            Err(error) => {
                log::warn!("guest request: {error}");
                ghcb.succeed_with(VMM_ERROR_GENERIC)?;
            }
        }
        Ok(Next::Again)
    }

    /// Starts another virtual CPU with a save area of the guest's. The secure processor and the hypervisor
    /// check the save area itself; here it is kept from being somebody else's memory.
    fn create_vcpu(&mut self, apic_id: u32, vmsa: u64, features: u64) -> Result<Next, Fault> {
        let known = apic_id != 0 && apic_id != self.id && apic_id < self.partition.vcpus;
        let aligned = !vmsa.is_multiple_of(UNSAFE_VMSA_ALIGNMENT);
        let same_features = self.partition.features() == Some(features);
        if !known || !aligned || !same_features || !self.partition.memory().is_private_page(vmsa) {
            return Err(Refusal::Input.into());
        }
        let mut pair = abi::Pair { first: u64::from(apic_id).into(), second: vmsa.into() };
        if let Err(error) = self.partition.call(abi::SEV_SNP_AP_CREATE, pair.as_mut_bytes()) {
            log::warn!("virtual CPU {apic_id}: {error}");
            return Err(Refusal::Input.into());
        }
        Ghcb::new(&mut self.ghcb).succeed()?;
        Ok(Next::Again)
    }

    fn serve_doorbell(&mut self, doorbell: Doorbell) -> Result<Next, Fault> {
        const CALL: &str = "HVCALL_SET_VP_REGISTERS (doorbell address)";
        let (info2, register) = match doorbell {
            Doorbell::Preferred => (u64::MAX, None),
            Doorbell::Query => (self.doorbell.unwrap_or(0), None),
            Doorbell::Clear => (0, Some(0)),
            Doorbell::Set(gpa) => {
                if !self.partition.memory().is_page(gpa) {
                    return Err(Refusal::Input.into());
                }
                (gpa, Some(gpa | 1))
            }
        };
        if let Some(value) = register {
            if let Err(error) = self.set_register(abi::REGISTER_SEV_DOORBELL_GPA, value, CALL) {
                log::warn!("virtual CPU {}: {error}", self.id);
                return Err(Refusal::Input.into());
            }
            self.doorbell = (value != 0).then_some(info2);
        }
        Ghcb::new(&mut self.ghcb).succeed_with(info2)?;
        Ok(Next::Again)
    }
}
