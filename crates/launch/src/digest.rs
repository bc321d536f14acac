//! The digest of an image's pages, in the arithmetic of SEV-SNP launches.
//!
//! Each page extends a SHA-384 chain by one 112-byte `PAGE_INFO` record (AMD SEV-SNP firmware ABI
//! specification, section 8.17.2, table 67). For an unprotected machine no processor computes this; the value
//! names the image, and moves when any measured byte, place or order does.

use sha2::{Digest, Sha384};

use crate::image::{Image, PageKind};

/// A SHA-384 digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaunchDigest(pub [u8; 48]);

impl std::fmt::Display for LaunchDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

const PAGE_INFO_BYTES: u16 = 0x70;
const PAGE_TYPE_NORMAL: u8 = 1;
const PAGE_TYPE_UNMEASURED: u8 = 4;

/// A running launch digest.
#[derive(Debug, Clone)]
pub struct Chain(LaunchDigest);

impl Default for Chain {
    fn default() -> Self {
        Self(LaunchDigest([0; 48]))
    }
}

impl Chain {
    /// Adds a private page whose content counts.
    pub fn measured(&mut self, gpa: u64, page: &[u8]) {
        let contents = page_digest(page);
        self.extend(PAGE_TYPE_NORMAL, gpa, &contents);
    }

    /// Adds a private page of which only the place counts.
    pub fn unmeasured(&mut self, gpa: u64) {
        self.extend(PAGE_TYPE_UNMEASURED, gpa, &LaunchDigest([0; 48]));
    }

    fn extend(&mut self, page_type: u8, gpa: u64, contents: &LaunchDigest) {
        let hash = Sha384::new()
            .chain_update(self.0.0)
            .chain_update(contents.0)
            .chain_update(PAGE_INFO_BYTES.to_le_bytes())
            .chain_update([page_type, 0, 0, 0, 0, 0])
            .chain_update(gpa.to_le_bytes());
        self.0 = LaunchDigest(hash.finalize().into());
    }

    /// The digest so far.
    #[must_use]
    pub fn digest(&self) -> LaunchDigest {
        self.0
    }
}

/// SHA-384 of a page's content; a page without data is one of zeros.
#[must_use]
pub fn page_digest(page: &[u8]) -> LaunchDigest {
    const ZEROS: [u8; 4096] = [0; 4096];
    LaunchDigest(Sha384::digest(if page.is_empty() { &ZEROS } else { page }).into())
}

/// The digest of all of an image's private pages, parameter areas last.
#[must_use]
pub fn of_image(image: &Image) -> LaunchDigest {
    let mut chain = Chain::default();
    for page in &image.pages {
        match page.kind {
            PageKind::Measured => chain.measured(page.gpa, &page.data),
            PageKind::Unmeasured => chain.unmeasured(page.gpa),
            PageKind::Shared => {}
        }
    }
    for area in &image.parameters {
        for offset in (0..area.bytes).step_by(4096) {
            chain.unmeasured(area.gpa + offset);
        }
    }
    chain.digest()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pages: &[(u64, PageKind, u8)]) -> LaunchDigest {
        let pages =
            pages.iter().map(|&(gpa, kind, fill)| crate::image::Page { gpa, kind, data: vec![fill; 4096] });
        let context = zerocopy::FromZeros::new_zeroed();
        of_image(&Image { pages: pages.collect(), parameters: Vec::new(), context })
    }

    #[test]
    fn content_place_kind_and_order_count() {
        use PageKind::{Measured, Shared, Unmeasured};
        let base = of(&[(0x1000, Measured, 1), (0x2000, Measured, 2)]);
        let variants = [
            of(&[(0x1000, Measured, 9), (0x2000, Measured, 2)]),
            of(&[(0x3000, Measured, 1), (0x2000, Measured, 2)]),
            of(&[(0x1000, Unmeasured, 1), (0x2000, Measured, 2)]),
            of(&[(0x2000, Measured, 2), (0x1000, Measured, 1)]),
            of(&[(0x1000, Measured, 1)]),
        ];
        assert!(variants.iter().all(|variant| *variant != base));
        assert_eq!(of(&[(0x1000, Measured, 1), (0x2000, Measured, 2), (0x3000, Shared, 3)]), base);
        assert_eq!(of(&[(0x1000, Unmeasured, 1)]), of(&[(0x1000, Unmeasured, 2)]));
    }

    #[test]
    fn an_empty_page_is_a_page_of_zeros() {
        assert_eq!(page_digest(&[]), page_digest(&[0; 4096]));
    }
}
