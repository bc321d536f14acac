//! The kernel that this process runs on.
#![allow(unsafe_code, reason = "ioctls and giving memory back are calls that the compiler cannot check")]

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use rustix::fs::{FallocateFlags, Mode, OFlags};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory as _};

use super::{Argument, Kernel, Nested, Request, RunPage, Target};

/// Bytes of a pointer in a kernel structure.
const POINTER_BYTES: usize = 8;

/// The running kernel.
#[derive(Debug, Clone, Copy, Default)]
pub struct Linux;

impl Kernel for Linux {
    fn open(&self, path: &CStr) -> io::Result<OwnedFd> {
        Ok(rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
    }

    fn call(&self, fd: BorrowedFd<'_>, request: Request, argument: Argument<'_, '_>) -> io::Result<u64> {
        ioctl(fd, request, argument).map(i64::cast_unsigned)
    }

    fn create(
        &self,
        fd: BorrowedFd<'_>,
        request: Request,
        argument: Argument<'_, '_>,
    ) -> io::Result<OwnedFd> {
        let created = RawFd::try_from(ioctl(fd, request, argument)?).map_err(io::Error::other)?;
        // SAFETY: the request is one that answers with a descriptor made for the caller alone.
        Ok(unsafe { OwnedFd::from_raw_fd(created) })
    }

    fn map_run_at(&self, vcpu: BorrowedFd<'_>, offset: u64, bytes: usize) -> io::Result<RunPage> {
        let file = File::from(vcpu.try_clone_to_owned()?);
        let mapping = MmapRegion::from_file(FileOffset::new(file, offset), bytes);
        mapping.map(RunPage::new).map_err(io::Error::other)
    }

    fn run(&self, vcpu: BorrowedFd<'_>, request: Request, _page: &mut RunPage) -> io::Result<()> {
        ioctl(vcpu, request, Argument::Value(0)).map(drop)
    }

    fn discard(&self, memory: &MmapRegion, offset: usize, length: usize) -> io::Result<()> {
        let range = memory.get_slice(offset, length).map_err(io::Error::other)?;
        // SAFETY: the range is inside a mapping of anonymous memory that `memory` owns, and memory of a guest
        // is only ever accessed as volatile, so that turning into zeros is just another write to it.
        let result =
            unsafe { libc::madvise(range.ptr_guard_mut().as_ptr().cast(), length, libc::MADV_DONTNEED) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn punch(&self, memory: BorrowedFd<'_>, offset: u64, length: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(memory, flags, offset, length)?)
    }
}

fn ioctl(fd: BorrowedFd<'_>, request: Request, argument: Argument<'_, '_>) -> io::Result<i64> {
    let argument = match argument {
        Argument::Value(value) => usize::try_from(value).map_err(io::Error::other)?,
        Argument::Structure(bytes, nested) => {
            if bytes.len() < request.declared_bytes() {
                return Err(invalid(request, "the argument is shorter than the request declares"));
            }
            link(request, bytes, nested)?;
            bytes.as_mut_ptr().expose_provenance()
        }
    };
    let number = libc::c_long::from(request.number);
    // SAFETY: the descriptor is open. A structure is at least as long as the request's number declares, and
    // its pointers have just been made from exclusive borrows that outlive the call, or lead to memory that
    // the caller keeps mapped; that it is the structure which this request takes is the caller's duty.
    let result = unsafe { libc::syscall(libc::SYS_ioctl, fd.as_raw_fd(), number, argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Writes the addresses of `nested` where they belong.
fn link(request: Request, argument: &mut [u8], nested: &mut [Nested<'_>]) -> io::Result<()> {
    for index in 0..nested.len() {
        let (earlier, rest) = nested.split_at_mut(index);
        let Some(Nested { within, offset, target }) = rest.first_mut() else { break };
        let address = match target {
            Target::Bytes(bytes) => bytes.as_mut_ptr().expose_provenance(),
            Target::Memory(memory) => memory.as_ptr().expose_provenance(),
        };
        let parent = match within.map(|parent| earlier.get_mut(parent)) {
            None => Some(&mut *argument),
            Some(Some(Nested { target: Target::Bytes(bytes), .. })) => Some(&mut **bytes),
            Some(_) => None,
        };
        let place = parent.and_then(|parent| parent.get_mut(*offset..)?.first_chunk_mut::<POINTER_BYTES>());
        let place = place.ok_or_else(|| invalid(request, "a pointer lies outside its structure"))?;
        *place = (address as u64).to_le_bytes();
    }
    Ok(())
}

fn invalid(request: Request, what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("{}: {what}", request.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: Request = Request { name: "TEST", number: 0xC018_AE00 };

    #[test]
    fn pointers_are_written_where_they_belong() {
        let (mut argument, mut outer, mut inner) = ([0; 24], [0; 16], [7; 4]);
        let expected = [outer.as_ptr() as u64, inner.as_ptr() as u64];
        let mut nested = [Nested::bytes(8, &mut outer), Nested::bytes_within(0, 4, &mut inner)];
        link(REQUEST, &mut argument, &mut nested).unwrap();
        assert_eq!(argument[8..16], expected[0].to_le_bytes());
        assert_eq!(outer[4..12], expected[1].to_le_bytes());
        assert_eq!((&argument[..8], &outer[..4], inner), (&[0; 8][..], &[0; 4][..], [7; 4]));
    }

    #[test]
    fn a_pointer_outside_its_structure_is_refused() {
        let (mut argument, mut outer) = ([0; 24], [0; 16]);
        assert!(link(REQUEST, &mut argument, &mut [Nested::bytes(17, &mut outer)]).is_err());
        assert!(link(REQUEST, &mut argument, &mut [Nested::bytes_within(0, 0, &mut outer)]).is_err());
    }

    #[test]
    fn an_argument_shorter_than_declared_never_reaches_the_kernel() {
        let null = Linux.open(c"/dev/null").unwrap();
        let error =
            ioctl(std::os::fd::AsFd::as_fd(&null), REQUEST, Argument::Structure(&mut [0; 23], &mut []));
        assert!(error.unwrap_err().to_string().contains("TEST: the argument is shorter"));
    }

    #[test]
    fn discarded_memory_reads_as_zeros() {
        use vm_memory::Bytes as _;
        let memory = MmapRegion::new(0x3000).unwrap();
        memory.as_volatile_slice().write_slice(&[9; 0x3000], 0).unwrap();
        Linux.discard(&memory, 0x1000, 0x1000).unwrap();
        let mut seen = [0; 0x3000];
        memory.as_volatile_slice().read_slice(&mut seen, 0).unwrap();
        assert_eq!((seen[0xFFF], seen[0x1000], seen[0x1FFF], seen[0x2000]), (9, 0, 0, 9));
        assert!(Linux.discard(&memory, 0x1000, 0x3000).is_err());
    }
}
