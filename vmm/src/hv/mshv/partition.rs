//! A partition: the calls that it takes, its memory and its interrupts.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use vmm_sys_util::eventfd::EventFd;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use super::abi;
use super::cpuid::{self, Leaf};
use super::memory::{Memory, Slot};
use crate::hv::HvError;
use crate::hv::seam::{Argument, Kernel, Nested, Request};

/// How often a hypercall is tried that the kernel asks to repeat.
const ATTEMPTS: usize = 64;
/// Pages that one call changes the host's access to.
const ACCESS_BATCH: u64 = 256;

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
    features: OnceLock<u64>,
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
        Self {
            kernel,
            fd,
            vcpus,
            memory: Mutex::default(),
            signals: Mutex::default(),
            features: OnceLock::new(),
        }
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

    /// An ioctl on the partition without an argument.
    pub fn command(&self, request: Request) -> Result<(), HvError> {
        self.kernel.call(self.fd(), request, Argument::Value(0)).map(drop).map_err(failed(request.name))
    }

    pub fn set_property(&self, property: abi::PropertyCode, value: u64) -> Result<(), HvError> {
        let mut input: abi::Property = abi::zeroed();
        input.name.code = property.code.into();
        input.value = value.into();
        hypercall(
            self.kernel(),
            self.fd(),
            Call::once(abi::HVCALL_SET_PARTITION_PROPERTY, property.call),
            &mut input,
            &mut [],
        )
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

    /// Hands a slot's memory over to the partition: the host cannot touch it any more.
    pub fn hand_over(&self, slot: &mut Slot) -> Result<(), HvError> {
        self.set_memory(slot, abi::MEMORY_READ_WRITE_EXECUTE)?;
        slot.mapped = true;
        Ok(())
    }

    /// What the first virtual processor would find in a CPUID leaf.
    pub fn cpuid(&self, leaf: Leaf) -> Result<[U32; 4], HvError> {
        cpuid::query(self.kernel(), self.fd(), 0, leaf)
    }

    /// Acquires what the host lacks of the access to a range that the guest has shared.
    ///
    /// # Errors
    /// When it is not memory, or the hypervisor refuses: the guest has not shared it.
    pub fn acquire(&self, gpa: u64, length: u64) -> Result<(), HvError> {
        let mut memory = self.memory();
        if !memory.is_memory(gpa, length) {
            return Err(HvError::Refused {
                what: "access to guest memory",
                expected: "a range inside memory".into(),
                found: format!("{length:#x} bytes at {gpa:#x}"),
            });
        }
        for batch in batches(gpa, length) {
            let missing: Vec<u64> = batch.filter(|page| !memory.is_held(*page)).collect();
            if !missing.is_empty() {
                self.change_access(&missing, abi::HOST_ACCESS_ACQUIRE)?;
                missing.iter().for_each(|page| memory.set_held(*page, true));
            }
        }
        Ok(())
    }

    /// Releases the host's access to pages that the guest takes back.
    ///
    /// # Errors
    /// When the hypervisor refuses.
    pub fn release(&self, gpa: u64, length: u64) -> Result<(), HvError> {
        let mut memory = self.memory();
        for batch in batches(gpa, length) {
            let pages: Vec<u64> = batch.collect();
            // First what devices look at, then the access itself.
            pages.iter().for_each(|page| memory.set_held(*page, false));
            self.change_access(&pages, abi::HOST_ACCESS_RELEASE)?;
        }
        Ok(())
    }

    /// Forgets an access that the kernel has taken away by itself.
    pub fn forget(&self, gpa: u64) {
        self.memory().set_held(gpa, false);
    }

    fn change_access(&self, pages: &[u64], flags: u8) -> Result<(), HvError> {
        self.call(abi::MODIFY_GPA_HOST_ACCESS, &mut page_list(flags, pages))
    }

    /// SEV features that all virtual processors have, once the launch has begun.
    pub fn features(&self) -> Option<u64> {
        self.features.get().copied()
    }

    /// Fixes the features; the first ones stay.
    pub fn set_features(&self, features: u64) {
        self.features.get_or_init(|| features);
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
        if let Some(Err(error)) = waiting.map(|signal| signal.event.write(1)) {
            // The counter is full: whoever waits has been woken already.
            log::debug!("event for a write to {gpa:#x}: {error}");
        }
        waiting.is_some()
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

/// The pages of a range, in groups that one call takes.
fn batches(gpa: u64, length: u64) -> impl Iterator<Item = impl Iterator<Item = u64>> {
    let (first, end) = (gpa / abi::PAGE, gpa.saturating_add(length).div_ceil(abi::PAGE));
    let page = |number| number * abi::PAGE;
    let starts = std::iter::successors(Some(first), |start| start.checked_add(ACCESS_BATCH));
    starts
        .take_while(move |start| *start < end)
        .map(move |start| (start..end.min(start + ACCESS_BATCH)).map(page))
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
///
/// # Errors
/// What the hypervisor says, in words, or what the kernel says.
pub fn hypercall<T: IntoBytes + FromBytes>(
    kernel: &dyn Kernel,
    fd: BorrowedFd<'_>,
    call: Call,
    input: &mut T,
    output: &mut [u8],
) -> Result<(), HvError> {
    let input = input.as_mut_bytes();
    for _ in 0..ATTEMPTS {
        let mut argument: abi::Hypercall = abi::zeroed();
        argument.code = U16::new(call.code);
        argument.repetitions = U16::new(call.repetitions);
        argument.input_bytes = abi::length(input);
        argument.output_bytes = abi::length(output);
        let mut nested = vec![Nested::bytes(abi::HYPERCALL_INPUT, &mut *input)];
        if !output.is_empty() {
            nested.push(Nested::bytes(abi::HYPERCALL_OUTPUT, &mut *output));
        }
        let bytes = argument.as_mut_bytes();
        let result = kernel.call(fd, abi::ROOT_HVCALL, Argument::Structure(bytes, &mut nested));
        let (status, done) = (argument.status.get(), argument.repetitions.get());
        return match result {
            // The kernel has given the hypervisor memory that it was short of, or there was a signal.
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => continue,
            Ok(_) if status == 0 && done == call.repetitions => Ok(()),
            Ok(_) if status == 0 => Err(failed(call.name)(io::Error::other("the hypervisor did not finish"))),
            Err(source) if status == 0 => Err(failed(call.name)(source)),
            _ => Err(failed(call.name)(io::Error::other(status_in_words(status)))),
        };
    }
    Err(failed(call.name)(io::Error::other(format!("interrupted {ATTEMPTS} times"))))
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
