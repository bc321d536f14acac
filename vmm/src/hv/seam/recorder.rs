//! A kernel for tests: it writes down all that it is asked, and lets a [`Part`] play the answers.
//!
//! Its descriptors are memory files with names of their own, so that a test can count what is left open of
//! this recorder, whatever other tests of the process do.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};

use rustix::fs::MemfdFlags;
use vm_memory::MmapRegion;

use super::{Argument, Kernel, Nested, Request, RunPage, Target};

/// One thing that was asked, as it was asked: pointers are zeros, what they lead to is in `nested`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// On which descriptor: what made it (a path, or a request's name with the number given); a path for `open`.
    pub on: String,
    /// The ioctl's name, or `open`, `mmap`, `discard`, `punch`.
    pub name: &'static str,
    /// The ioctl's number, or 0.
    pub number: u32,
    /// The number given, where it takes one.
    pub value: u64,
    /// The structure given.
    pub argument: Vec<u8>,
    /// What its pointers led to: `(within, offset, bytes)`. Memory of the guest has its length for bytes.
    pub nested: Vec<(Option<usize>, usize, Vec<u8>)>,
}

/// Who plays the kernel.
pub trait Part: std::fmt::Debug + Send {
    /// Answers an ioctl on the descriptor that `on` made. For one that makes a descriptor, the number is
    /// ignored.
    ///
    /// # Errors
    /// What the kernel would say.
    fn answer(&mut self, on: &str, request: Request, argument: Argument<'_, '_>) -> io::Result<u64>;

    /// Runs the virtual CPU that `on` made: fills its page.
    ///
    /// # Errors
    /// What the kernel would say.
    fn run(&mut self, on: &str, page: &mut RunPage) -> io::Result<()>;
}

/// The recording kernel.
#[derive(Debug)]
pub struct Recorder<P> {
    id: usize,
    part: Mutex<P>,
    log: Mutex<Vec<Entry>>,
    /// Which entry fails, counted from 0, and with which error number.
    failure: Option<(usize, i32)>,
}

impl<P: Part> Recorder<P> {
    /// A recorder of which nothing fails that `part` does not fail.
    pub fn new(part: P) -> Self {
        static RECORDERS: AtomicUsize = AtomicUsize::new(0);
        let id = RECORDERS.fetch_add(1, Ordering::Relaxed);
        Self { id, part: Mutex::new(part), log: Mutex::default(), failure: None }
    }

    /// A recorder whose entry number `index` fails with `errno`.
    pub fn failing(part: P, index: usize, errno: i32) -> Self {
        Self { failure: Some((index, errno)), ..Self::new(part) }
    }

    /// All that was asked so far.
    pub fn log(&self) -> Vec<Entry> {
        self.log.lock().unwrap().clone()
    }

    /// The player.
    pub fn part(&self) -> MutexGuard<'_, P> {
        self.part.lock().unwrap()
    }

    /// Descriptors that are still open.
    pub fn open_descriptors(&self) -> usize {
        let prefix = format!("/memfd:seam{}:", self.id);
        let links = std::fs::read_dir("/proc/self/fd").unwrap();
        let targets = links.filter_map(|link| std::fs::read_link(link.ok()?.path()).ok());
        targets.filter(|target| target.to_string_lossy().starts_with(&prefix)).count()
    }

    fn descriptor(&self, made_by: &str) -> io::Result<OwnedFd> {
        let name = format!("seam{}:{made_by}", self.id);
        Ok(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?)
    }

    /// What made a descriptor.
    fn maker(&self, fd: BorrowedFd<'_>) -> io::Result<String> {
        let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
        let prefix = format!("/memfd:seam{}:", self.id);
        let name = link.to_string_lossy().into_owned();
        let name = name.strip_prefix(&prefix).and_then(|name| name.strip_suffix(" (deleted)"));
        Ok(name.ok_or_else(|| io::Error::other(format!("{link:?} is not of this recorder")))?.to_owned())
    }

    fn record(&self, entry: Entry) -> io::Result<()> {
        let mut log = self.log.lock().unwrap();
        log.push(entry);
        match self.failure {
            Some((index, errno)) if index + 1 == log.len() => Err(io::Error::from_raw_os_error(errno)),
            _ => Ok(()),
        }
    }

    fn note(&self, on: &str, name: &'static str, value: u64, argument: Vec<u8>) -> io::Result<()> {
        self.record(Entry { on: on.into(), name, number: 0, value, argument, nested: Vec::new() })
    }
}

impl<P: Part> Kernel for Recorder<P> {
    fn open(&self, path: &CStr) -> io::Result<OwnedFd> {
        let path = path.to_string_lossy();
        self.note(&path, "open", 0, Vec::new())?;
        self.descriptor(&path)
    }

    fn call(&self, fd: BorrowedFd<'_>, request: Request, argument: Argument<'_, '_>) -> io::Result<u64> {
        let on = self.maker(fd)?;
        if let Argument::Structure(bytes, _) = &argument {
            assert!(bytes.len() >= request.declared_bytes(), "{}: argument too short", request.name);
        }
        self.record(entry(&on, request, &argument))?;
        self.part.lock().unwrap().answer(&on, request, argument)
    }

    fn create(
        &self,
        fd: BorrowedFd<'_>,
        request: Request,
        argument: Argument<'_, '_>,
    ) -> io::Result<OwnedFd> {
        let made_by = match &argument {
            Argument::Value(value) => format!("{}({value})", request.name),
            Argument::Structure(..) => request.name.to_owned(),
        };
        self.call(fd, request, argument)?;
        self.descriptor(&made_by)
    }

    fn map_run_at(&self, vcpu: BorrowedFd<'_>, offset: u64, bytes: usize) -> io::Result<RunPage> {
        let at = if offset == 0 { Vec::new() } else { offset.to_le_bytes().to_vec() };
        self.note(&self.maker(vcpu)?, "mmap", bytes as u64, at)?;
        Ok(RunPage::new(MmapRegion::new(bytes).map_err(io::Error::other)?))
    }

    fn run(&self, vcpu: BorrowedFd<'_>, request: Request, page: &mut RunPage) -> io::Result<()> {
        let on = self.maker(vcpu)?;
        self.record(entry(&on, request, &Argument::Value(0)))?;
        self.part.lock().unwrap().run(&on, page)
    }

    fn discard(&self, memory: &MmapRegion, offset: usize, length: usize) -> io::Result<()> {
        assert!(offset + length <= memory.size(), "discard past the end of the mapping");
        self.note("memory", "discard", offset as u64, (length as u64).to_le_bytes().to_vec())
    }

    fn punch(&self, memory: BorrowedFd<'_>, offset: u64, length: u64) -> io::Result<()> {
        self.note(&self.maker(memory)?, "punch", offset, length.to_le_bytes().to_vec())
    }
}

fn entry(on: &str, request: Request, argument: &Argument<'_, '_>) -> Entry {
    let (value, argument, nested) = match argument {
        Argument::Value(value) => (*value, Vec::new(), Vec::new()),
        Argument::Structure(bytes, nested) => (0, bytes.to_vec(), nested.iter().map(pointed_to).collect()),
    };
    Entry { on: on.into(), name: request.name, number: request.number, value, argument, nested }
}

fn pointed_to(nested: &Nested<'_>) -> (Option<usize>, usize, Vec<u8>) {
    let bytes = match &nested.target {
        Target::Bytes(bytes) => bytes.to_vec(),
        Target::Memory(memory) => memory.size().to_le_bytes().to_vec(),
    };
    (nested.within, nested.offset, bytes)
}
