//! What a packed root file system is, as JSON beside it.

use erofs_verity::layer::Layer;
use erofs_verity::verity::OnCorruption;
use serde::{Deserialize, Serialize};

/// Block device on which the guest finds the root file system: block slot 0.
const DEVICE: &str = "/dev/vda";
/// Name of the verified device.
const NAME: &str = "root";

/// A packed root file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Info {
    /// Root digest of the hash tree, 64 hexadecimal digits.
    pub root_hash: String,
    /// Blocks of 4096 bytes in the erofs image.
    pub data_blocks: u64,
    /// Byte offset of the hash tree's first block.
    pub tree_offset: u64,
    /// Bytes in the whole file.
    pub length: u64,
    /// SHA-256 of the agent's executable, 64 hexadecimal digits.
    pub agent_sha256: String,
    /// Value of the kernel argument `dm-mod.create`, without quotes.
    pub dm_mod_create: String,
    /// The piece of the kernel command line that mounts this root file system, and no other.
    pub kernel_arguments: String,
}

impl Info {
    pub(crate) fn new(layer: &Layer, agent_sha256: String) -> Self {
        let dm_mod_create = layer.verity_target(DEVICE, OnCorruption::Panic).boot_argument(NAME);
        Self {
            root_hash: layer.root.to_string(),
            data_blocks: layer.data_blocks,
            tree_offset: layer.tree_offset,
            length: layer.length,
            agent_sha256,
            kernel_arguments: format!("dm-mod.create=\"{dm_mod_create}\" root=/dev/dm-0 rootfstype=erofs ro"),
            dm_mod_create,
        }
    }
}
