//! The seam between the confidential backends and the kernel.
//!
//! Everything that a backend asks of the kernel goes through [`Kernel`]: opening devices, ioctls, the page that
//! a virtual CPU shares with the kernel, and letting go of memory. [`linux::Linux`] is the one implementation
//! that talks to a kernel, and all unsafe code of these backends is there. Tests put a recorder in its place
//! which plays kernel and secure processor, so that a whole launch is checked byte for byte on any machine.
//!
//! What a caller owes, since an ioctl can reach whatever an address in its argument leads to: every pointer
//! of an argument is filled in by the seam, from [`Nested`], never written by the caller; the argument is the
//! structure that the request takes, and length fields in it are true; memory named by [`Target::Memory`]
//! stays mapped until the kernel has been told to forget it, or the descriptor is closed.

pub mod linux;
#[cfg(test)]
pub mod recorder;

use std::ffi::CStr;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use vm_memory::{Bytes as _, MmapRegion, VolatileMemory as _, VolatileSlice};

/// One ioctl.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Its name in the kernel's headers, for messages.
    pub name: &'static str,
    /// Its number (`_IOC` of `asm-generic/ioctl.h`).
    pub number: u32,
}

impl Request {
    /// Bytes of the structure that the number declares; 0 where it declares none.
    #[must_use]
    pub const fn declared_bytes(self) -> usize {
        // Fourteen bits: no truncation.
        (self.number >> 16 & 0x3FFF) as usize
    }
}

/// What a pointer in an argument leads to.
#[derive(Debug)]
pub enum Target<'a> {
    /// Bytes that the kernel may read and write during the call only.
    Bytes(&'a mut [u8]),
    /// Memory of the guest, which the kernel keeps using after the call.
    Memory(&'a MmapRegion),
}

/// A pointer inside an argument: the seam writes the target's address at `offset`, 8 bytes.
#[derive(Debug)]
pub struct Nested<'a> {
    /// In which structure the pointer is: the argument itself, or the target of an earlier one in the list.
    pub within: Option<usize>,
    /// Where it is in that structure, in bytes.
    pub offset: usize,
    /// What it leads to.
    pub target: Target<'a>,
}

impl<'a> Nested<'a> {
    /// A pointer at `offset` of the argument to `bytes`.
    pub fn bytes(offset: usize, bytes: &'a mut [u8]) -> Self {
        Self { within: None, offset, target: Target::Bytes(bytes) }
    }

    /// A pointer at `offset` of the structure that pointer number `within` leads to.
    pub fn bytes_within(within: usize, offset: usize, bytes: &'a mut [u8]) -> Self {
        Self { within: Some(within), offset, target: Target::Bytes(bytes) }
    }

    /// A pointer at `offset` of the argument to memory of the guest.
    #[must_use]
    pub fn memory(offset: usize, memory: &'a MmapRegion) -> Self {
        Self { within: None, offset, target: Target::Memory(memory) }
    }
}

/// What an ioctl is given.
#[derive(Debug)]
pub enum Argument<'a, 'b> {
    /// A number.
    Value(u64),
    /// A structure, and the pointers in it. The kernel may write to all of it.
    Structure(&'a mut [u8], &'a mut [Nested<'b>]),
}

/// The memory that a virtual CPU and the kernel share (`kvm_run`, the MSHV message page).
///
/// The kernel writes it only while the virtual CPU is being run, which takes it by exclusive reference. It is
/// copied from and to, never borrowed.
#[derive(Debug)]
pub struct RunPage(MmapRegion);

impl RunPage {
    /// Wraps a mapping.
    #[must_use]
    pub const fn new(mapping: MmapRegion) -> Self {
        Self(mapping)
    }

    /// Size in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.size()
    }

    fn memory(&self) -> VolatileSlice<'_> {
        self.0.as_volatile_slice()
    }

    /// Copies from `offset` on into `buffer`.
    ///
    /// # Errors
    /// When that is not inside the mapping.
    pub fn read(&self, offset: usize, buffer: &mut [u8]) -> io::Result<()> {
        self.memory().read_slice(buffer, offset).map_err(io::Error::other)
    }

    /// Copies `bytes` to `offset` on.
    ///
    /// # Errors
    /// When that is not inside the mapping.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) -> io::Result<()> {
        self.memory().write_slice(bytes, offset).map_err(io::Error::other)
    }
}

/// The kernel, as the confidential backends use it.
pub trait Kernel: std::fmt::Debug + Send + Sync {
    /// Opens a device for reading and writing.
    ///
    /// # Errors
    /// What the kernel says.
    fn open(&self, path: &CStr) -> io::Result<OwnedFd>;

    /// Makes an ioctl whose answer is a number.
    ///
    /// # Errors
    /// What the kernel says. What it has written to the argument is there then, too.
    fn call(&self, fd: BorrowedFd<'_>, request: Request, argument: Argument<'_, '_>) -> io::Result<u64>;

    /// Makes an ioctl whose answer is a new descriptor.
    ///
    /// # Errors
    /// What the kernel says.
    fn create(&self, fd: BorrowedFd<'_>, request: Request, argument: Argument<'_, '_>)
    -> io::Result<OwnedFd>;

    /// Maps `bytes` of what a virtual CPU shares with the kernel.
    ///
    /// # Errors
    /// What the kernel says.
    fn map_run(&self, vcpu: BorrowedFd<'_>, bytes: usize) -> io::Result<RunPage> {
        self.map_run_at(vcpu, 0, bytes)
    }

    /// Maps `bytes` of what a virtual CPU shares with the kernel, from `offset` on of its descriptor.
    ///
    /// # Errors
    /// What the kernel says.
    fn map_run_at(&self, vcpu: BorrowedFd<'_>, offset: u64, bytes: usize) -> io::Result<RunPage>;

    /// Runs a virtual CPU by `request`, which takes no argument, until it comes back.
    ///
    /// # Errors
    /// What the kernel says; the page may tell more.
    fn run(&self, vcpu: BorrowedFd<'_>, request: Request, page: &mut RunPage) -> io::Result<()>;

    /// Gives `length` bytes from `offset` on of a mapping back to the kernel; they read as zeros afterwards.
    ///
    /// # Errors
    /// When the range is not inside the mapping, or what the kernel says.
    fn discard(&self, memory: &MmapRegion, offset: usize, length: usize) -> io::Result<()>;

    /// Gives `length` bytes from `offset` on of a memory file back to the kernel.
    ///
    /// # Errors
    /// What the kernel says.
    fn punch(&self, memory: BorrowedFd<'_>, offset: u64, length: u64) -> io::Result<()>;
}
