//! What is known of a snapshot: one small JSON file each, replaced atomically.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// Version of the record's form.
pub const VERSION: u32 = 1;

/// Labels of a snapshot, in a fixed order.
pub type Labels = BTreeMap<String, String>;

/// What can be done with a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Read-only look at a committed snapshot.
    View,
    /// Writable; may be committed.
    Active,
    /// A layer on top of its parent; immutable.
    Committed,
}

impl Kind {
    /// The word that filters and messages use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Active => "active",
            Self::Committed => "committed",
        }
    }
}

/// The image layer that an active snapshot was made to be filled with. What clients write into the snapshot's
/// directory is thrown away: committing it takes the layer that was converted from the blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extraction {
    /// containerd's namespace, in which the layer's blob is looked for.
    pub namespace: String,
    /// Chain id of the layer.
    pub chain_id: Digest,
    /// Digest of its uncompressed tar.
    pub diff_id: Digest,
    /// Blobs that hold the tar, in whatever compression; any of them will do.
    pub blobs: Vec<Digest>,
}

/// A snapshot as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// [`VERSION`].
    pub version: u32,
    /// Key of an active snapshot or view, name of a committed one.
    pub name: String,
    /// Name of the committed snapshot below, if any.
    pub parent: Option<String>,
    /// What it is.
    pub kind: Kind,
    /// Number of its layer: of a committed snapshot always; of an active one once it is known what committing
    /// will make of it, whatever is in its directory (see [`super::Store::assign_layer`]).
    pub layer: Option<u64>,
    /// What an active snapshot is to be filled with, where that is an image's layer.
    pub extraction: Option<Extraction>,
    /// Labels.
    pub labels: Labels,
    /// When it was made.
    pub created: SystemTime,
    /// When its labels were last changed.
    pub updated: SystemTime,
}
