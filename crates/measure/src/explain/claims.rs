//! What a report or quote claims about a launch. Nothing is verified here: this is for finding out what was
//! launched, not whether to trust it.

use evidence::report::{self, Report};
use launch::digest::LaunchDigest;
use serde::Serialize;

/// Bytes of a quote's header (Intel TDX DCAP quoting library, quote format, versions 4 and 5).
const QUOTE_HEADER: usize = 48;
/// Bytes of a TD report body in a quote.
const TD_BODY: usize = 584;
/// `tee_type` of a TD's quote.
const TEE_TDX: u32 = 0x81;
/// Offsets in a TD report body.
const TD_ATTRIBUTES: usize = 120;
const MRTD: usize = 136;
const MRCONFIGID: usize = 184;
const REPORT_DATA: usize = 520;

/// Claims of a launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claims {
    /// Of an SEV-SNP report, or a simulated one.
    Snp(Box<Report>),
    /// Of a TDX quote.
    Tdx(TdClaims),
}

/// What a TDX quote says of the launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TdClaims {
    /// `TD_ATTRIBUTES`; bit 0 is debug.
    pub attributes: u64,
    /// Launch measurement.
    pub mrtd: [u8; 48],
    /// The owner's value: the host data and 16 bytes of zeros.
    pub mrconfigid: [u8; 48],
    /// What the guest put in.
    pub report_data: [u8; 64],
}

/// Why bytes are neither a report nor a quote.
#[derive(Debug, thiserror::Error)]
pub enum ClaimsError {
    /// A report that does not parse.
    #[error(transparent)]
    Report(#[from] report::Error),
    /// A quote that does not parse.
    #[error("TDX quote: expected {expected}, found {found}")]
    Quote {
        /// The rule.
        expected: &'static str,
        /// What the bytes have.
        found: String,
    },
}

impl Claims {
    /// Reads an SEV-SNP report (1184 bytes) or a TDX quote (version 4 or 5).
    ///
    /// # Errors
    /// The bytes are neither.
    pub fn parse(bytes: &[u8]) -> Result<Self, ClaimsError> {
        if bytes.len() == Report::BYTES && u32_at(bytes, 4) != Some(TEE_TDX) {
            return Ok(Self::Snp(Box::new(Report::parse(bytes)?.clone())));
        }
        let error = |expected, found: String| ClaimsError::Quote { expected, found };
        let truncated = || error("a header and a TD report body", format!("{} bytes", bytes.len()));
        let version = u16_at(bytes, 0).ok_or_else(truncated)?;
        let body = match version {
            4 => QUOTE_HEADER,
            // Version 5 has the body's type and size first; type 2 is TDX 1.0, type 3 adds to its end.
            5 => QUOTE_HEADER + 6,
            other => {
                let expected = "a report of 1184 bytes, or a quote of version 4 or 5";
                return Err(error(expected, format!("{} bytes, version {other}", bytes.len())));
            }
        };
        let tee = u32_at(bytes, 4).ok_or_else(truncated)?;
        if tee != TEE_TDX {
            return Err(error("type 0x81 (TDX)", format!("{tee:#x}")));
        }
        let body = bytes.get(body..).and_then(|rest| rest.get(..TD_BODY)).ok_or_else(truncated)?;
        Ok(Self::Tdx(TdClaims {
            attributes: u64::from_le_bytes(field(body, TD_ATTRIBUTES).ok_or_else(truncated)?),
            mrtd: field(body, MRTD).ok_or_else(truncated)?,
            mrconfigid: field(body, MRCONFIGID).ok_or_else(truncated)?,
            report_data: field(body, REPORT_DATA).ok_or_else(truncated)?,
        }))
    }

    /// The measurement.
    #[must_use]
    pub fn measurement(&self) -> LaunchDigest {
        LaunchDigest(match self {
            Self::Snp(report) => report.measurement,
            Self::Tdx(claims) => claims.mrtd,
        })
    }

    /// What the host data is, in hexadecimal: 32 bytes on SEV-SNP, 48 on TDX.
    #[must_use]
    pub fn host_data(&self) -> String {
        match self {
            Self::Snp(report) => hex::encode(report.host_data),
            Self::Tdx(claims) => hex::encode(claims.mrconfigid),
        }
    }

    /// What the claims say, for people and programs.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let (policy, report_data) = match self {
            Self::Snp(report) => (report.policy().to_string(), report.report_data),
            Self::Tdx(claims) => (format!("attributes {:#x}", claims.attributes), claims.report_data),
        };
        Summary {
            form: match self {
                Self::Snp(_) => "SEV-SNP report",
                Self::Tdx(_) => "TDX quote",
            },
            measurement: self.measurement().to_string(),
            host_data: self.host_data(),
            policy,
            report_data: hex::encode(report_data),
        }
    }
}

/// What the claims say, in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Report or quote.
    pub form: &'static str,
    /// Launch measurement.
    pub measurement: String,
    /// The owner's value.
    pub host_data: String,
    /// Guest policy, or the TD's attributes.
    pub policy: String,
    /// What the guest put in.
    pub report_data: String,
}

fn field<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    field(bytes, offset).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    field(bytes, offset).map(u32::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes as _;

    use super::*;

    fn quote(version: u8, body: usize) -> Vec<u8> {
        let mut quote = vec![0; body + TD_BODY + 100];
        (quote[0], quote[4]) = (version, 0x81);
        quote[body + TD_ATTRIBUTES] = 1;
        quote[body + MRTD..body + MRTD + 48].fill(0xAA);
        quote[body + MRCONFIGID..body + MRCONFIGID + 32].fill(0xBB);
        quote
    }

    #[test]
    fn quotes_of_both_versions() {
        for quote in [quote(4, 48), quote(5, 54)] {
            let claims = Claims::parse(&quote).unwrap();
            assert_eq!(claims.measurement().0, [0xAA; 48]);
            assert_eq!(claims.host_data(), format!("{}{}", "bb".repeat(32), "00".repeat(16)));
            assert_eq!(claims.summary().policy, "attributes 0x1");
        }
    }

    #[test]
    fn reports_and_what_is_neither() {
        let report = Report::unsigned(3).unwrap();
        assert!(matches!(Claims::parse(report.as_bytes()), Ok(Claims::Snp(_))));
        let mut sgx = quote(4, 48);
        sgx[4] = 0;
        assert!(Claims::parse(&sgx).unwrap_err().to_string().contains("expected type 0x81 (TDX), found 0x0"));
        let whole = quote(4, 48);
        for length in 0..QUOTE_HEADER + TD_BODY {
            assert!(Claims::parse(&whole[..length]).is_err(), "{length}");
        }
        assert!(Claims::parse(&quote(6, 48)).is_err());
    }
}
