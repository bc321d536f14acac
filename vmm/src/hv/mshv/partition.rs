//! A partition: the calls that it takes, its memory and its interrupts.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::abi;
use super::memory::{Memory, Slot};
use crate::hv::HvError;
use crate::hv::seam::{Argument, Kernel, Nested, Request};

/// Pages that one call changes the host's access to.
const ACCESS_BATCH: usize = 256;

/// A partition of the hypervisor, shared by the machine and its virtual CPUs.
#[derive(Debug)]
pub struct Partition {
    kernel: Arc<dyn Kernel>,
    /// Closed before the memory below is let go of.
    fd: OwnedFd,
    /// Number of virtual CPUs, which are the APIC identifiers below it.
    pub vcpus: u32,
    memory: Mutex<Memory>,
    signals: Mutex<Vec<Signal>>,
}

/// A write that wakes somebody instead of reaching a device.
#[derive(Debug)]
struct Signal {
    gpa: u64,
    value: u32,
    event: EventFd,
}

impl Partition {
    pub fn new(kernel: Arc<dyn Kernel>, fd: OwnedFd, vcpus: u32) -> Self {
        Self { kernel, fd, vcpus, memory: Mutex::default(), signals: Mutex::default() }
    }

    pub fn kernel(&self) -> &dyn Kernel {
        &*self.kernel
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An ioctl on the partition with a structure that has no pointers.
    pub fn call(&self, request: Request, argument: &mut [u8]) -> Result<(), HvError> {
        let argument = Argument::Structure(argument, &mut []);
        self.kernel.call(self.fd(), request, argument).map(drop).map_err(failed(request.name))
    }

    pub fn set_property(&self, property: abi::PropertyCode, value: u64) -> Result<(), HvError> {
        let mut input: abi::Property = abi::zeroed();
        input.name.code = property.code.into();
        input.value = value.into();
        hypercall(self.kernel(), self.fd(), Call::once(abi::HVCALL_SET_PARTITION_PROPERTY, property.call), &mut input, &mut [])
    }

    /// Tells the hypervisor of a slot's memory, or that it is to forget it.
    pub fn set_memory(&self, slot: &Slot, flags: u8) -> Result<(), HvError> {
        let mut region: abi::MemoryRegion = abi::zeroed();
        region.bytes = slot.bytes().into();
        region.guest_pfn = (slot.gpa / abi::PAGE).into();
        region.flags = flags;
        let address = std::mem::offset_of!(abi::MemoryRegion, address);
        let mut nested = [Nested::memory(address, &slot.memory)];
        let argument = Argument::Structure(region.as_mut_bytes(), &mut nested);
        let request = abi::SET_GUEST_MEMORY;
        self.kernel.call(self.fd(), request, argument).map(drop).map_err(failed(request.name))
    }

    /// Acquires what the host lacks of the access to a range that the guest has shared.
    ///
    /// # Errors
    /// When it is not memory, or the hypervisor refuses: the guest has not shared it.
    pub fn acquire(&self, gpa: u64, length: u64) -> Result<(), HvError> {
        let mut memory = self.memory();
        let missing = memory.missing(gpa, length).ok_or(HvError::Refused {
            what: "access to guest memory",
            expected: "a range inside memory".into(),
            found: format!("{length:#x} bytes at {gpa:#x}"),
        })?;
        for batch in missing.chunks(ACCESS_BATCH) {
            self.change_access(batch, abi::HOST_ACCESS_ACQUIRE)?;
            batch.iter().for_each(|page| memory.set_held(*page, true));
        }
        Ok(())
    }

    /// Releases the host's access to whole pages that the guest takes back.
    pub fn release(&self, gpa: u64, pages: u64) -> Result<(), HvError> {
        let mut memory = self.memory();
        let pages: Vec<u64> = (0..pages).map(|page| gpa + page * abi::PAGE).collect();
        for batch in pages.chunks(ACCESS_BATCH) {
            // First what devices look at, then the access itself.
            batch.iter().for_each(|page| memory.set_held(*page, false));
            self.change_access(batch, abi::HOST_ACCESS_RELEASE)?;
        }
        Ok(())
    }

    fn change_access(&self, pages: &[u64], flags: u8) -> Result<(), HvError> {
        self.call(abi::MODIFY_GPA_HOST_ACCESS, &mut page_list(flags, pages))
    }

    pub fn signal_on_write(&self, gpa: u64, value: u32, event: &EventFd) -> Result<(), HvError> {
        let event = event.try_clone().map_err(failed("dup of an event"))?;
        self.signals().push(Signal { gpa, value, event });
        Ok(())
    }

    /// Wakes whoever waits for this write; false where nobody does.
    pub fn signal(&self, gpa: u64, bytes: &[u8]) -> bool {
        let Ok(value) = bytes.try_into().map(u32::from_le_bytes) else { return false };
        let signals = self.signals();
        let waiting = signals.iter().find(|signal| signal.gpa == gpa && signal.value == value);
        // Writing fails only when the counter is full: whoever waits is awake already.
        waiting.is_some_and(|signal| signal.event.write(1).is_ok() || true)
    }

    fn signals(&self) -> MutexGuard<'_, Vec<Signal>> {
        self.signals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Delivers a message-signalled interrupt: Intel SDM volume 3, section 11.11.
    pub fn send_msi(&self, address: u64, data: u32) -> Result<(), HvError> {
        const INTERRUPT_ADDRESSES: u64 = 0xFEE;
        const FIXED_LOWEST_NMI: [u32; 3] = [0, 1, 4];
        let mode = data >> 8 & 7;
        if address >> 20 != INTERRUPT_ADDRESSES || !FIXED_LOWEST_NMI.contains(&mode) {
            return Err(HvError::Refused {
                what: "message-signalled interrupt",
                expected: "a fixed, lowest-priority or non-maskable one to 0xfeexxxxx".into(),
                found: format!("mode {mode} to {address:#x}"),
            });
        }
        let (level, logical) = (u64::from(data >> 15 & 1), address >> 2 & 1);
        let mut input: abi::Interrupt = abi::zeroed();
        input.control = (u64::from(mode) | level << 32 | logical << 33).into();
        input.destination = (address >> 12 & 0xFF).into();
        input.vector = (data & 0xFF).into();
        let call = Call::once(abi::HVCALL_ASSERT_VIRTUAL_INTERRUPT, "HVCALL_ASSERT_VIRTUAL_INTERRUPT");
        hypercall(self.kernel(), self.fd(), call, &mut input, &mut [])
    }
}

/// The argument that has `pages` behind its head.
pub fn page_list(kind: u8, pages: &[u64]) -> Vec<u8> {
    let head = abi::PageList { kind, reserved: [0; 7], count: U64::new(pages.len() as u64) };
    let mut bytes = head.as_bytes().to_vec();
    pages.iter().for_each(|page| bytes.extend_from_slice(&page.to_le_bytes()));
    bytes
}

/// A hypercall, and what messages call it.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    code: u16,
    repetitions: u16,
    name: &'static str,
}

impl Call {
    /// One that is not repeated.
    pub const fn once(code: u16, name: &'static str) -> Self {
        Self { code, repetitions: 0, name }
    }

    /// One that takes a list, here of one.
    pub const fn list_of_one(code: u16, name: &'static str) -> Self {
        Self { code, repetitions: 1, name }
    }
}

/// Makes a hypercall through the kernel.
pub fn hypercall<T: zerocopy::IntoBytes + zerocopy::FromBytes>(
    kernel: &dyn Kernel,
    fd: BorrowedFd<'_>,
    call: Call,
    input: &mut T,
    output: &mut [u8],
) -> Result<(), HvError> {
    let input = input.as_mut_bytes();
    let mut argument: abi::Hypercall = abi::zeroed();
    argument.code = U16::new(call.code);
    argument.repetitions = U16::new(call.repetitions);
    argument.input_bytes = abi::length(input);
    argument.output_bytes = abi::length(output);
    let mut nested = vec![Nested::bytes(abi::HYPERCALL_INPUT, input)];
    if !output.is_empty() {
        nested.push(Nested::bytes(abi::HYPERCALL_OUTPUT, output));
    }
    let bytes = argument.as_mut_bytes();
    let result = kernel.call(fd, abi::ROOT_HVCALL, Argument::Structure(bytes, &mut nested));
    let status = argument.status.get();
    match result {
        Ok(_) if status == 0 && argument.repetitions.get() == call.repetitions => Ok(()),
        Ok(_) if status == 0 => Err(failed(call.name)(io::ErrorKind::Interrupted.into())),
        Err(source) if status == 0 => Err(failed(call.name)(source)),
        _ => Err(failed(call.name)(io::Error::other(status_in_words(status)))),
    }
}

/// A number of up to 64 bits that a hypercall has put out.
pub fn number(output: &[u8; 8]) -> u64 {
    u64::from_le_bytes(*output)
}

/// Four registers that a hypercall has put out.
pub fn registers(output: &[u8; 16]) -> [U32; 4] {
    <[U32; 4]>::read_from_bytes(output).unwrap_or_default()
}

/// Turns an error of the system into one that names the call.
pub fn failed(call: &'static str) -> impl FnOnce(io::Error) -> HvError {
    move |source| HvError::Call { call, source }
}

/// `HV_STATUS_*` (Hyper-V Top-Level Functional Specification, appendix B).
fn status_in_words(status: u16) -> String {
    let words = match status {
        2 => "invalid hypercall code",
        3 => "invalid hypercall input",
        4 => "invalid alignment",
        5 => "invalid parameter",
        6 => "access denied",
        7 => "invalid partition state",
        8 => "operation denied",
        9 => "unknown property",
        10 => "property value out of range",
        11 => "insufficient memory",
        13 => "invalid partition id",
        14 => "invalid virtual processor index",
        16 => "not found",
        21 => "invalid virtual processor state",
        29 => "no resources",
        32 => "processor feature not supported",
        80 => "invalid register value",
        113 => "operation failed",
        120 => "time out",
        _ => "unknown status",
    };
    format!("the hypervisor said {words} ({status:#x})")
}
