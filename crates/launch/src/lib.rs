//! What is launched: page vocabulary, machine layout, launch plan and VMM control messages.
//!
//! Pure: no I/O, no unsafe, no clock. The image builder, the VMM and the shim share these types, so that
//! a page kind, an address or a message has one definition.
#![forbid(unsafe_code)]

pub mod control;
pub mod digest;
pub mod image;
pub mod layout;
pub mod plan;
pub mod reader;
pub mod role;
pub mod snp;
pub mod tdx;
pub mod timeline;
