//! Generates the server side of the two containerd services that are answered here.
//!
//! The messages are those of the `containerd-client` crate, which is generated from containerd's own protocol
//! files without server code; a service is no more than the names and types of its methods.

use tonic_build::manual::{Builder, Method, Service};

/// Where the messages are, as generated code sees them.
const MESSAGES: &str = "crate::api::messages";
const CODEC: &str = "tonic_prost::ProstCodec";

fn main() {
    let snapshots = [
        ("prepare", "Prepare", "PrepareSnapshotRequest", "PrepareSnapshotResponse"),
        ("view", "View", "ViewSnapshotRequest", "ViewSnapshotResponse"),
        ("mounts", "Mounts", "MountsRequest", "MountsResponse"),
        ("commit", "Commit", "CommitSnapshotRequest", "Empty"),
        ("remove", "Remove", "RemoveSnapshotRequest", "Empty"),
        ("stat", "Stat", "StatSnapshotRequest", "StatSnapshotResponse"),
        ("update", "Update", "UpdateSnapshotRequest", "UpdateSnapshotResponse"),
        ("usage", "Usage", "UsageRequest", "UsageResponse"),
        ("cleanup", "Cleanup", "CleanupRequest", "Empty"),
    ];
    let mut service = Service::builder().name("Snapshots").package("containerd.services.snapshots.v1");
    for (name, route, input, output) in snapshots {
        service = service.method(method(name, route, input, output).build());
    }
    let list = method("list", "List", "ListSnapshotsRequest", "ListSnapshotsResponse").server_streaming();
    let snapshots = service.method(list.build()).build();

    let diff = Service::builder()
        .name("Diff")
        .package("containerd.services.diff.v1")
        .method(method("apply", "Apply", "ApplyRequest", "ApplyResponse").build())
        .method(method("diff", "Diff", "DiffRequest", "DiffResponse").build())
        .build();
    Builder::new().build_client(false).compile(&[snapshots, diff]);
}

fn method(name: &str, route: &str, input: &str, output: &str) -> tonic_build::manual::MethodBuilder {
    Method::builder()
        .name(name)
        .route_name(route)
        .input_type(format!("{MESSAGES}::{input}"))
        .output_type(format!("{MESSAGES}::{output}"))
        .codec_path(CODEC)
}
