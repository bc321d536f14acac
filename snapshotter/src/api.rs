//! containerd's services as this program answers them: server traits over the messages of `containerd-client`.

#![allow(
    missing_docs,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    reason = "generated code is included here"
)]

/// The messages of both services under one roof; `build.rs` names them by this path.
pub mod messages {
    pub use containerd_client::services::v1::snapshots::{
        CleanupRequest, CommitSnapshotRequest, Info, Kind, ListSnapshotsRequest, ListSnapshotsResponse,
        MountsRequest, MountsResponse, PrepareSnapshotRequest, PrepareSnapshotResponse,
        RemoveSnapshotRequest, StatSnapshotRequest, StatSnapshotResponse, UpdateSnapshotRequest,
        UpdateSnapshotResponse, UsageRequest, UsageResponse, ViewSnapshotRequest, ViewSnapshotResponse,
    };
    pub use containerd_client::services::v1::{ApplyRequest, ApplyResponse, DiffRequest, DiffResponse};
    pub use containerd_client::types::{Descriptor, Mount};

    /// `google.protobuf.Empty`.
    pub type Empty = ();
}

tonic::include_proto!("containerd.services.snapshots.v1.Snapshots");
tonic::include_proto!("containerd.services.diff.v1.Diff");
