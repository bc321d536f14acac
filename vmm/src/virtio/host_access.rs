//! Getting at memory that the guest shares, where the host has to ask for it first.
//!
//! On most hypervisors a page that the guest has shared is there in the host's mapping. On some, the host
//! acquires access page by page, and touching a page without it is a bus error. A device that runs there asks
//! before it touches a ring or a buffer, in the two places where their addresses become known: when queues are
//! built ([`mmio`](super::mmio)) and when a chain has been loaded ([`queue`](super::queue)). Indirect tables are
//! not offered then: they are read before anybody could ask.

use std::fmt::Debug;

/// Why the host cannot reach memory.
pub type Refusal = Box<dyn std::error::Error + Send + Sync>;

/// Whom to ask.
pub trait HostAccess: Debug + Send + Sync {
    /// Makes sure that the host may read and write `length` bytes of guest memory at `address`.
    ///
    /// # Errors
    /// When the guest has not shared that memory.
    fn acquire(&self, address: u64, length: u64) -> Result<(), Refusal>;
}
