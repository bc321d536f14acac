//! Digests as OCI documents write them: `sha256:` and 64 lower-case hexadecimal digits.

use std::fmt;
use std::str::FromStr;

const PREFIX: &str = "sha256:";

/// A SHA-256 digest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

/// Why text is no [`Digest`].
#[derive(Debug, thiserror::Error)]
#[error("digest: expected \"sha256:\" and 64 lower-case hexadecimal digits, found {0:?}")]
pub struct DigestError(String);

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{PREFIX}{}", hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let digits = text.strip_prefix(PREFIX).filter(|digits| digits.len() == 64);
        let digits = digits.filter(|digits| !digits.bytes().any(|digit| digit.is_ascii_uppercase()));
        let mut digest = [0; 32];
        digits
            .and_then(|digits| hex::decode_to_slice(digits, &mut digest).ok())
            .ok_or_else(|| DigestError(text.chars().take(80).collect()))?;
        Ok(Self(digest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_form_is_read_and_written() {
        let text = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(text.parse::<Digest>().unwrap().to_string(), text);
        for bad in [&text[7..], &text[..70], &text.to_uppercase(), &format!("sha512:{}", &text[7..]), ""] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
        let mixed = text.replace("0a", "0A");
        assert!(mixed.parse::<Digest>().is_err());
    }
}
