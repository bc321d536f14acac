//! From the storages of a CreateContainer request to a mounted root file system, and back.
//!
//! [`plan`] checks the storages as a whole, before anything is done. A layer is set up once in the pod, however
//! many containers have it ([`shared`]): the slice of the disk, dm-verity over it, and the erofs mount
//! ([`verified`], [`dm`], [`mount`]). Whatever is done is recorded with what undoes it ([`steps`]); what cannot
//! be undone stays recorded and is an error, so that a second attempt knows where it stands. [`corruption`]
//! learns from the kernel which blocks do not match.

pub mod corruption;
pub mod dm;
pub mod mount;
pub mod plan;
pub mod shared;
pub mod steps;
pub mod verified;

pub use plan::Plan;
