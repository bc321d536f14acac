#![allow(unsafe_code, reason = "device-mapper is driven by ioctls on a structure of its own")]
//! Device-mapper: the slice of a disk that is one layer, and dm-verity over it.
//!
//! Follows the kernel's `uapi/linux/dm-ioctl.h` (interface version 4) and `admin-guide/device-mapper/verity.rst`.
//!
//! Unsafe: one `ioctl`. The buffer begins with a complete `struct dm_ioctl` whose `data_size` is the buffer's
//! length, and the kernel reads and writes only within `data_size`.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use agent_protocol::storage::VerityInfo;

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

/// Most bytes of a request: one target and its parameters.
const BUFFER: usize = 2048;
type Buffer = [u8; BUFFER];
const READ_ONLY: u32 = 1;
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

/// A table of one read-only target.
#[derive(Debug, PartialEq, Eq)]
pub struct Table {
    target: &'static str,
    sectors: u64,
    parameters: String,
}

/// The `length` bytes at `offset` of the disk with number `disk` ("major:minor").
#[must_use]
pub fn linear(disk: &str, offset: u64, length: u64) -> Table {
    Table { target: "linear", sectors: length / SECTOR, parameters: format!("{disk} {}", offset / SECTOR) }
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
    Table { target: "verity", sectors: info.blocknum.saturating_mul(BLOCK / SECTOR), parameters }
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
        let name = format!("uvm-{}-{}", table.target, NEXT.fetch_add(1, Ordering::Relaxed));
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
        let mut buffer = request(Command::Status, name, None)?;
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
        let mut buffer = request(command, name, table)?;
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

/// The request as bytes: header, then for a table the target's description and parameters.
fn request(command: Command, name: &str, table: Option<&Table>) -> Result<Buffer> {
    let too_long =
        || AgentError::Invalid(format!("device-mapper request for {name} is longer than {BUFFER} bytes"));
    let mut buffer = [0; BUFFER];
    let mut put = |at: usize, bytes: &[u8]| -> Result<()> {
        buffer.get_mut(at..at + bytes.len()).ok_or_else(too_long)?.copy_from_slice(bytes);
        Ok(())
    };
    let flags = if matches!(command, Command::Load) { READ_ONLY } else { 0 };
    let words = [4, 0, 0, 2048, 312, u32::from(table.is_some()), 0, flags];
    for (at, word) in words.into_iter().enumerate() {
        put(at * 4, &u32::to_ne_bytes(word))?;
    }
    if name.len() > 127 {
        return Err(too_long());
    }
    put(48, name.as_bytes())?;
    if let Some(table) = table {
        put(HEADER + 8, &table.sectors.to_ne_bytes())?;
        put(HEADER + 24, table.target.as_bytes())?;
        put(HEADER + TARGET, table.parameters.as_bytes())?;
        // The parameters end with a NUL, which must be inside the buffer too.
        put(HEADER + TARGET + table.parameters.len(), &[0])?;
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
        assert_eq!(
            linear("254:16", 8192, 20480),
            Table { target: "linear", sectors: 40, parameters: "254:16 16".to_owned() }
        );
        let info = VerityInfo::sha256(&"ab".repeat(32), 3);
        let table = verity("253:0", &info, OnCorruption::Fail);
        assert_eq!((table.target, table.sectors), ("verity", 24));
        let expected = format!("1 253:0 253:0 4096 4096 3 4 sha256 {} {}", "ab".repeat(32), "00".repeat(32));
        assert_eq!(table.parameters, expected);
        let table = verity("253:0", &info, OnCorruption::Panic);
        assert_eq!(table.parameters, format!("{expected} 1 panic_on_corruption"));
    }

    #[test]
    fn a_status_is_what_follows_the_targets_description() {
        let mut buffer = request(Command::Status, "uvm-x", None).unwrap();
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
        let buffer = request(Command::Load, "uvm-x", Some(&table)).unwrap();
        let header = header_of(&buffer);
        assert_eq!((header.version, header.data_size, header.data_start), ([4, 0, 0], 2048, 312));
        assert_eq!((header.target_count, header.flags, header.dev), (1, READ_ONLY, 0));
        assert!(header.name.starts_with(b"uvm-x\0"));
        assert_eq!(buffer[HEADER + 8], 8);
        assert!(buffer[HEADER + 24..].starts_with(b"linear\0"));
        assert!(buffer[HEADER + TARGET..].starts_with(b"254:16 0\0"));
        let long = Table { parameters: "x".repeat(BUFFER), ..table };
        assert!(request(Command::Load, "uvm-x", Some(&long)).is_err());
        assert!(request(Command::Create, &"n".repeat(128), None).is_err());
    }
}
