//! The kinds of isolation that a guest may have been measured for, by the names that the measured command line,
//! the handshake and evidence use.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// How a guest is isolated from its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tee {
    /// Not at all.
    None,
    /// In form only: an SEV-SNP launch and report without a processor that vouches for them.
    Sim,
    /// AMD SEV-SNP.
    Snp,
    /// Intel TDX.
    Tdx,
}

/// A name that stands for no [`Tee`].
#[derive(Debug, Error, PartialEq, Eq)]
#[error("expected none, sim, snp or tdx, found {0:?}")]
pub struct UnknownTee(String);

impl Tee {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::None, Self::Sim, Self::Snp, Self::Tdx];

    /// The name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Sim => "sim",
            Self::Snp => "snp",
            Self::Tdx => "tdx",
        }
    }

    /// Who provides a guest's evidence: configfs-tsm's name of the provider, or `sim`.
    #[must_use]
    pub const fn provider(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Sim => Some("sim"),
            Self::Snp => Some("sev_guest"),
            Self::Tdx => Some("tdx_guest"),
        }
    }
}

impl fmt::Display for Tee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Tee {
    type Err = UnknownTee;

    fn from_str(name: &str) -> Result<Self, UnknownTee> {
        let known = Self::ALL.into_iter().find(|tee| tee.as_str() == name);
        known.ok_or_else(|| UnknownTee(name.chars().take(32).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_same_in_text_and_in_json() {
        for tee in Tee::ALL {
            assert_eq!(tee.as_str().parse(), Ok(tee));
            assert_eq!(serde_json::to_string(&tee).unwrap(), format!("\"{tee}\""));
        }
        assert!("SNP".parse::<Tee>().is_err());
        assert!("".parse::<Tee>().is_err());
    }
}
