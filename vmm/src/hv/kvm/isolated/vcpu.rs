//! A virtual CPU of an isolated machine, and what it comes back for.
//!
//! Conversions of memory, faults on memory in the wrong state and the guest's calls to its TDX module's host are
//! answered here. Everything in the page that is shared with the kernel may be the guest's word: each length
//! and range is checked where it is read.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use kvm_bindings::{CpuId, kvm_msr_entry};
use launch::image::Start;
use launch::layout::PAGE_SIZE;
use zerocopy::IntoBytes as _;

use super::abi::{self, run};
use super::machine::{CpuidTable, Machine, failed};
use super::{Services, Technology, snp, tdx, words};
use crate::hv::seam::{Argument, RunPage};
use crate::hv::{Exit, HvError, Vcpu};

/// `IA32_MTRR_DEF_TYPE`: MTRRs on, memory write-back unless said otherwise.
const MSR_MTRR_DEF_TYPE: u32 = 0x2FF;
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;
/// Bytes that one port exit carries at most: KVM's buffer is one page.
const MAX_PORT_BYTES: u32 = 4096;
/// Bytes that one MMIO exit carries at most.
const MAX_MMIO_BYTES: u32 = 8;

/// A virtual CPU. The descriptor is closed before the machine's.
#[derive(Debug)]
pub struct IsolatedVcpu {
    fd: Arc<OwnedFd>,
    page: RunPage,
    machine: Arc<Machine>,
    services: Services,
    /// What a device reads or writes.
    data: Vec<u8>,
    /// Where in the page `data` goes before the guest is entered again.
    answer: Option<usize>,
}

impl IsolatedVcpu {
    /// Creates virtual CPU `id`, which shows `cpuid`.
    pub fn create(
        machine: Arc<Machine>,
        technology: &Technology,
        services: Services,
        id: u32,
        cpuid: &CpuId,
    ) -> Result<Self, HvError> {
        let fd = machine.create_vcpu(id)?;
        let mut table = CpuidTable::of(cpuid.as_slice()).0;
        let call = |request, bytes: &mut [u8]| {
            let argument = Argument::Structure(bytes, &mut []);
            machine.kernel().call(fd.as_fd(), request, argument).map_err(failed(request))
        };
        call(abi::SET_CPUID2, &mut table)?;
        match technology {
            Technology::Snp(_) => {
                let entry =
                    kvm_msr_entry { index: MSR_MTRR_DEF_TYPE, reserved: 0, data: MTRR_ENABLED_WRITE_BACK };
                let mut msrs = abi::MsrsHead { nmsrs: 1, pad: 0 }.as_bytes().to_vec();
                msrs.extend_from_slice(entry.as_bytes());
                let set = call(abi::SET_MSRS, &mut msrs)?;
                if set != 1 {
                    let source = io::Error::other(format!("expected 1 register to be set, found {set}"));
                    return Err(HvError::Call { call: abi::SET_MSRS.name, source });
                }
            }
            // The module keeps the registers, and starts every virtual CPU in its reset state.
            Technology::Tdx(_) => tdx::Tdx::init_vcpu(&machine, fd.as_fd())?,
        }
        let page = machine.kernel().map_run(fd.as_fd(), machine.run_bytes());
        let page = page.map_err(|source| HvError::Call { call: "mmap of kvm_run", source })?;
        Ok(Self { fd, page, machine, services, data: Vec::new(), answer: None })
    }

    /// Enters the guest. False when there is nothing in the page to look at.
    fn enter(&mut self) -> Result<bool, HvError> {
        let call = abi::RUN.name;
        if !self.machine.is_launched() {
            return Err(HvError::Call { call, source: io::Error::other("the launch is not finished") });
        }
        if let Some(offset) = self.answer.take() {
            self.page.write(offset, &self.data).map_err(page_error)?;
        }
        let result = self.machine.kernel().run(self.fd.as_fd(), abi::RUN, &mut self.page);
        let Err(source) = result else { return Ok(true) };
        match source.raw_os_error() {
            Some(libc::EINTR | libc::EAGAIN) => Ok(false),
            // The one exit that comes with an error. For all others, what the page says is of long ago.
            Some(libc::EFAULT) if self.reason()? == run::EXIT_MEMORY_FAULT => Ok(true),
            _ => Err(HvError::Call { call, source }),
        }
    }

    fn reason(&self) -> Result<u32, HvError> {
        self.field32(run::EXIT_REASON)
    }

    fn field32(&self, offset: usize) -> Result<u32, HvError> {
        let mut bytes = [0; 4];
        self.page.read(offset, &mut bytes).map_err(page_error)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn field64(&self, offset: usize) -> Result<u64, HvError> {
        let mut bytes = [0; 8];
        self.page.read(offset, &mut bytes).map_err(page_error)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn set_field64(&mut self, offset: usize, value: u64) -> Result<(), HvError> {
        self.page.write(offset, &value.to_le_bytes()).map_err(page_error)
    }

    /// `KVM_EXIT_IO`: direction u8, size u8, port u16, count u32, offset of the data u64.
    fn port(&mut self) -> Result<Exit<'_>, HvError> {
        let mut head = [0; 4];
        self.page.read(run::UNION, &mut head).map_err(page_error)?;
        let [direction, size, port @ ..] = head;
        let port = u16::from_le_bytes(port);
        let bytes = self.field32(run::UNION + 4)?.checked_mul(u32::from(size));
        let Some(bytes) = bytes.filter(|bytes| (1..=MAX_PORT_BYTES).contains(bytes)) else {
            return Ok(Exit::Failed(format!("port {port:#x}: more than {MAX_PORT_BYTES} bytes at once")));
        };
        let offset = usize::try_from(self.field64(run::UNION + 8)?).unwrap_or(usize::MAX);
        self.data.clear();
        self.data.resize(usize::try_from(bytes).unwrap_or_default(), 0);
        if direction == 0 {
            self.answer = Some(offset);
            return Ok(Exit::PortIn(port, &mut self.data));
        }
        self.page.read(offset, &mut self.data).map_err(page_error)?;
        Ok(Exit::PortOut(port, &self.data))
    }

    /// `KVM_EXIT_MMIO`: address u64, data of 8 bytes, length u32, whether it is a write u8.
    fn mmio(&mut self) -> Result<Exit<'_>, HvError> {
        let (gpa, bytes) = (self.field64(run::UNION)?, self.field32(run::UNION + 16)?);
        if !(1..=MAX_MMIO_BYTES).contains(&bytes) {
            return Ok(Exit::Failed(format!("MMIO at {gpa:#x}: expected 1 to 8 bytes, found {bytes}")));
        }
        let (data, mut is_write) = (run::UNION + 8, [0]);
        self.page.read(run::UNION + 20, &mut is_write).map_err(page_error)?;
        self.data.clear();
        self.data.resize(usize::try_from(bytes).unwrap_or_default(), 0);
        if is_write == [0] {
            self.answer = Some(data);
            return Ok(Exit::MmioRead(gpa, &mut self.data));
        }
        self.page.read(data, &mut self.data).map_err(page_error)?;
        Ok(Exit::MmioWrite(gpa, &self.data))
    }

    /// `KVM_EXIT_HYPERCALL`: number u64, six arguments u64, the answer u64. Only conversions are let through to
    /// here: address, number of pages, attributes.
    fn hypercall(&mut self) -> Result<Exit<'static>, HvError> {
        const ANSWER: usize = run::UNION + 56;
        let number = self.field64(run::UNION)?;
        if number != abi::HYPERCALL_MAP_GPA_RANGE {
            return Ok(Exit::Failed(format!("hypercall {number}, which this machine never asks for")));
        }
        let argument = |index: usize| self.field64(run::UNION + 8 + 8 * index);
        let (gpa, pages, attributes) = (argument(0)?, argument(1)?, argument(2)?);
        let private = attributes & abi::MAP_GPA_RANGE_ENCRYPTED != 0;
        let size = pages.checked_mul(PAGE_SIZE);
        let done = size.map(|size| self.machine.convert(gpa, size, private)).transpose()?;
        let refused = !matches!(done, Some(Ok(())));
        if refused {
            log::warn!("guest: cannot convert {pages} pages at {gpa:#x}, which are not inside its RAM");
        }
        self.set_field64(ANSWER, if refused { u64::from(libc::EINVAL.unsigned_abs()) } else { 0 })?;
        Ok(Exit::Again)
    }

    /// `KVM_EXIT_MEMORY_FAULT`: flags u64, address u64, size u64. The guest has touched memory that is in the
    /// other state: it is converted, and it is the guest's matter to have its secrets not validated there.
    fn memory_fault(&mut self) -> Result<Exit<'static>, HvError> {
        let field = |index: usize| self.field64(run::UNION + 8 * index);
        let (flags, gpa, size) = (field(0)?, field(1)?, field(2)?);
        let private = flags & abi::MEMORY_PRIVATE != 0;
        // Not to be taken for news when the kernel next fails without an exit.
        self.page.write(run::EXIT_REASON, &run::EXIT_UNKNOWN.to_le_bytes()).map_err(page_error)?;
        let state = if private { "private" } else { "shared" };
        if flags & !abi::MEMORY_PRIVATE != 0 || !self.machine.is_ram(gpa, size) {
            return Ok(Exit::Failed(format!(
                "the guest touches {state} memory at {gpa:#x}, where there is none"
            )));
        }
        match self.machine.convert(gpa, size, private)? {
            Ok(()) => Ok(Exit::Again),
            Err(_) => Ok(Exit::Failed(format!("memory at {gpa:#x} cannot be made {state}"))),
        }
    }

    /// `KVM_EXIT_SNP_REQ_CERTS`: address u64, number of pages u64, the answer u64: 0, or `ENOSPC` with the number
    /// of pages that it takes, or `EIO`. The guest's own keys protect nothing of this: the table is public.
    fn certificates(&mut self) -> Result<Exit<'static>, HvError> {
        const PAGES: usize = run::UNION + 8;
        const ANSWER: usize = run::UNION + 16;
        let Some(table) = self.services.certificates.clone() else {
            return Ok(Exit::Failed("request for certificates, which this machine never asks for".into()));
        };
        let (gpa, pages) = (self.field64(run::UNION)?, self.field64(PAGES)?);
        let needed = (table.len() as u64).div_ceil(PAGE_SIZE);
        let answer = if pages < needed {
            self.set_field64(PAGES, needed)?;
            libc::ENOSPC
        } else if self.machine.write_shared(gpa, &table) {
            0
        } else {
            libc::EIO
        };
        self.set_field64(ANSWER, u64::from(answer.unsigned_abs()))?;
        Ok(Exit::Again)
    }

    /// `KVM_EXIT_SYSTEM_EVENT`: type u32, number of data u32, data u64.
    fn system_event(&self) -> Result<Exit<'static>, HvError> {
        let data = |index: usize| self.field64(run::UNION + 8 + 8 * index);
        Ok(match self.field32(run::UNION)? {
            run::SYSTEM_EVENT_SEV_TERM => Exit::Terminated(words::ghcb_termination(data(0)?)),
            run::SYSTEM_EVENT_TDX_FATAL => {
                let mut registers: words::FatalRegisters = [0; 16];
                for (index, register) in registers.iter_mut().enumerate() {
                    *register = data(index)?;
                }
                Exit::Terminated(words::td_fatal(&registers))
            }
            other => Exit::Failed(format!("KVM system event {other}, which this machine never asks for")),
        })
    }

    /// `KVM_EXIT_TDX`: flags u64, number u64, then the answer u64 and what the number says: for a quote the
    /// buffer's address u64 and size u64.
    fn td_call(&mut self) -> Result<Exit<'static>, HvError> {
        const ANSWER: usize = run::UNION + 16;
        const OPERANDS: usize = run::UNION + 24;
        const INFORMATION: usize = run::UNION + 32;
        let answer = match (self.field64(run::UNION + 8)?, &self.services.quoting) {
            (tdx::TDVMCALL_GET_QUOTE, Some(service)) => {
                let (gpa, size) = (self.field64(OPERANDS)?, self.field64(OPERANDS + 8)?);
                let served = tdx::serve_quote(&self.machine, service, gpa, size);
                if served { 0 } else { tdx::TDVMCALL_INVALID_OPERAND }
            }
            (tdx::TDVMCALL_GET_TD_VM_CALL_INFO, quoting) => {
                // Of the optional calls, quotes may be served; four registers tell.
                let quotes = if quoting.is_some() { tdx::TDVMCALL_INFO_GET_QUOTE } else { 0 };
                for (index, register) in [quotes, 0, 0, 0].into_iter().enumerate() {
                    self.set_field64(INFORMATION + 8 * index, register)?;
                }
                0
            }
            (number, _) => {
                log::warn!("guest: TDX call {number:#x} is not served by this machine monitor");
                tdx::TDVMCALL_UNSUPPORTED
            }
        };
        self.set_field64(ANSWER, answer)?;
        Ok(Exit::Again)
    }
}

impl Vcpu for IsolatedVcpu {
    fn set_start(&mut self, start: &Start) -> Result<(), HvError> {
        match start {
            Start::Snp { vmsa, .. } => snp::set_registers(&self.machine, self.fd.as_fd(), vmsa),
            Start::Reset => Ok(()),
            Start::Native(_) => Err(HvError::Launch(
                "image: expected a start for isolated machines, found a native one".into(),
            )),
        }
    }

    fn run(&mut self) -> Result<Exit<'_>, HvError> {
        if !self.enter()? {
            return Ok(Exit::Again);
        }
        match self.reason()? {
            run::EXIT_IO => self.port(),
            run::EXIT_MMIO => self.mmio(),
            run::EXIT_HYPERCALL => self.hypercall(),
            run::EXIT_MEMORY_FAULT => self.memory_fault(),
            run::EXIT_TDX => self.td_call(),
            run::EXIT_SNP_REQ_CERTS => self.certificates(),
            run::EXIT_SYSTEM_EVENT => self.system_event(),
            // The I/O APIC's lines are edge-triggered: an end of interrupt has no consequence.
            run::EXIT_IOAPIC_EOI | run::EXIT_INTR => Ok(Exit::Again),
            run::EXIT_SHUTDOWN => Ok(Exit::Shutdown),
            run::EXIT_FAIL_ENTRY => {
                let (reason, cpu) = (self.field64(run::UNION)?, self.field32(run::UNION + 8)?);
                Ok(Exit::Failed(format!("processor {cpu} refused entry, hardware reason {reason:#x}")))
            }
            run::EXIT_INTERNAL_ERROR => {
                let suberror = self.field32(run::UNION)?;
                Ok(Exit::Failed(format!("KVM met an internal error (KVM_EXIT_INTERNAL_ERROR, {suberror})")))
            }
            other => Ok(Exit::Failed(format!("KVM exit {other}, which this machine never asks for"))),
        }
    }
}

fn page_error(source: io::Error) -> HvError {
    HvError::Call { call: "kvm_run", source }
}
