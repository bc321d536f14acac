//! The storage that gives a pod its encrypted writable space.
//!
//! It names a whole block device and how many of its bytes the guest may use, and nothing else: there is no key,
//! cipher, file system option or label in it, because the guest draws or fixes all of those itself and believes
//! nothing that it finds on the device.

use super::{DRIVER_BLOCK, StorageError, bytes_option, expect, expect_plain, field_error};
use crate::paths;
use crate::rpc::agent::Storage;

/// The one device that takes scratch space.
pub const DEVICE: &str = "/dev/vdc";
/// Key of the driver option with the number of bytes of the device that belong to the guest.
pub const OPTION_BYTES: &str = "uvm.scratch_bytes";
/// Smallest scratch device, in bytes: less would hold little beside its own bookkeeping.
pub const MIN_BYTES: u64 = 32 << 20;

/// Encrypted writable space for a pod's containers and volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScratchStorage {
    /// Bytes of the device, a multiple of 4096 from [`MIN_BYTES`] to 16 TiB. Authentication tags and the file
    /// system's own structures are taken from it.
    pub bytes: u64,
}

impl ScratchStorage {
    /// The message that carries this scratch space, for `CreateSandboxRequest.storages`.
    ///
    /// # Errors
    /// If the size is one that [`ScratchStorage::parse`] would refuse.
    pub fn to_message(self) -> Result<Storage, StorageError> {
        let message = Storage {
            driver: DRIVER_BLOCK.to_owned(),
            driver_options: vec![format!("{OPTION_BYTES}={}", self.bytes)],
            source: DEVICE.to_owned(),
            fstype: "ext4".to_owned(),
            mount_point: paths::SCRATCH.to_owned(),
            ..Storage::default()
        };
        Self::parse(&message).map(|_| message)
    }

    /// Reads scratch space from its message.
    ///
    /// # Errors
    /// Names the first field that is not as [`ScratchStorage::to_message`] would have written it.
    pub fn parse(message: &Storage) -> Result<Self, StorageError> {
        expect(message, "driver", &message.driver, DRIVER_BLOCK)?;
        expect(message, "source", &message.source, DEVICE)?;
        expect(message, "fstype", &message.fstype, "ext4")?;
        expect(message, "mount_point", &message.mount_point, paths::SCRATCH)?;
        expect_plain(message)?;
        if !message.options.is_empty() {
            return Err(field_error(message, "options", &message.options.join(","), "none"));
        }
        let [option] = message.driver_options.as_slice() else {
            let found = message.driver_options.join(" ");
            return Err(field_error(message, "driver_options", &found, "uvm.scratch_bytes alone"));
        };
        let bytes = bytes_option(message, OPTION_BYTES, option)?;
        if bytes < MIN_BYTES {
            return Err(field_error(message, OPTION_BYTES, &bytes.to_string(), "at least 33554432 (32 MiB)"));
        }
        Ok(Self { bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scratch_space_survives_the_wire() {
        for bytes in [MIN_BYTES, MIN_BYTES + 4096, 1 << 44] {
            let scratch = ScratchStorage { bytes };
            let message = scratch.to_message().unwrap();
            assert_eq!(message.driver_options, [format!("uvm.scratch_bytes={bytes}")]);
            assert_eq!((message.source.as_str(), message.fstype.as_str()), ("/dev/vdc", "ext4"));
            assert_eq!(message.mount_point, "/run/uvm/scratch");
            assert_eq!(ScratchStorage::parse(&message).unwrap(), scratch);
        }
        for bytes in [0, MIN_BYTES - 4096, MIN_BYTES + 1, (1 << 44) + 4096] {
            assert!(ScratchStorage { bytes }.to_message().is_err(), "{bytes}");
        }
    }

    #[test]
    fn every_changed_field_is_refused() {
        type Change = (&'static str, fn(&mut Storage));
        let change: [Change; 12] = [
            ("driver", |s| s.driver = "blk".to_owned()),
            ("source", |s| s.source = "/dev/vdb".to_owned()),
            ("fstype", |s| s.fstype = "erofs".to_owned()),
            ("mount_point", |s| s.mount_point = "/run".to_owned()),
            ("shared", |s| s.shared = true),
            ("fs_group", |s| s.fs_group = protobuf::MessageField::some(crate::rpc::agent::FSGroup::new())),
            ("options", |s| s.options.push("suid".to_owned())),
            ("driver_options", |s| s.driver_options.clear()),
            ("driver_options", |s| s.driver_options.push("key=0".to_owned())),
            ("driver_options", |s| s.driver_options[0] = "bytes=67108864".to_owned()),
            (OPTION_BYTES, |s| s.driver_options[0] = format!("{OPTION_BYTES}=067108864")),
            (OPTION_BYTES, |s| s.driver_options[0] = format!("{OPTION_BYTES}={}", u64::MAX)),
        ];
        for (expected, apply) in change {
            let mut message = ScratchStorage { bytes: 64 << 20 }.to_message().unwrap();
            apply(&mut message);
            match ScratchStorage::parse(&message) {
                Err(StorageError::Field { field, .. }) => assert_eq!(field, expected),
                other => panic!("{expected}: {other:?}"),
            }
        }
    }
}
