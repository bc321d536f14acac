#![allow(unsafe_code, reason = "device-mapper is driven by ioctls on a structure of its own")]
//! Device-mapper: the slice of a disk that is one layer, dm-verity over it, and tables of other targets.
//!
//! Follows the kernel's `uapi/linux/dm-ioctl.h` (interface version 4) and `admin-guide/device-mapper/verity.rst`.
//! A table's parameters may hold a key: they are wiped here when they are dropped, and by the kernel when it has
//! read them.
//!
//! Unsafe: one `ioctl`. The buffer begins with a complete `struct dm_ioctl` whose `data_size` is the buffer's
//! length, and the kernel reads and writes only within `data_size`.

use std::fmt;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use agent_protocol::storage::VerityInfo;
use zeroize::Zeroizing;

use crate::error::{AgentError, Context, Result};
use crate::expectation::OnCorruption;

/// `struct dm_ioctl`, the head of every request and answer.
#[repr(C)]
#[derive(Clone, Copy)]
struct Header {
    version: [u32; 3],
    data_size: u32,
    data_start: u32,
    target_count: u32,
    open_count: i32,
    flags: u32,
    event_nr: u32,
    padding: u32,
    dev: u64,
    name: [u8; 128],
    uuid: [u8; 129],
    data: [u8; 7],
}

const HEADER: usize = 312;
/// Size of `struct dm_target_spec`, which precedes a target's parameters.
const TARGET: usize = 40;
const _: () = assert!(size_of::<Header>() == HEADER);
const _: () = assert!(std::mem::offset_of!(Header, dev) == 40);
const _: () = assert!(std::mem::offset_of!(Header, name) == 48);

/// Bytes of a request: room for two targets with their parameters.
const BUFFER: usize = 2048;
/// A request, and then its answer: of [`BUFFER`] bytes, made by [`request`] alone. On the heap, where wiping reaches
/// every copy.
type Buffer = Zeroizing<Vec<u8>>;
const READ_ONLY: u32 = 1;
/// The kernel wipes its copy of the request.
const SECURE_DATA: u32 = 1 << 15;
const SECTOR: u64 = 512;
const BLOCK: u64 = 4096;
/// 32 zero bytes in hexadecimal: the salt of the layer format.
const SALT: &str = "0000000000000000000000000000000000000000000000000000000000000000";

#[derive(Clone, Copy, Debug)]
enum Command {
    Create = 3,
    Remove = 4,
    /// Without the suspend flag: make the loaded table live.
    Resume = 6,
    Load = 9,
    /// Without the flag that asks for the table: its targets' states.
    Status = 12,
}

impl Command {
    /// `_IOWR(0xfd, n, struct dm_ioctl)`.
    fn number(self) -> libc::c_ulong {
        const READ_WRITE: u32 = 3;
        const SIZE: u32 = 312;
        libc::c_ulong::from(READ_WRITE << 30 | SIZE << 16 | 0xfd << 8 | self as u32)
    }
}

/// A stretch of a device, and what serves it.
#[derive(PartialEq, Eq)]
pub struct Target {
    kind: &'static str,
    sectors: u64,
    parameters: Zeroizing<String>,
}

impl Target {
    /// A target for `bytes` bytes, a multiple of 512, with the parameters that the kernel's documentation gives for
    /// `kind`.
    #[must_use]
    pub fn new(kind: &'static str, bytes: u64, parameters: Zeroizing<String>) -> Self {
        Self { kind, sectors: bytes / SECTOR, parameters }
    }

    /// The `length` bytes at `offset` of the disk with number `disk` ("major:minor").
    #[must_use]
    pub fn linear(disk: &str, offset: u64, length: u64) -> Self {
        Self::new("linear", length, format!("{disk} {}", offset / SECTOR).into())
    }

    /// Kind, sectors and parameters, as the kernel gets them.
    #[cfg(test)]
    pub fn parts(&self) -> (&str, u64, &str) {
        (self.kind, self.sectors, &self.parameters)
    }
}

/// Without the parameters, which may hold a key.
impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("kind", &self.kind)
            .field("sectors", &self.sectors)
            .finish_non_exhaustive()
    }
}

/// What a device is made of: targets, one after another.
#[derive(Debug, PartialEq, Eq)]
pub struct Table {
    /// Part of the device's name.
    name: &'static str,
    flags: u32,
    targets: Vec<Target>,
}

impl Table {
    /// A device that refuses to be written.
    #[must_use]
    pub fn read_only(name: &'static str, target: Target) -> Self {
        Self { name, flags: READ_ONLY, targets: vec![target] }
    }

    /// A device that can be written.
    #[must_use]
    pub fn writable(name: &'static str, targets: Vec<Target>) -> Self {
        Self { name, flags: 0, targets }
    }
}

/// The `length` bytes at `offset` of the disk with number `disk` ("major:minor"), read-only.
#[must_use]
pub fn linear(disk: &str, offset: u64, length: u64) -> Table {
    Table::read_only("linear", Target::linear(disk, offset, length))
}

/// dm-verity over the layer on `device` ("major:minor"), which holds data and hash tree. A block that does not
/// match the tree is a read error or a panic.
#[must_use]
pub fn verity(device: &str, info: &VerityInfo, on_corruption: OnCorruption) -> Table {
    let mut parameters = format!(
        "1 {device} {device} {BLOCK} {BLOCK} {} {} {} {} {SALT}",
        info.blocknum,
        info.offset / BLOCK,
        info.hashtype,
        info.hash
    );
    match on_corruption {
        OnCorruption::Fail => {}
        OnCorruption::Panic => parameters += " 1 panic_on_corruption",
    }
    Table::read_only("verity", Target::new("verity", info.blocknum.saturating_mul(BLOCK), parameters.into()))
}

/// A device that exists.
#[derive(Debug)]
pub struct Device {
    /// Its name, by which it is removed.
    pub name: String,
    /// Its number, "major:minor".
    pub number: String,
    /// Its node.
    pub node: PathBuf,
}

/// The control device.
#[derive(Debug)]
pub struct DeviceMapper(File);

/// Names need only be unique in this guest.
static NEXT: AtomicU32 = AtomicU32::new(0);

impl DeviceMapper {
    /// Opens the control device.
    ///
    /// # Errors
    /// If the kernel has none.
    pub fn open() -> Result<Self> {
        let path = "/dev/mapper/control";
        File::options().read(true).write(true).open(path).map(Self).doing(|| format!("open {path}"))
    }

    /// Creates a device with `table`. A failure leaves nothing behind.
    ///
    /// # Errors
    /// If the kernel refuses the table.
    pub fn create(&self, table: &Table) -> Result<Device> {
        let name = format!("uvm-{}-{}", table.name, NEXT.fetch_add(1, Ordering::Relaxed));
        let number = self.call(Command::Create, &name, None)?.dev;
        let live = self
            .call(Command::Load, &name, Some(table))
            .and_then(|_| self.call(Command::Resume, &name, None));
        if let Err(error) = live {
            self.remove(&name)?;
            return Err(error);
        }
        let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
        Ok(Device {
            name,
            number: format!("{major}:{minor}"),
            node: PathBuf::from(format!("/dev/dm-{minor}")),
        })
    }

    /// Removes a device.
    ///
    /// # Errors
    /// If it is in use.
    pub fn remove(&self, name: &str) -> Result<()> {
        self.call(Command::Remove, name, None).map(|_| ())
    }

    /// Whether a verity device has met a block that does not match its tree.
    ///
    /// # Errors
    /// If there is no such device.
    pub fn verity_has_failed(&self, name: &str) -> Result<bool> {
        let mut buffer = request(name, None)?;
        self.ioctl(Command::Status, name, &mut buffer)?;
        // The status of a verity target is a letter: V as long as all was valid, C after corruption.
        match status(&buffer) {
            Some(b"V") => Ok(false),
            Some(b"C") => Ok(true),
            other => Err(AgentError::Runtime(format!(
                "device-mapper status of {name}: expected V or C, found {:?}",
                other.map(String::from_utf8_lossy)
            ))),
        }
    }

    fn call(&self, command: Command, name: &str, table: Option<&Table>) -> Result<Header> {
        let mut buffer = request(name, table)?;
        self.ioctl(command, name, &mut buffer)?;
        Ok(header_of(&buffer))
    }

    fn ioctl(&self, command: Command, name: &str, buffer: &mut Buffer) -> Result<()> {
        // SAFETY: `buffer` starts with a Header whose data_size is its length (see the module), and outlives the call.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), command.number(), buffer.as_mut_ptr()) };
        if result != 0 {
            let error = std::io::Error::last_os_error();
            return Err(error).doing(|| format!("device-mapper {command:?} of {name}"));
        }
        Ok(())
    }
}

/// The request as bytes: header, then for each of a table's targets its description and parameters.
fn request(name: &str, table: Option<&Table>) -> Result<Buffer> {
    let too_long =
        || AgentError::Invalid(format!("device-mapper request for {name} is longer than {BUFFER} bytes"));
    let mut buffer = Zeroizing::new(vec![0; BUFFER]);
    let mut put = |at: usize, bytes: &[u8]| -> Result<()> {
        buffer.get_mut(at..at + bytes.len()).ok_or_else(too_long)?.copy_from_slice(bytes);
        Ok(())
    };
    let targets = table.map_or(&[][..], |table| &table.targets);
    let flags = table.map_or(0, |table| table.flags | SECURE_DATA);
    let count = u32::try_from(targets.len()).map_err(|_| too_long())?;
    for (at, word) in [4, 0, 0, 2048, 312, count, 0, flags].into_iter().enumerate() {
        put(at * 4, &u32::to_ne_bytes(word))?;
    }
    if name.len() > 127 {
        return Err(too_long());
    }
    put(48, name.as_bytes())?;
    let (mut at, mut sector) = (HEADER, 0_u64);
    for target in targets {
        // The parameters end with a NUL, which must be inside the buffer too; the next target is aligned.
        let length = (TARGET + target.parameters.len() + 1).next_multiple_of(8);
        put(at, &sector.to_ne_bytes())?;
        put(at + 8, &target.sectors.to_ne_bytes())?;
        put(at + 20, &u32::try_from(length).map_err(|_| too_long())?.to_ne_bytes())?;
        put(at + 24, target.kind.as_bytes())?;
        put(at + TARGET, target.parameters.as_bytes())?;
        put(at + length - 1, &[0])?;
        at += length;
        sector = sector.saturating_add(target.sectors);
    }
    Ok(buffer)
}

fn header_of(buffer: &Buffer) -> Header {
    // SAFETY: the buffer is longer than a Header, every bit pattern is a Header, and the read needs no alignment.
    unsafe { buffer.as_ptr().cast::<Header>().read_unaligned() }
}

/// The words after the first target's description in an answer.
fn status(buffer: &Buffer) -> Option<&[u8]> {
    let header = header_of(buffer);
    let start = usize::try_from(header.data_start).ok().filter(|_| header.target_count > 0)?;
    let text = buffer.get(start.checked_add(TARGET)?..)?;
    text.split(|byte| *byte == 0).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_written_as_the_kernel_reads_them() {
        let table = linear("254:16", 8192, 20480);
        assert_eq!((table.flags, table.targets[0].parts()), (READ_ONLY, ("linear", 40, "254:16 16")));
        let info = VerityInfo::sha256(&"ab".repeat(32), 3);
        let table = verity("253:0", &info, OnCorruption::Fail);
        let expected = format!("1 253:0 253:0 4096 4096 3 4 sha256 {} {}", "ab".repeat(32), "00".repeat(32));
        assert_eq!((table.flags, table.targets[0].parts()), (READ_ONLY, ("verity", 24, expected.as_str())));
        let table = verity("253:0", &info, OnCorruption::Panic);
        assert_eq!(table.targets[0].parts().2, format!("{expected} 1 panic_on_corruption"));
    }

    #[test]
    fn a_status_is_what_follows_the_targets_description() {
        let mut buffer = request("uvm-x", None).unwrap();
        assert_eq!(status(&buffer), None);
        buffer[20] = 1;
        buffer[HEADER + TARGET..HEADER + TARGET + 2].copy_from_slice(b"C\0");
        assert_eq!(status(&buffer), Some(&b"C"[..]));
        // An answer that would lie outside.
        buffer[16..20].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(status(&buffer), None);
    }

    #[test]
    fn numbers_are_those_of_the_kernels_header() {
        assert_eq!(Command::Create.number(), 0xc138_fd03);
        assert_eq!(Command::Load.number(), 0xc138_fd09);
    }

    #[test]
    fn a_request_has_its_parts_in_place() {
        let table = linear("254:16", 0, 4096);
        let buffer = request("uvm-x", Some(&table)).unwrap();
        let header = header_of(&buffer);
        assert_eq!((header.version, header.data_size, header.data_start), ([4, 0, 0], 2048, 312));
        assert_eq!((header.target_count, header.flags, header.dev), (1, READ_ONLY | SECURE_DATA, 0));
        assert!(header.name.starts_with(b"uvm-x\0"));
        assert_eq!(buffer[HEADER + 8], 8);
        assert!(buffer[HEADER + 24..].starts_with(b"linear\0"));
        assert!(buffer[HEADER + TARGET..].starts_with(b"254:16 0\0"));
        let long = Target::new("linear", 4096, "x".repeat(BUFFER).into());
        assert!(request("uvm-x", Some(&Table::read_only("long", long))).is_err());
        assert!(request(&"n".repeat(128), None).is_err());
    }

    #[test]
    fn targets_follow_one_another() {
        let targets = vec![Target::linear("1:0", 0, 4096), Target::linear("254:32", 0, 8192)];
        let buffer = request("uvm-x", Some(&Table::writable("joined", targets))).unwrap();
        let header = header_of(&buffer);
        assert_eq!((header.target_count, header.flags), (2, SECURE_DATA));
        // 40 bytes, "1:0 0" and its NUL, up to a multiple of 8.
        let next = &buffer[HEADER + 48..];
        assert_eq!((buffer[HEADER + 20], next[0], next[8]), (48, 8, 16));
        assert!(next[24..].starts_with(b"linear\0") && next[TARGET..].starts_with(b"254:32 0\0"));
    }

    #[test]
    fn parameters_are_not_shown() {
        let target = Target::new("crypt", 4096, "secret".to_owned().into());
        assert!(!format!("{:?}", Table::writable("x", vec![target])).contains("secret"));
    }
}
