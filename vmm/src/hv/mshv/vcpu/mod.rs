//! A virtual processor: it is run, and what it comes back with is answered.
//!
//! Everything that a message or a GHCB says is the guest's word, but for what the hypervisor vouches for (which
//! message it is, and the copies in it). A request that cannot be served is refused in the protocol's own
//! terms; only what the protocol has no refusal for ends the machine.

mod requests;

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use launch::image::Start;
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::abi;
use super::cpuid;
use super::ghcb::{self, Ghcb, MsrRequest};
use super::partition::{self, Call, Partition};
use crate::hv::seam::{Argument, RunPage};
use crate::hv::{Exit, HvError, Vcpu};

/// Leaf and register that say which bit of an address marks it private.
const LEAF_SEV: u32 = 0x8000_001F;

/// What messages call reading and writing the shared page.
const GHCB_ACCESS: &str = "access to a virtual processor's GHCB";

/// A virtual processor.
#[derive(Debug)]
pub struct MshvVcpu {
    id: u32,
    /// The hypervisor's overlay of the GHCB that the guest has registered. Unmapped before the descriptor is
    /// closed.
    ghcb: RunPage,
    fd: OwnedFd,
    partition: Arc<Partition>,
    registered: Option<u64>,
    doorbell: Option<u64>,
    /// Bytes on their way to or from a device.
    data: [u8; 8],
    unanswered: Option<Unanswered>,
}

/// An access whose answer is in `data` when the virtual processor is run again.
#[derive(Debug, Clone, Copy)]
enum Unanswered {
    Port(usize),
    Mmio(usize),
}

/// What follows from a message.
enum Next {
    Again,
    PortOut(u16, usize),
    PortIn(u16, usize),
    MmioWrite(u64, usize),
    MmioRead(u64, usize),
    Shutdown,
    Terminated(String),
    Failed(String),
}

impl MshvVcpu {
    /// Creates virtual processor `id`.
    pub fn create(partition: Arc<Partition>, id: u32) -> Result<Self, HvError> {
        let kernel = partition.kernel();
        let mut argument = id.to_le_bytes();
        let request = abi::CREATE_VP;
        let fd = kernel.create(partition.fd(), request, Argument::Structure(&mut argument, &mut []));
        let fd = fd.map_err(partition::failed(request.name))?;
        let ghcb = kernel.map_run_at(fd.as_fd(), abi::GHCB_MAP_OFFSET, abi::PAGE_BYTES);
        let ghcb = ghcb.map_err(partition::failed("mmap of a virtual processor's GHCB"))?;
        Ok(Self { id, ghcb, fd, partition, registered: None, doorbell: None, data: [0; 8], unanswered: None })
    }

    /// The page that the guest asks by.
    #[cfg(test)]
    pub fn ghcb_page(&mut self) -> &mut RunPage {
        &mut self.ghcb
    }

    fn set_register(&self, name: u32, value: u64, call: &'static str) -> Result<(), HvError> {
        let mut input: abi::Register = abi::zeroed();
        input.vp = self.id.into();
        input.name = name.into();
        input.value = value.into();
        let call = Call::list_of_one(abi::HVCALL_SET_VP_REGISTERS, call);
        partition::hypercall(self.partition.kernel(), self.fd.as_fd(), call, &mut input, &mut [])
    }

    /// Puts the answer to the last access where the guest expects it.
    fn answer(&mut self) -> io::Result<()> {
        let Some(unanswered) = self.unanswered.take() else { return Ok(()) };
        let mut ghcb = Ghcb::new(&mut self.ghcb);
        match unanswered {
            Unanswered::Port(length) => ghcb.put_port(self.data.get(..length).unwrap_or_default()),
            Unanswered::Mmio(length) => ghcb.put_mmio(self.data.get(..length).unwrap_or_default()),
        }
    }

    fn next(&mut self, message: &abi::Message) -> Result<Next, HvError> {
        let payload = &message.payload[..];
        Ok(match message.kind.get() {
            abi::HVMSG_X64_SEV_VMGEXIT_INTERCEPT => {
                let (intercept, _) =
                    abi::VmgexitIntercept::read_from_prefix(payload).map_err(|_| short(message))?;
                self.vmgexit(&intercept)?
            }
            abi::HVMSG_GPA_ATTRIBUTE_INTERCEPT => {
                let (intercept, _) =
                    abi::AttributeIntercept::read_from_prefix(payload).map_err(|_| short(message))?;
                self.change_visibility(&intercept)?
            }
            // The I/O APIC's lines are edge-triggered: an end of interrupt has no consequence.
            abi::HVMSG_X64_APIC_EOI => Next::Again,
            abi::HVMSG_UNRECOVERABLE_EXCEPTION => Next::Shutdown,
            kind @ (abi::HVMSG_UNMAPPED_GPA | abi::HVMSG_GPA_INTERCEPT | abi::HVMSG_UNACCEPTED_GPA) => {
                let (intercept, _) =
                    abi::MemoryIntercept::read_from_prefix(payload).map_err(|_| short(message))?;
                let what = match kind {
                    abi::HVMSG_UNMAPPED_GPA => "memory that is not there",
                    abi::HVMSG_GPA_INTERCEPT => "memory in a way that it does not permit",
                    _ => "private memory that it has not accepted",
                };
                Next::Failed(format!("the guest accessed {what}, at {:#x}", intercept.gpa.get()))
            }
            kind => Next::Failed(format!("MSHV message that this machine never asks for: {kind:#x}")),
        })
    }

    /// The guest shares pages with the host, or takes them back.
    fn change_visibility(&self, intercept: &abi::AttributeIntercept) -> Result<Next, HvError> {
        const NOTHING: u32 = 0;
        const READ_WRITE: u32 = 3;
        let flags = intercept.flags.get();
        let (count, visibility) = (flags & 0x1F, flags >> 6 & 3);
        let (adjust, memory_type) = (flags >> 5 & 1, flags >> 8 & 0x3F);
        let ranges = usize::try_from(count).ok().and_then(|count| intercept.ranges.get(..count));
        let Some(ranges) = ranges.filter(|ranges| !ranges.is_empty() && adjust == 0 && memory_type == 0)
        else {
            return Ok(Next::Failed(format!(
                "the guest changes page attributes in an unknown way: {flags:#x}"
            )));
        };
        for range in ranges {
            let Some((gpa, pages)) = page_range(range.get()) else {
                return Ok(Next::Failed(format!("the guest changes an impossible range: {range:#x}")));
            };
            let length = pages * abi::PAGE;
            let is_memory = self.partition.memory().is_memory(gpa, length);
            match visibility {
                _ if !is_memory => {
                    return Ok(Next::Failed(format!(
                        "the guest changes {pages} pages at {gpa:#x}, which is not its memory"
                    )));
                }
                NOTHING => self.partition.release(gpa, length)?,
                READ_WRITE => self.partition.acquire(gpa, length)?,
                other => {
                    return Ok(Next::Failed(format!("the guest shares pages in an unknown way: {other}")));
                }
            }
        }
        Ok(Next::Again)
    }

    fn vmgexit(&mut self, intercept: &abi::VmgexitIntercept) -> Result<Next, HvError> {
        let answer = match MsrRequest::decode(intercept.ghcb_msr.get()) {
            MsrRequest::Page(gpa) => return self.page_request(intercept, gpa),
            MsrRequest::SevInfo => ghcb::sev_info(self.encryption_bit()?),
            MsrRequest::PreferredPage => ghcb::no_preference(),
            MsrRequest::Features => ghcb::features(),
            MsrRequest::RegisterPage(gpa) => self.register(gpa)?,
            MsrRequest::Terminate { set, code } => {
                return Ok(Next::Terminated(ghcb::termination(set, code)));
            }
            MsrRequest::Unknown(msr) => {
                return Ok(Next::Failed(format!("the guest asks for something unknown: GHCB MSR {msr:#x}")));
            }
        };
        self.set_register(abi::REGISTER_GHCB, answer, "HVCALL_SET_VP_REGISTERS (GHCB MSR)")?;
        Ok(Next::Again)
    }

    fn encryption_bit(&self) -> Result<u32, HvError> {
        let leaf = cpuid::Leaf { eax: LEAF_SEV, ecx: 0, xcr0: 0 };
        let values = cpuid::query(self.partition.kernel(), self.fd.as_fd(), self.id, leaf)?;
        Ok(values[1].get() & 0x3F)
    }

    /// The guest is going to use the page at `gpa`; the hypervisor checks that it is a shared one.
    fn register(&mut self, gpa: u64) -> Result<u64, HvError> {
        const CALL: &str = "HVCALL_SET_VP_REGISTERS (GHCB address)";
        if !self.partition.memory().is_page(gpa) {
            return Ok(ghcb::registered(None));
        }
        if let Some(previous) = self.registered.take() {
            self.set_register(abi::REGISTER_SEV_GHCB_GPA, previous, CALL)?;
        }
        match self.set_register(abi::REGISTER_SEV_GHCB_GPA, gpa | 1, CALL) {
            Ok(()) => self.registered = Some(gpa),
            Err(error) => log::warn!("virtual CPU {}: {error}", self.id),
        }
        Ok(ghcb::registered(self.registered))
    }
}

impl Vcpu for MshvVcpu {
    fn set_start(&mut self, start: &Start) -> Result<(), HvError> {
        match start {
            Start::Snp { gpa, .. } => {
                let call = "HVCALL_SET_VP_REGISTERS (SEV control)";
                self.set_register(abi::REGISTER_SEV_CONTROL, gpa & !(abi::PAGE - 1) | 1, call)
            }
            // Nothing runs until the guest gives it a save area.
            Start::Reset => Ok(()),
            Start::Native(_) => Err(HvError::Refused {
                what: "start of a virtual processor on MSHV",
                expected: "a save area, or the reset state".into(),
                found: "registers of an ordinary machine".into(),
            }),
        }
    }

    fn run(&mut self) -> Result<Exit<'_>, HvError> {
        self.answer().map_err(partition::failed(GHCB_ACCESS))?;
        let mut message: abi::Message = abi::zeroed();
        let argument = Argument::Structure(message.as_mut_bytes(), &mut []);
        match self.partition.kernel().call(self.fd.as_fd(), abi::RUN_VP, argument) {
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {
                return Ok(Exit::Again);
            }
            Err(error) => return Err(partition::failed(abi::RUN_VP.name)(error)),
        }
        let next = self.next(&message)?;
        Ok(match next {
            Next::Again => Exit::Again,
            Next::PortOut(port, length) => Exit::PortOut(port, self.data.get(..length).unwrap_or_default()),
            Next::PortIn(port, length) => Exit::PortIn(port, self.data.get_mut(..length).unwrap_or_default()),
            Next::MmioWrite(gpa, length) => Exit::MmioWrite(gpa, self.data.get(..length).unwrap_or_default()),
            Next::MmioRead(gpa, length) => {
                Exit::MmioRead(gpa, self.data.get_mut(..length).unwrap_or_default())
            }
            Next::Shutdown => Exit::Shutdown,
            Next::Terminated(why) => Exit::Terminated(why),
            Next::Failed(why) => Exit::Failed(why),
        })
    }
}

fn short(message: &abi::Message) -> HvError {
    HvError::Refused {
        what: "MSHV message",
        expected: "a whole payload".into(),
        found: format!("{} bytes of message {:#x}", message.payload_bytes, message.kind.get()),
    }
}

/// First address and number of pages of `union hv_gpa_page_range`; none when it wraps or is misaligned.
fn page_range(range: u64) -> Option<(u64, u64)> {
    const LARGE: u64 = 1 << 11;
    const HUGE: u64 = 1 << 12;
    const PAGES_OF_2M: u64 = 512;
    const PAGES_OF_1G: u64 = 512 * 512;
    let units = (range & 0x7FF) + 1;
    if range & LARGE == 0 {
        return Some((range & !(abi::PAGE - 1), units));
    }
    let first = range >> 21 << 21;
    let pages = if range & HUGE == 0 { PAGES_OF_2M } else { PAGES_OF_1G };
    first.is_multiple_of(pages * abi::PAGE).then_some((first, units * pages))
}
