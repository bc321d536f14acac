//! Scratch space: a disk of the host's, made private and whole by keys that never leave this guest.
//!
//! ```text
//! /dev/vdc, /dev/ram0 ─► linear ─► dm-integrity ─► dm-crypt ─► ext4 at /run/uvm/scratch
//! ```
//! Each sector of 4096 bytes is encrypted with AES-256-XTS under a fresh random tweak and authenticated, together
//! with its position, by HMAC-SHA-256; tweak and tag are kept on the disk by dm-integrity. The host can withhold a
//! sector, or give back an earlier state of it; it cannot read, change, make or move one.
//!
//! Nothing that the host wrote is interpreted: dm-integrity's superblock and journal lie in guest memory and are
//! made afresh, keys are drawn at each start, and a sector that was never written fails its authentication. So the
//! disk needs no wiping, and the host's file stays as sparse as its contents; but whoever uses the device must not
//! read before writing, which is what `ext4_format` and its mount options see to.
//!
//! Keys are in the kernel's memory only, end with the guest, and are never written anywhere.

mod keys;
mod stack;

use std::fs::File;
use std::path::{Path, PathBuf};

use agent_protocol::paths;
use agent_protocol::storage::{ScratchStorage, scratch};
use ext4_format::Identity;
use rustix::fs::OFlags;

use crate::error::{AgentError, Context, Result};
use crate::layers::dm::{DeviceMapper, Table};
use crate::layers::mount;

/// The memory disk that has dm-integrity's superblock and journal.
const MEMORY_DISK: &str = "/dev/ram0";
/// What the guest holds ends with it, so flushing the host's disk would only cost time.
const NO_FLUSHES: &str = "nobarrier";

/// The disks below scratch space, as numbers ("major:minor"), and their size.
#[derive(Debug, Clone)]
pub struct Disks {
    /// The host's disk.
    pub host: String,
    /// A disk in guest memory that has never been written.
    pub memory: String,
    /// Bytes of the host's disk that may be used, a multiple of 4096.
    pub bytes: u64,
}

/// Makes the pod's scratch space and mounts it at [`paths::SCRATCH`]. It lasts as long as the guest.
///
/// # Errors
/// If the disk does not reach its size, or the kernel refuses a step. What was made until then stays: a guest
/// without the space that was asked for is of no use.
pub async fn open(storage: ScratchStorage) -> Result<()> {
    let host = mount::wait_for_disk(scratch::DEVICE, storage.bytes).await?;
    let memory = mount::wait_for_disk(MEMORY_DISK, stack::RESERVED).await?;
    let disks = Disks { host, memory, bytes: storage.bytes };
    // Writing takes the host's time, not this thread's.
    let made = tokio::task::spawn_blocking(move || {
        let device = assemble(&disks)?;
        std::fs::create_dir_all(paths::SCRATCH).doing(|| format!("make {}", paths::SCRATCH))?;
        mount_new(&device, Path::new(paths::SCRATCH))
    });
    made.await.map_err(|error| AgentError::Runtime(format!("make scratch space: {error}")))?
}

/// Puts encryption and authentication on top of `disks`, under new keys. Gives the device's node and its bytes.
///
/// # Errors
/// If the disk is too small, there is no entropy, or the kernel refuses a table.
pub fn assemble(disks: &Disks) -> Result<Device> {
    let mapper = DeviceMapper::open()?;
    let bytes = stack::data_bytes(disks.bytes).ok_or_else(|| {
        AgentError::Invalid(format!("scratch space of {} bytes: no room for its tags", disks.bytes))
    })?;
    let joined = mapper.create(&Table::writable("scratch", stack::joined(disks)))?;
    let tagged = mapper.create(&Table::writable("tags", vec![stack::integrity(&joined.number, bytes)]))?;
    let keys = keys::draw()?;
    let private =
        mapper.create(&Table::writable("private", vec![stack::crypt(&tagged.number, bytes, &keys)]))?;
    Ok(Device { node: private.node, bytes, parts: vec![private.name, tagged.name, joined.name] })
}

/// A private device.
#[derive(Debug)]
pub struct Device {
    /// Its node.
    pub node: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Names of the devices that it is made of, top first: the order in which they are removed.
    pub parts: Vec<String>,
}

/// Makes a file system on `device` and mounts it at `target`.
///
/// # Errors
/// If the device cannot be written, or the kernel refuses the file system.
pub fn mount_new(device: &Device, target: &Path) -> Result<()> {
    let shown = || format!("make a file system on {}", device.node.display());
    let identity = Identity { uuid: keys::bytes()?, hash_seed: keys::bytes()? };
    let flags = OFlags::WRONLY | OFlags::EXCL | OFlags::CLOEXEC;
    let node = rustix::fs::open(&device.node, flags, rustix::fs::Mode::empty()).doing(shown)?;
    let mut node = File::from(node);
    ext4_format::format(&mut node, device.bytes, &identity)
        .map_err(std::io::Error::other)
        .and_then(|_| node.sync_all())
        .doing(shown)?;
    drop(node);
    mount::ext4(&device.node, target, &format!("{},{NO_FLUSHES}", ext4_format::MOUNT_OPTIONS))
}
