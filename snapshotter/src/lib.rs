//! `uvm-snapshotter`: keeps container images as layers that utility VMs verify block by block.
//!
//! A containerd proxy snapshotter. Image layers are converted, from the blobs in containerd's content store, to
//! read-only file system images with a hash tree, once for each diff id, and every image and every pod of the host
//! uses the same file. The host is not trusted with them: the utility VM checks each block against a root hash
//! that its owner named.
//!
//! - [`store`]: snapshots and layers on disk, safe against crashes and full disks.
//! - [`content`], [`images`]: where blobs come from, and which blob belongs to a snapshot.
//! - [`convert`], [`adopt`]: from blobs, and from containerd's own erofs layers, to stored layers.
//! - [`service`]: containerd's snapshots and diff services over all that.
//! - [`host_mount`], [`filter`], [`digest`], [`error`]: what these need.

pub mod adopt;
pub mod api;
pub mod check;
pub mod config;
pub mod content;
pub mod convert;
pub mod digest;
pub mod error;
pub mod filter;
pub mod host_mount;
pub mod images;
pub mod oci;
pub mod serve;
pub mod service;
pub mod store;

/// gRPC header in which containerd's clients name their namespace.
pub const NAMESPACE_HEADER: &str = "containerd-namespace";
