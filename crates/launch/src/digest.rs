//! SHA-384 digests of launches.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha384};

/// A SHA-384 digest. In text and JSON: 96 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LaunchDigest(pub [u8; 48]);

/// Why a text is no launch digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("launch digest: expected 96 hexadecimal digits, found {0:?}")]
pub struct LaunchDigestError(String);

impl std::str::FromStr for LaunchDigest {
    type Err = LaunchDigestError;

    fn from_str(text: &str) -> Result<Self, LaunchDigestError> {
        let mut bytes = [0; 48];
        let decoded = hex::decode_to_slice(text, &mut bytes);
        decoded.map_err(|_| LaunchDigestError(text.chars().take(120).collect()))?;
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for LaunchDigest {
    type Error = LaunchDigestError;

    fn try_from(text: String) -> Result<Self, LaunchDigestError> {
        text.parse()
    }
}

impl From<LaunchDigest> for String {
    fn from(digest: LaunchDigest) -> Self {
        digest.to_string()
    }
}

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
    fn text_round_trip() {
        let digest = page_digest(&[]);
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert!("00".parse::<LaunchDigest>().unwrap_err().to_string().contains("found \"00\""));
    }

    #[test]
    fn an_empty_page_is_a_page_of_zeros() {
        assert_eq!(page_digest(&[]), page_digest(&[0; 4096]));
    }
}
