//! One layer on a real kernel: the slice of the disk, dm-verity over it, the erofs mount.
//!
//! The table of the verity target is made of the parameters that the request names and of nothing that the disk
//! holds: the superblock between data and tree is never read. What is mounted is read-only at each level.

use std::path::PathBuf;

use agent_protocol::storage::LayerStorage;

use crate::error::{AgentError, Result};
use crate::expectation::OnCorruption;
use crate::layers::corruption::CorruptionWatch;
use crate::layers::dm::{self, DeviceMapper};
use crate::layers::mount;
use crate::layers::shared::Mounter;
use crate::layers::steps::Steps;

/// Sets layers up as verified file systems.
#[derive(Debug)]
pub struct Verified {
    /// What the guest was measured to do about a block that does not match.
    pub on_corruption: OnCorruption,
    /// Learns of such blocks.
    pub corruption: CorruptionWatch,
}

/// What has been done for one layer.
#[derive(Debug, Default)]
pub struct Done {
    steps: Steps,
    /// Number of the verity device, while its corruption is watched for.
    watched: Option<String>,
}

impl Mounter for Verified {
    type Done = Done;

    async fn mount(&self, layer: &LayerStorage, done: &mut Done) -> Result<()> {
        let mapper = DeviceMapper::open()?;
        let end = layer.offset.saturating_add(layer.length);
        let disk = mount::wait_for_disk(&layer.device, end).await?;
        let slice = mapper.create(&dm::linear(&disk, layer.offset, layer.length))?;
        done.steps.device(&slice.name);
        let verified = mapper.create(&dm::verity(&slice.number, &layer.verity, self.on_corruption))?;
        done.steps.device(&verified.name);
        let target = PathBuf::from(layer.mount_point());
        done.steps.directory(&target)?;
        mount::erofs(&verified.node, &target).map_err(|error| {
            // What the kernel says about a mount is that its device could not be read.
            match mapper.verity_has_failed(&verified.name) {
                Ok(true) => {
                    AgentError::Corrupt(format!("layer {} does not match its root hash", layer.verity.hash))
                }
                Ok(false) | Err(_) => error,
            }
        })?;
        done.steps.mounted(&target);
        self.corruption.add(&verified.number, &layer.verity.hash);
        done.watched = Some(verified.number);
        Ok(())
    }

    async fn unmount(&self, done: &mut Done) -> Result<()> {
        done.steps.undo().await?;
        if let Some(number) = done.watched.take() {
            self.corruption.remove(&number);
        }
        Ok(())
    }
}
