//! Packs the read-only root file system of the utility VM.
//!
//! The [`Manifest`] says what it holds beside the agent; [`pack`] writes it as an erofs image with its dm-verity
//! hash tree behind it and returns the [`Info`] that the measured kernel command line is made of. Equal inputs
//! give equal bytes: owners, times and order are fixed.

mod agent;
mod info;
mod manifest;
mod pack;

pub use agent::AgentError;
pub use info::Info;
pub use manifest::{Manifest, ManifestError};
pub use pack::{PackError, pack};
