//! SHA-384 digests of launches.

use sha2::{Digest, Sha384};

/// A SHA-384 digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaunchDigest(pub [u8; 48]);

impl std::fmt::Display for LaunchDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// SHA-384 of a page's content; a page without data is one of zeros.
#[must_use]
pub fn page_digest(page: &[u8]) -> LaunchDigest {
    const ZEROS: [u8; 4096] = [0; 4096];
    LaunchDigest(Sha384::digest(if page.is_empty() { &ZEROS } else { page }).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_page_is_a_page_of_zeros() {
        assert_eq!(page_digest(&[]), page_digest(&[0; 4096]));
    }
}
