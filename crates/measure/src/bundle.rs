//! Evidence in a file: a report or quote, and what is needed to check it, as one JSON object.
//!
//! `{"provider": "sev_guest", "report": "<hex>", "certificates": "<hex>"}`. `provider` is what the guest says that
//! gave it (`sev_guest`, `tdx_guest`, or `sim`), `certificates` is the GHCB specification's certificate table, which
//! may be empty. A file of a bare report or quote is taken too.

use serde::{Deserialize, Serialize};

/// Longest file of evidence that is read, in bytes.
pub const MAX_BUNDLE_BYTES: u64 = 256 << 10;

/// Evidence, none of it verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// Who gave it, as the guest says; none for a bare report.
    pub provider: Option<String>,
    /// Report or quote.
    pub report: Vec<u8>,
    /// The certificate table.
    pub certificates: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    provider: String,
    report: String,
    certificates: String,
}

/// Why a file is no evidence.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// It begins like JSON, but is not the object that is expected.
    #[error("evidence: expected an object with provider, report and certificates: {0}")]
    Syntax(#[source] serde_json::Error),
    /// A field that is no hexadecimal text.
    #[error("evidence: {field}: expected hexadecimal digits: {error}")]
    Hex {
        /// Which.
        field: &'static str,
        /// What is wrong.
        error: hex::FromHexError,
    },
}

impl Bundle {
    /// Reads a file of evidence: a bundle, or a bare report.
    ///
    /// # Errors
    /// The file begins with a brace and is not a bundle.
    pub fn parse(file: &[u8]) -> Result<Self, BundleError> {
        if !file.trim_ascii_start().starts_with(b"{") {
            return Ok(Self { provider: None, report: file.to_vec(), certificates: Vec::new() });
        }
        let wire: Wire = serde_json::from_slice(file).map_err(BundleError::Syntax)?;
        let bytes = |field, text: &str| hex::decode(text).map_err(|error| BundleError::Hex { field, error });
        Ok(Self {
            report: bytes("report", &wire.report)?,
            certificates: bytes("certificates", &wire.certificates)?,
            provider: Some(wire.provider),
        })
    }

    /// The bundle as a file.
    ///
    /// # Errors
    /// Never: the object has nothing that JSON cannot carry.
    pub fn to_json(&self) -> Result<Vec<u8>, BundleError> {
        let wire = Wire {
            provider: self.provider.clone().unwrap_or_default(),
            report: hex::encode(&self.report),
            certificates: hex::encode(&self.certificates),
        };
        let mut json = serde_json::to_vec_pretty(&wire).map_err(BundleError::Syntax)?;
        json.push(b'\n');
        Ok(json)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_comes_back() {
        let bundle =
            Bundle { provider: Some("sim".into()), report: vec![3; 1184], certificates: vec![1, 2, 3] };
        assert_eq!(Bundle::parse(&bundle.to_json().unwrap()).unwrap(), bundle);
    }

    #[test]
    fn a_bare_report_is_taken_and_a_damaged_bundle_is_not() {
        let bare = Bundle::parse(&[2; 1184]).unwrap();
        assert_eq!((bare.provider, bare.report.len()), (None, 1184));
        let refusal = |text: &str| Bundle::parse(text.as_bytes()).unwrap_err().to_string();
        assert!(refusal("{}").contains("provider"));
        assert!(
            refusal(r#"{"provider":"sim","report":"0","certificates":""}"#).contains("report: expected hex")
        );
        assert!(refusal(r#"{"provider":"","report":"","certificates":"","x":1}"#).contains("unknown field"));
    }
}
