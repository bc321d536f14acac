//! Typed forms of the storages that make an image root file system, of the volumes mounted into it, and of a
//! pod's scratch space.
//!
//! The layers of all containers of a pod are slices of one block device. For each layer of a container, bottom
//! first, a [`LayerStorage`] names the slice and the dm-verity root hash that its contents must have; an
//! [`OverlayStorage`] then stacks the mounted layers. A layer is mounted where its root hash says, so containers
//! that have a layer in common name the same mount. A [`VolumeStorage`] is a directory that the containers of
//! the pod share. On the wire all are `grpc.Storage` messages whose strings have one accepted form each;
//! everything else is refused, because the host writes them and the guest obeys them.

pub mod scratch;
pub mod volume;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use scratch::ScratchStorage;
pub use volume::{Medium, VolumeStorage};

use crate::id::IdError;
use crate::paths;
use crate::rpc::agent::Storage;

/// Driver of a layer: a virtio-mmio block device, named by its path.
pub const DRIVER_BLOCK: &str = "mmioblk";
/// Driver of the stacked root file system.
pub const DRIVER_OVERLAY: &str = "overlayfs";
/// Driver of a tmpfs: the sandbox's shared memory, and volumes in guest memory.
pub const DRIVER_EPHEMERAL: &str = "ephemeral";
/// Driver of a volume on the pod's writable space.
pub const DRIVER_LOCAL: &str = "local";
/// Key of the driver option that carries [`VerityInfo`] as JSON.
pub const OPTION_VERITY: &str = "verity_info";
/// Key of the driver option with the layer's first byte on the device.
pub const OPTION_OFFSET: &str = "uvm.layer_offset";
/// Key of the driver option with the layer's length in bytes, hash tree included.
pub const OPTION_LENGTH: &str = "uvm.layer_length";
/// The only data and hash block size, in bytes.
pub const BLOCK_SIZE: u64 = 4096;
/// Most layers in one image, well above what image builders make; overlayfs itself stops at 500.
pub const MAX_LAYERS: usize = 256;

const MAX_VERITY_JSON: usize = 512;
const MAX_DEVICE_BYTES: u64 = 1 << 44;

/// Why a storage is refused.
#[derive(Debug, Error)]
pub enum StorageError {
    /// A field of the message is not what this kind of storage has.
    #[error("storage at {mount_point:?}: {field} is {found:?}, expected {expected}")]
    Field {
        /// Where the storage would be mounted.
        mount_point: String,
        /// Field of the message.
        field: &'static str,
        /// Its value.
        found: String,
        /// What was expected.
        expected: &'static str,
    },
    /// The mount point's last part is no name.
    #[error("storage at {mount_point:?}: name of the volume: {source}")]
    Name {
        /// Where the storage would be mounted.
        mount_point: String,
        /// What is wrong with it.
        source: IdError,
    },
    /// `verity_info` is no JSON of the expected shape.
    #[error("storage at {mount_point:?}: {OPTION_VERITY}: {source}")]
    Verity {
        /// Where the storage would be mounted.
        mount_point: String,
        /// What the parser says.
        source: serde_json::Error,
    },
}

/// Parameters of a dm-verity target, in the JSON form that Kata uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerityInfo {
    /// Hash algorithm: `sha256`.
    pub hashtype: String,
    /// Root hash, 64 lower-case hexadecimal digits.
    pub hash: String,
    /// Number of data blocks.
    pub blocknum: u64,
    /// Bytes of a data block: [`BLOCK_SIZE`].
    pub blocksize: u64,
    /// Bytes of a hash block: [`BLOCK_SIZE`].
    pub hashsize: u64,
    /// First byte of the hash tree's first block within the layer, that is after the superblock.
    pub offset: u64,
}

impl VerityInfo {
    /// The form that this project writes: SHA-256, 4096-byte blocks, one superblock between data and tree.
    #[must_use]
    pub fn sha256(root_hash_hex: &str, data_blocks: u64) -> Self {
        Self {
            hashtype: "sha256".to_owned(),
            hash: root_hash_hex.to_owned(),
            blocknum: data_blocks,
            blocksize: BLOCK_SIZE,
            hashsize: BLOCK_SIZE,
            offset: data_blocks.saturating_add(1).saturating_mul(BLOCK_SIZE),
        }
    }

    fn fault(&self, layer_length: u64) -> Option<(&'static str, String, &'static str)> {
        let hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let data_end = self.blocknum.saturating_mul(BLOCK_SIZE);
        // The root hash of a single block is that block's own hash: there is no tree then.
        let least_tree = if self.blocknum > 1 { BLOCK_SIZE } else { 0 };
        let tree_end = self.offset.saturating_add(least_tree);
        if self.hashtype != "sha256" {
            Some(("hashtype", self.hashtype.clone(), "sha256"))
        } else if self.hash.len() != 64 || !self.hash.bytes().all(hex) {
            Some(("hash", self.hash.clone(), "64 lower-case hexadecimal digits"))
        } else if self.blocksize != BLOCK_SIZE {
            Some(("blocksize", self.blocksize.to_string(), "4096"))
        } else if self.hashsize != BLOCK_SIZE {
            Some(("hashsize", self.hashsize.to_string(), "4096"))
        } else if self.blocknum == 0 || data_end >= layer_length {
            Some((
                "blocknum",
                self.blocknum.to_string(),
                "at least one data block, and the tree after the data",
            ))
        } else if !self.offset.is_multiple_of(BLOCK_SIZE) || self.offset < data_end || tree_end > layer_length
        {
            Some(("offset", self.offset.to_string(), "a block boundary between data and end of the layer"))
        } else {
            None
        }
    }
}

/// One image layer on a block device. It is mounted at [`LayerStorage::mount_point`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerStorage {
    /// Device node in the guest, `/dev/vdb` … `/dev/vdz`.
    pub device: String,
    /// First byte of the layer on the device.
    pub offset: u64,
    /// Bytes of the layer: data, superblock, hash tree.
    pub length: u64,
    /// What the layer's contents must hash to.
    pub verity: VerityInfo,
}

impl LayerStorage {
    /// Where the layer is mounted: its root hash decides.
    #[must_use]
    pub fn mount_point(&self) -> String {
        paths::layer(&self.verity.hash)
    }

    /// The message that carries this layer.
    ///
    /// # Errors
    /// If this layer is one that [`LayerStorage::parse`] would refuse.
    pub fn to_message(&self) -> Result<Storage, StorageError> {
        let verity = serde_json::to_string(&self.verity)
            .map_err(|source| StorageError::Verity { mount_point: self.mount_point(), source })?;
        let message = Storage {
            driver: DRIVER_BLOCK.to_owned(),
            driver_options: vec![
                format!("{OPTION_VERITY}={verity}"),
                format!("{OPTION_OFFSET}={}", self.offset),
                format!("{OPTION_LENGTH}={}", self.length),
            ],
            source: self.device.clone(),
            fstype: "erofs".to_owned(),
            options: vec!["ro".to_owned()],
            mount_point: self.mount_point(),
            ..Storage::default()
        };
        Self::parse(&message).map(|_| message)
    }

    /// Reads a layer from its message.
    ///
    /// # Errors
    /// Names the first field that is not as [`LayerStorage::to_message`] would have written it.
    pub fn parse(message: &Storage) -> Result<Self, StorageError> {
        let fault = |field, found: &str, expected| field_error(message, field, found, expected);
        expect(message, "driver", &message.driver, DRIVER_BLOCK)?;
        expect(message, "fstype", &message.fstype, "erofs")?;
        expect_plain(message)?;
        if message.options != ["ro"] {
            return Err(fault("options", &message.options.join(","), "ro"));
        }
        if !is_slot(&message.source) {
            return Err(fault("source", &message.source, "/dev/vdb … /dev/vdz"));
        }
        let [verity, offset, length] = message.driver_options.as_slice() else {
            let expected = "verity_info, uvm.layer_offset, uvm.layer_length";
            return Err(fault("driver_options", &message.driver_options.join(" "), expected));
        };
        let offset = bytes_option(message, OPTION_OFFSET, offset)?;
        let length = bytes_option(message, OPTION_LENGTH, length)?;
        let json = option_value(message, OPTION_VERITY, verity)?;
        if json.len() > MAX_VERITY_JSON {
            return Err(fault("verity_info", &json.len().to_string(), "at most 512 bytes"));
        }
        let verity: VerityInfo = serde_json::from_str(json)
            .map_err(|source| StorageError::Verity { mount_point: shown(&message.mount_point), source })?;
        if let Some((field, found, expected)) = verity.fault(length) {
            return Err(fault(field, &found, expected));
        }
        let layer = Self { device: message.source.clone(), offset, length, verity };
        if message.mount_point != layer.mount_point() {
            return Err(fault("mount_point", &message.mount_point, "/run/uvm/layers/<root hash>"));
        }
        Ok(layer)
    }
}

/// The stack of a container's mounted layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverlayStorage {
    /// Mount points of the layers, top layer first.
    pub lower: Vec<String>,
    /// Where the root file system appears.
    pub mount_point: String,
}

impl OverlayStorage {
    /// The message that carries this stack.
    #[must_use]
    pub fn to_message(&self) -> Storage {
        Storage {
            driver: DRIVER_OVERLAY.to_owned(),
            source: "overlay".to_owned(),
            fstype: "overlay".to_owned(),
            options: vec![format!("lowerdir={}", self.lower.join(":"))],
            mount_point: self.mount_point.clone(),
            ..Storage::default()
        }
    }

    /// Reads a stack from its message.
    ///
    /// # Errors
    /// Names the first field that is not as [`OverlayStorage::to_message`] would have written it.
    pub fn parse(message: &Storage) -> Result<Self, StorageError> {
        expect(message, "driver", &message.driver, DRIVER_OVERLAY)?;
        expect(message, "source", &message.source, "overlay")?;
        expect(message, "fstype", &message.fstype, "overlay")?;
        expect_plain(message)?;
        let wrong = |found: &str| field_error(message, "options", found, "lowerdir=<top>:…:<bottom> alone");
        if !message.driver_options.is_empty() {
            return Err(field_error(message, "driver_options", &message.driver_options.join(" "), "none"));
        }
        let [option] = message.options.as_slice() else {
            return Err(wrong(&message.options.join(",")));
        };
        let list = option.strip_prefix("lowerdir=").ok_or_else(|| wrong(option))?;
        // A comma would start another mount option, a backslash would escape a colon.
        if list.contains([',', '\\', '\0']) {
            return Err(wrong(option));
        }
        let lower: Vec<String> = list.split(':').map(str::to_owned).collect();
        if lower.len() > MAX_LAYERS || lower.iter().any(|path| !path.starts_with('/')) {
            return Err(wrong(option));
        }
        Ok(Self { lower, mount_point: message.mount_point.clone() })
    }
}

/// Whether `path` names a block slot that takes layers; `/dev/vda` is the guest's own root file system.
fn is_slot(path: &str) -> bool {
    matches!(path.strip_prefix("/dev/vd").map(str::as_bytes), Some([b'b'..=b'z']))
}

fn expect(
    message: &Storage,
    field: &'static str,
    found: &str,
    expected: &'static str,
) -> Result<(), StorageError> {
    if found == expected { Ok(()) } else { Err(field_error(message, field, found, expected)) }
}

/// Neither kind has a group, a sharing flag or a field from a newer protocol.
fn expect_plain(message: &Storage) -> Result<(), StorageError> {
    if message.mount_point.len() > 512 || !message.mount_point.starts_with('/') {
        return Err(field_error(
            message,
            "mount_point",
            &message.mount_point,
            "an absolute path of at most 512 bytes",
        ));
    }
    if message.fs_group.is_some() {
        return Err(field_error(message, "fs_group", "set", "not set"));
    }
    if message.shared {
        return Err(field_error(message, "shared", "true", "false"));
    }
    Ok(())
}

fn option_value<'a>(message: &Storage, key: &'static str, option: &'a str) -> Result<&'a str, StorageError> {
    let value = option.strip_prefix(key).and_then(|rest| rest.strip_prefix('='));
    value.ok_or_else(|| field_error(message, "driver_options", option, key))
}

fn bytes_option(message: &Storage, key: &'static str, option: &str) -> Result<u64, StorageError> {
    let value = option_value(message, key, option)?;
    let bytes = value.parse::<u64>().ok().filter(|bytes| bytes.to_string() == value);
    let fits = |bytes: &u64| bytes.is_multiple_of(BLOCK_SIZE) && *bytes <= MAX_DEVICE_BYTES;
    bytes
        .filter(fits)
        .ok_or_else(|| field_error(message, key, value, "a decimal multiple of 4096, at most 16 TiB"))
}

fn field_error(message: &Storage, field: &'static str, found: &str, expected: &'static str) -> StorageError {
    StorageError::Field { mount_point: shown(&message.mount_point), field, found: shown(found), expected }
}

/// As much of a hostile string as an error message carries.
fn shown(text: &str) -> String {
    text.chars().take(160).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The field that an error should name, and the change that should cause it.
    type Change<T> = (&'static str, fn(&mut T));

    fn layer() -> LayerStorage {
        LayerStorage {
            device: "/dev/vdb".to_owned(),
            offset: 8192,
            length: 5 * BLOCK_SIZE,
            verity: VerityInfo::sha256(&"ab".repeat(32), 3),
        }
    }

    #[test]
    fn a_layer_survives_the_wire() {
        let message = layer().to_message().unwrap();
        let verity = format!(
            r#"verity_info={{"hashtype":"sha256","hash":"{}","blocknum":3,"blocksize":4096,"hashsize":4096,"offset":16384}}"#,
            "ab".repeat(32)
        );
        assert_eq!(
            message.driver_options,
            [verity.as_str(), "uvm.layer_offset=8192", "uvm.layer_length=20480"]
        );
        assert_eq!(message.mount_point, format!("/run/uvm/layers/{}", "ab".repeat(32)));
        assert_eq!(LayerStorage::parse(&message).unwrap(), layer());
    }

    #[test]
    fn a_layer_of_one_block_needs_no_tree() {
        let verity = VerityInfo::sha256(&"ab".repeat(32), 1);
        let one = LayerStorage { length: 2 * BLOCK_SIZE, verity, ..layer() };
        assert_eq!(LayerStorage::parse(&one.to_message().unwrap()).unwrap(), one);
    }

    #[test]
    fn every_changed_field_of_a_layer_is_refused() {
        let change: [Change<Storage>; 16] = [
            ("driver", |s| s.driver = "blk".to_owned()),
            ("fstype", |s| s.fstype = "ext4".to_owned()),
            ("options", |s| s.options.push("exec".to_owned())),
            ("options", |s| s.options.clear()),
            ("source", |s| s.source = "/dev/vda".to_owned()),
            ("source", |s| s.source = "/dev/vdb1".to_owned()),
            ("shared", |s| s.shared = true),
            ("fs_group", |s| s.fs_group = protobuf::MessageField::some(crate::rpc::agent::FSGroup::new())),
            ("mount_point", |s| s.mount_point = "layers".to_owned()),
            ("mount_point", |s| s.mount_point = paths::layer(&"cd".repeat(32))),
            ("mount_point", |s| s.mount_point.push('/')),
            ("driver_options", |s| s.driver_options.swap(0, 1)),
            ("driver_options", |s| s.driver_options.push("x=1".to_owned())),
            (OPTION_OFFSET, |s| s.driver_options[1] = format!("{OPTION_OFFSET}=+8192")),
            (OPTION_OFFSET, |s| s.driver_options[1] = format!("{OPTION_OFFSET}=100")),
            (OPTION_LENGTH, |s| s.driver_options[2] = format!("{OPTION_LENGTH}={}", u64::MAX)),
        ];
        for (expected, apply) in change {
            let mut message = layer().to_message().unwrap();
            apply(&mut message);
            match LayerStorage::parse(&message) {
                Err(StorageError::Field { field, .. }) => assert_eq!(field, expected),
                other => panic!("{expected}: {other:?}"),
            }
        }
    }

    #[test]
    fn every_changed_verity_parameter_is_refused() {
        let change: [Change<VerityInfo>; 9] = [
            ("hashtype", |v| v.hashtype = "sha1".to_owned()),
            ("hash", |v| v.hash = "AB".repeat(32)),
            ("hash", |v| v.hash.truncate(63)),
            ("blocksize", |v| v.blocksize = 512),
            ("hashsize", |v| v.hashsize = 8192),
            ("blocknum", |v| v.blocknum = 0),
            ("blocknum", |v| v.blocknum = u64::MAX),
            ("offset", |v| v.offset = 2 * BLOCK_SIZE),
            ("offset", |v| v.offset = 5 * BLOCK_SIZE),
        ];
        for (expected, apply) in change {
            let mut changed = layer();
            apply(&mut changed.verity);
            match changed.to_message() {
                Err(StorageError::Field { field, .. }) => assert_eq!(field, expected),
                other => panic!("{expected}: {other:?}"),
            }
        }
        let mut message = layer().to_message().unwrap();
        message.driver_options[0] = format!("{OPTION_VERITY}={{\"salt\":\"00\"}}");
        assert!(matches!(LayerStorage::parse(&message), Err(StorageError::Verity { .. })));
    }

    #[test]
    fn an_overlay_survives_the_wire_and_nothing_rides_along() {
        let overlay = OverlayStorage {
            lower: vec!["/run/uvm/layers/b".to_owned(), "/run/uvm/layers/a".to_owned()],
            mount_point: "/run/kata-containers/c1/rootfs".to_owned(),
        };
        let message = overlay.to_message();
        assert_eq!(message.options, ["lowerdir=/run/uvm/layers/b:/run/uvm/layers/a"]);
        assert_eq!(OverlayStorage::parse(&message).unwrap(), overlay);
        for option in [
            "lowerdir=",
            "lowerdir=/a,upperdir=/b",
            "lowerdir=a",
            "lowerdir=/a::/b",
            "upperdir=/b",
            "lowerdir=/a\\:/b",
        ] {
            let changed = Storage { options: vec![option.to_owned()], ..message.clone() };
            assert!(OverlayStorage::parse(&changed).is_err(), "{option}");
        }
    }
}
