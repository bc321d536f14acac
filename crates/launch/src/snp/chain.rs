//! The running launch digest of the secure processor.

use sha2::{Digest, Sha384};

use crate::digest::{LaunchDigest, page_digest};

/// Bytes of a `PAGE_INFO` record.
const PAGE_INFO_BYTES: u16 = 0x70;

/// `PAGE_TYPE` of `SNP_LAUNCH_UPDATE` (SEV-SNP firmware ABI specification, section 8.17, table 64).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum PageType {
    /// Content measured.
    Normal = 1,
    /// A save area; content measured.
    Vmsa = 2,
    /// Known to be zero; only the place is measured.
    Zero = 3,
    /// Only the place is measured.
    Unmeasured = 4,
    /// Filled by the secure processor.
    Secrets = 5,
    /// Checked by the secure processor.
    Cpuid = 6,
}

/// A launch digest in the making.
#[derive(Debug, Clone)]
pub struct Chain(LaunchDigest);

impl Default for Chain {
    fn default() -> Self {
        Self(LaunchDigest([0; 48]))
    }
}

impl Chain {
    /// Adds a page. Its content counts only where its type says so.
    pub fn extend(&mut self, page_type: PageType, gpa: u64, page: &[u8]) {
        let contents = match page_type {
            PageType::Normal | PageType::Vmsa => page_digest(page),
            PageType::Zero | PageType::Unmeasured | PageType::Secrets | PageType::Cpuid => {
                LaunchDigest([0; 48])
            }
        };
        self.extend_contents(page_type, gpa, contents);
    }

    /// Adds a page whose content's digest is known.
    pub(super) fn extend_contents(&mut self, page_type: PageType, gpa: u64, contents: LaunchDigest) {
        let hash = Sha384::new()
            .chain_update(self.0.0)
            .chain_update(contents.0)
            .chain_update(PAGE_INFO_BYTES.to_le_bytes())
            .chain_update([page_type as u8, 0, 0, 0, 0, 0])
            .chain_update(gpa.to_le_bytes());
        self.0 = LaunchDigest(hash.finalize().into());
    }

    /// The digest so far.
    #[must_use]
    pub fn digest(&self) -> LaunchDigest {
        self.0
    }
}
