//! dm-verity: a hash tree over a block device, of which the guest trusts the root digest only.
//!
//! One form is made: format version 1, SHA-256, data and hash blocks of 4096 bytes, a salt of 32 zero bytes
//! in front of every hashed block. It is what containerd's erofs snapshotter makes (Linux
//! `Documentation/admin-guide/device-mapper/verity.rst`, cryptsetup's "DMVerity" wiki page).

use std::fmt;
use std::str::FromStr;

pub use hash_tree::HashTree;
pub use sha256::hash_blocks;
pub use superblock::{SUPERBLOCK_SIZE, Superblock, SuperblockError};

mod hash_tree;
mod sha256;
mod superblock;

/// Bytes in a SHA-256 digest.
pub const DIGEST_SIZE: usize = 32;
/// What is hashed before every block.
pub const SALT: [u8; 32] = [0; 32];

/// The digest that stands for every byte of a device.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RootDigest(pub [u8; DIGEST_SIZE]);

impl fmt::Display for RootDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for RootDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RootDigest({self})")
    }
}

/// A root digest that is not 64 hexadecimal digits.
#[derive(Debug, thiserror::Error)]
#[error("root digest: expected 64 hexadecimal digits, found {0} bytes of text that are not")]
pub struct RootDigestError(usize);

impl FromStr for RootDigest {
    type Err = RootDigestError;

    fn from_str(text: &str) -> Result<Self, RootDigestError> {
        let mut digest = [0; DIGEST_SIZE];
        hex::decode_to_slice(text, &mut digest).map_err(|_| RootDigestError(text.len()))?;
        Ok(Self(digest))
    }
}

/// What the kernel does when a block does not match its hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnCorruption {
    /// The read fails with `EIO`.
    Fail,
    /// The kernel panics: for a root file system, without which nothing can be trusted.
    Panic,
}

/// One line of a device-mapper table: a verity target over a device that holds data and hash tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerityTarget<'a> {
    /// Device with data and hash tree, as the kernel names it: `/dev/vda`, or `major:minor`.
    pub device: &'a str,
    /// Data blocks of 4096 bytes.
    pub data_blocks: u64,
    /// Block of the device at which the top level of the hash tree begins.
    pub hash_start: u64,
    /// Root digest.
    pub root: RootDigest,
    /// What happens on a mismatch.
    pub on_corruption: OnCorruption,
}

impl VerityTarget<'_> {
    /// Length of the verified device in sectors of 512 bytes.
    #[must_use]
    pub const fn sectors(&self) -> u64 {
        self.data_blocks.saturating_mul(8)
    }

    /// The target's parameters: what follows `0 <sectors> verity` in a table.
    #[must_use]
    pub fn parameters(&self) -> String {
        let Self { device, data_blocks, hash_start, root, on_corruption } = self;
        let salt = hex::encode(SALT);
        let options = match on_corruption {
            OnCorruption::Fail => "",
            OnCorruption::Panic => " 1 panic_on_corruption",
        };
        format!("1 {device} {device} 4096 4096 {data_blocks} {hash_start} sha256 {root} {salt}{options}")
    }

    /// The value of the kernel's `dm-mod.create=` argument that makes read-only device `name` at boot
    /// (Linux `Documentation/admin-guide/device-mapper/dm-init.rst`).
    #[must_use]
    pub fn boot_argument(&self, name: &str) -> String {
        format!("{name},,,ro,0 {} verity {}", self.sectors(), self.parameters())
    }
}
