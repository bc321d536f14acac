//! What an isolated machine has in common, whichever processor isolates it: the kernel's VM, and its memory.
//!
//! RAM has two backings: a `guest_memfd` for what is private, which nothing outside the guest can map, and
//! ordinary memory for what the guest has made shared, which devices reach. At any time a page has content in
//! one of them only: what a conversion leaves behind is given back to the kernel.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use launch::layout::{IOAPIC_PINS, PAGE_SIZE};
use vm_memory::{Bytes as _, MmapRegion, VolatileMemory as _, VolatileSlice};
use vmm_sys_util::eventfd::EventFd;
use zerocopy::{FromBytes, FromZeros as _, Immutable, IntoBytes};

use super::abi::{self, cap};
use crate::hv::seam::{Argument, Kernel, Nested, Request};
use crate::hv::{HvError, KVM_DEVICE};

const KVM_PATH: &CStr = c"/dev/kvm";
/// Offset of the pointer in `struct kvm_userspace_memory_region2`.
const USERSPACE_ADDR: usize = 24;

/// What a guest asks to convert cannot be converted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unconvertible;

/// A type of machine that KVM can make.
#[derive(Debug, Clone, Copy)]
pub struct MachineType {
    /// `KVM_X86_*_VM`.
    pub number: u8,
    /// What is missing where KVM does not know it.
    pub needed: &'static str,
}

#[derive(Debug)]
struct Region {
    gpa: u64,
    size: u64,
    shared: Arc<MmapRegion>,
    private: Option<OwnedFd>,
}

impl Region {
    /// Whether all of the range is in here.
    fn holds(&self, gpa: u64, size: u64) -> bool {
        let end = gpa.checked_add(size);
        gpa >= self.gpa && end.is_some_and(|end| end <= self.gpa.saturating_add(self.size))
    }

    /// Whether any of the range is in here.
    fn touches(&self, gpa: u64, size: u64) -> bool {
        gpa < self.gpa.saturating_add(self.size) && gpa.saturating_add(size) > self.gpa
    }
}

/// The kernel's VM. Fields are dropped in their order: memory goes last, when no descriptor that refers to it
/// is left.
#[derive(Debug)]
pub struct Machine {
    vm: OwnedFd,
    vcpus: Mutex<Vec<Arc<OwnedFd>>>,
    kernel: Arc<dyn Kernel>,
    run_bytes: usize,
    supported: Vec<kvm_cpuid_entry2>,
    launched: AtomicBool,
    regions: Mutex<Vec<Option<Region>>>,
}

impl Machine {
    /// Makes a machine of `machine_type`, without memory and virtual CPUs.
    pub fn create(kernel: Arc<dyn Kernel>, machine_type: MachineType) -> Result<Self, HvError> {
        let open = kernel.open(KVM_PATH).map_err(|source| HvError::Open { path: KVM_DEVICE, source })?;
        let kvm = open.as_fd();
        let check = |on: BorrowedFd<'_>, (number, name): cap::Capability| {
            let argument = Argument::Value(u64::from(number));
            match kernel.call(on, abi::CHECK_EXTENSION, argument).map_err(failed(abi::CHECK_EXTENSION))? {
                0 => Err(HvError::Capability(name)),
                value => Ok(value),
            }
        };
        if check(kvm, cap::VM_TYPES)? >> machine_type.number & 1 == 0 {
            return Err(HvError::Capability(machine_type.needed));
        }
        for needed in [cap::SPLIT_IRQCHIP, cap::SIGNAL_MSI, cap::IOEVENTFD, cap::TSC_DEADLINE_TIMER] {
            check(kvm, needed)?;
        }
        if check(kvm, cap::EXIT_HYPERCALL)? >> abi::HYPERCALL_MAP_GPA_RANGE & 1 == 0 {
            return Err(HvError::Capability("KVM_CAP_EXIT_HYPERCALL with KVM_HC_MAP_GPA_RANGE"));
        }
        let supported = supported_cpuid(&*kernel, kvm)?;
        let run_bytes = kernel.call(kvm, abi::GET_VCPU_MMAP_SIZE, Argument::Value(0));
        let run_bytes = run_bytes.map_err(failed(abi::GET_VCPU_MMAP_SIZE))?;
        let run_bytes = usize::try_from(run_bytes).unwrap_or(usize::MAX);
        let vm = kernel.create(kvm, abi::CREATE_VM, Argument::Value(u64::from(machine_type.number)));
        let vm = vm.map_err(failed(abi::CREATE_VM))?;
        for needed in [cap::USER_MEMORY2, cap::MEMORY_ATTRIBUTES, cap::GUEST_MEMFD] {
            check(vm.as_fd(), needed)?;
        }
        let machine = Self {
            vm,
            vcpus: Mutex::default(),
            kernel,
            run_bytes,
            supported,
            launched: AtomicBool::new(false),
            regions: Mutex::default(),
        };
        machine.enable(cap::SPLIT_IRQCHIP, u64::from(IOAPIC_PINS))?;
        machine.enable(cap::EXIT_HYPERCALL, 1 << abi::HYPERCALL_MAP_GPA_RANGE)?;
        Ok(machine)
    }

    pub fn kernel(&self) -> &dyn Kernel {
        &*self.kernel
    }

    pub fn vm(&self) -> BorrowedFd<'_> {
        self.vm.as_fd()
    }

    /// Size of what a virtual CPU shares with the kernel, in bytes.
    pub const fn run_bytes(&self) -> usize {
        self.run_bytes
    }

    /// The processor features that KVM supports.
    pub fn supported(&self) -> Result<CpuId, HvError> {
        CpuId::from_entries(&self.supported).map_err(|_| HvError::Cpuid)
    }

    /// The virtual CPUs, in the order of their making.
    pub fn vcpus(&self) -> MutexGuard<'_, Vec<Arc<OwnedFd>>> {
        self.vcpus.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn regions(&self) -> MutexGuard<'_, Vec<Option<Region>>> {
        self.regions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether virtual CPUs may run.
    pub fn is_launched(&self) -> bool {
        self.launched.load(Ordering::Acquire)
    }

    /// Lets virtual CPUs run: what they start from is measured and final.
    pub fn set_launched(&self) {
        self.launched.store(true, Ordering::Release);
    }

    /// Turns a capability on.
    pub fn enable(&self, (cap, _): cap::Capability, argument: u64) -> Result<(), HvError> {
        let args = [argument, 0, 0, 0];
        let mut enable = abi::EnableCap { cap, flags: 0, args, pad: [0; 64] };
        self.structure(self.vm(), abi::ENABLE_CAP, &mut enable, &mut [])
    }

    /// Makes an ioctl that takes a structure and answers with nothing else.
    pub fn structure<T: FromBytes + IntoBytes + Immutable>(
        &self,
        on: BorrowedFd<'_>,
        request: Request,
        structure: &mut T,
        nested: &mut [Nested<'_>],
    ) -> Result<(), HvError> {
        let argument = Argument::Structure(structure.as_mut_bytes(), nested);
        self.kernel.call(on, request, argument).map(drop).map_err(failed(request))
    }

    /// Creates a virtual CPU.
    pub fn create_vcpu(&self, id: u32) -> Result<Arc<OwnedFd>, HvError> {
        let vcpu = self.kernel.create(self.vm(), abi::CREATE_VCPU, Argument::Value(u64::from(id)));
        let vcpu = Arc::new(vcpu.map_err(failed(abi::CREATE_VCPU))?);
        self.vcpus().push(Arc::clone(&vcpu));
        Ok(vcpu)
    }

    /// Backs guest memory; by private memory too, if it is RAM. Returns the slot.
    pub fn map(&self, gpa: u64, shared: Arc<MmapRegion>, ram: bool) -> Result<u32, HvError> {
        let size = shared.size() as u64;
        let private = ram.then(|| self.guest_memfd(size)).transpose()?;
        let mut regions = self.regions();
        let slot = u32::try_from(regions.len()).unwrap_or(u32::MAX);
        let mut region = abi::MemoryRegion2 {
            slot,
            guest_phys_addr: gpa,
            memory_size: size,
            ..abi::MemoryRegion2::new_zeroed()
        };
        if let Some(private) = &private {
            region.flags = abi::MEM_GUEST_MEMFD;
            region.guest_memfd = private.as_raw_fd().cast_unsigned();
        }
        let pointer = &mut [Nested::memory(USERSPACE_ADDR, &shared)];
        self.structure(self.vm(), abi::SET_USER_MEMORY_REGION2, &mut region, pointer)?;
        regions.push(Some(Region { gpa, size, shared, private }));
        Ok(slot)
    }

    fn guest_memfd(&self, size: u64) -> Result<OwnedFd, HvError> {
        let mut create = abi::CreateGuestMemfd { size, flags: 0, reserved: [0; 6] };
        let argument = Argument::Structure(create.as_mut_bytes(), &mut []);
        let created = self.kernel.create(self.vm(), abi::CREATE_GUEST_MEMFD, argument);
        created.map_err(failed(abi::CREATE_GUEST_MEMFD))
    }

    /// Takes a slot's memory away from the guest. An empty slot is left as it is.
    pub fn unmap(&self, slot: u32) -> Result<(), HvError> {
        let mut regions = self.regions();
        let entry = usize::try_from(slot).ok().and_then(|index| regions.get_mut(index));
        let Some(entry) = entry.filter(|entry| entry.is_some()) else { return Ok(()) };
        let mut region = abi::MemoryRegion2 { slot, ..abi::MemoryRegion2::new_zeroed() };
        self.structure(self.vm(), abi::SET_USER_MEMORY_REGION2, &mut region, &mut [])?;
        *entry = None;
        Ok(())
    }

    /// Makes all RAM private, as it is when a guest starts.
    pub fn make_ram_private(&self) -> Result<(), HvError> {
        let ram: Vec<_> = {
            let regions = self.regions();
            let ram = regions.iter().flatten().filter(|region| region.private.is_some());
            ram.map(|region| (region.gpa, region.size)).collect()
        };
        ram.into_iter().try_for_each(|(gpa, size)| self.set_attributes(gpa, size, true))
    }

    fn set_attributes(&self, address: u64, size: u64, private: bool) -> Result<(), HvError> {
        let attributes = if private { abi::MEMORY_PRIVATE } else { 0 };
        let mut attributes = abi::MemoryAttributes { address, size, attributes, flags: 0 };
        self.structure(self.vm(), abi::SET_MEMORY_ATTRIBUTES, &mut attributes, &mut [])
    }

    /// Whether the whole range is RAM.
    pub fn is_ram(&self, gpa: u64, size: u64) -> bool {
        let regions = self.regions();
        regions.iter().flatten().any(|region| region.private.is_some() && region.holds(gpa, size))
    }

    /// Makes memory private or shared at the guest's request, and gives back what the other backing held.
    ///
    /// The range is the guest's word. It has to be inside one run of RAM; what is no RAM is shared already, so
    /// that making it shared changes nothing.
    pub fn convert(&self, gpa: u64, size: u64, private: bool) -> Result<Result<(), Unconvertible>, HvError> {
        let whole = |value: u64| value.is_multiple_of(PAGE_SIZE);
        if size == 0 || !whole(gpa) || !whole(size) || gpa.checked_add(size).is_none() {
            return Ok(Err(Unconvertible));
        }
        let regions = self.regions();
        let mut ram = regions.iter().flatten().filter(|region| region.private.is_some());
        let Some(region) = ram.clone().find(|region| region.holds(gpa, size)) else {
            let harmless = !private && !ram.any(|region| region.touches(gpa, size));
            return Ok(if harmless { Ok(()) } else { Err(Unconvertible) });
        };
        self.set_attributes(gpa, size, private)?;
        self.drop_backing(region, gpa - region.gpa, size, private)?;
        Ok(Ok(()))
    }

    /// Gives back what a range's other backing holds.
    fn drop_backing(&self, region: &Region, offset: u64, size: u64, private: bool) -> Result<(), HvError> {
        let call = |call| move |source| HvError::Call { call, source };
        match &region.private {
            Some(memory) if !private => {
                self.kernel.punch(memory.as_fd(), offset, size).map_err(call("fallocate of private memory"))
            }
            _ => {
                let length = |value: u64| usize::try_from(value).map_err(io::Error::other);
                let discard = |(offset, size)| self.kernel.discard(&region.shared, offset, size);
                let range = length(offset).and_then(|offset| Ok((offset, length(size)?)));
                range.and_then(discard).map_err(call("madvise of shared memory"))
            }
        }
    }

    /// Reads what the guest has shared. False where it is not all RAM.
    pub fn read_shared(&self, gpa: u64, buffer: &mut [u8]) -> bool {
        let size = buffer.len() as u64;
        self.shared(gpa, size, |memory, offset| memory.read_slice(buffer, offset).is_ok())
    }

    /// Writes to what the guest has shared. False where it is not all RAM.
    pub fn write_shared(&self, gpa: u64, bytes: &[u8]) -> bool {
        let size = bytes.len() as u64;
        self.shared(gpa, size, |memory, offset| memory.write_slice(bytes, offset).is_ok())
    }

    fn shared(&self, gpa: u64, size: u64, access: impl FnOnce(VolatileSlice<'_>, usize) -> bool) -> bool {
        let regions = self.regions();
        let mut ram = regions.iter().flatten().filter(|region| region.private.is_some());
        let Some(region) = ram.find(|region| region.holds(gpa, size)) else { return false };
        let offset = usize::try_from(gpa - region.gpa);
        offset.is_ok_and(|offset| access(region.shared.as_volatile_slice(), offset))
    }

    /// Makes guest writes of `value` to `gpa` signal `event`.
    pub fn signal_on_write(&self, gpa: u64, value: u32, event: &EventFd) -> Result<(), HvError> {
        let mut request = abi::IoEventFd {
            datamatch: u64::from(value),
            addr: gpa,
            len: 4,
            fd: event.as_raw_fd(),
            flags: abi::IOEVENTFD_DATAMATCH,
            pad: [0; 36],
        };
        self.structure(self.vm(), abi::IOEVENTFD, &mut request, &mut [])
    }

    /// Delivers a message-signalled interrupt.
    pub fn send_msi(&self, address: u64, data: u32) -> Result<(), HvError> {
        let [low, high] = [address & 0xFFFF_FFFF, address >> 32].map(|half| u32::try_from(half).unwrap_or(0));
        let mut msi = abi::Msi { address_lo: low, address_hi: high, data, flags: 0, devid: 0, pad: [0; 12] };
        self.structure(self.vm(), abi::SIGNAL_MSI, &mut msi, &mut [])
    }
}

/// What KVM can show of this processor.
fn supported_cpuid(kernel: &dyn Kernel, kvm: BorrowedFd<'_>) -> Result<Vec<kvm_cpuid_entry2>, HvError> {
    let mut table = CpuidTable::with_room();
    let call = kernel.call(kvm, abi::GET_SUPPORTED_CPUID, Argument::Structure(&mut table.0, &mut []));
    call.map_err(failed(abi::GET_SUPPORTED_CPUID))?;
    table.entries()
}

/// A `struct kvm_cpuid2` with its entries.
#[derive(Debug)]
pub struct CpuidTable(pub Vec<u8>);

impl CpuidTable {
    /// Room for as many entries as KVM knows.
    pub fn with_room() -> Self {
        Self::of(&vec![kvm_cpuid_entry2::default(); KVM_MAX_CPUID_ENTRIES])
    }

    /// A table of `entries`.
    pub fn of(entries: &[kvm_cpuid_entry2]) -> Self {
        let nent = u32::try_from(entries.len()).unwrap_or(u32::MAX);
        let mut bytes = abi::CpuidHead { nent, padding: 0 }.as_bytes().to_vec();
        entries.iter().for_each(|entry| bytes.extend_from_slice(entry.as_bytes()));
        Self(bytes)
    }

    /// The entries that the kernel has filled in.
    pub fn entries(&self) -> Result<Vec<kvm_cpuid_entry2>, HvError> {
        let (head, entries) = abi::CpuidHead::read_from_prefix(&self.0).map_err(|_| HvError::Cpuid)?;
        let count = usize::try_from(head.nent).unwrap_or(usize::MAX);
        let bytes = count.checked_mul(size_of::<kvm_cpuid_entry2>()).and_then(|bytes| entries.get(..bytes));
        let entries = bytes.ok_or(HvError::Cpuid)?.chunks_exact(size_of::<kvm_cpuid_entry2>());
        entries.map(|entry| kvm_cpuid_entry2::read_from_bytes(entry).map_err(|_| HvError::Cpuid)).collect()
    }
}

/// An ioctl's failure, by its name.
pub fn failed(request: Request) -> impl FnOnce(io::Error) -> HvError {
    move |source| HvError::Call { call: request.name, source }
}
