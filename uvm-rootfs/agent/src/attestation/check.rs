//! What a report must say before this guest serves. Pure code.
//!
//! SEV-SNP: AMD SEV-SNP firmware ABI (publication 56860), ATTESTATION_REPORT. TDX: Intel TDX module ABI,
//! TDREPORT_STRUCT. The guest checks what it can know: that the report is fresh and its own, that it runs at the
//! most privileged level, that nobody may debug it, and that its launch bound the host data that the host claims.
//! What the launch measurement is worth is a verifier's question: the code that would answer it is measured too.

use evidence::policy::GuestPolicy;
use evidence::report::Report;
use thiserror::Error;

use super::td_report::TdReport;

/// What was asked for, and what the host claims.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The report data that the report must have.
    pub report_data: &'a [u8; 64],
    /// The host data that the launch must have bound.
    pub host_data: &'a [u8; 32],
}

/// Why a report is not the one that this guest must have.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Mismatch {
    /// Not a report.
    #[error(transparent)]
    Report(#[from] evidence::report::Error),
    /// Not a TD report.
    #[error("TD report: expected type 0x81, found {0:#x}")]
    Type(u8),
    /// A field has another value.
    #[error("{field}: expected {expected}, found {found}")]
    Field {
        /// Which field.
        field: &'static str,
        /// What it must be.
        expected: String,
        /// What it is.
        found: String,
    },
}

/// Checks an SEV-SNP report against the measured `policy` and what was asked.
///
/// # Errors
/// Names the first thing that differs.
pub fn snp(bytes: &[u8], policy: GuestPolicy, asked: &Asked<'_>) -> Result<(), Mismatch> {
    let report = Report::parse(bytes)?;
    same_bytes("report data", asked.report_data, &report.report_data)?;
    same("VMPL", &0, &report.vmpl.get())?;
    same("guest policy", &policy, &report.policy())?;
    if report.policy().has(GuestPolicy::DEBUG) {
        return Err(Mismatch::Field {
            field: "guest policy",
            expected: "one without debug".into(),
            found: report.policy().to_string(),
        });
    }
    same_bytes("host data", asked.host_data, &report.host_data)
}

/// Checks a TD report against what was asked.
///
/// # Errors
/// Names the first thing that differs.
pub fn tdx(report: &TdReport, asked: &Asked<'_>) -> Result<(), Mismatch> {
    if report.kind() != TdReport::TYPE_TDX {
        return Err(Mismatch::Type(report.kind()));
    }
    same_bytes("report data", asked.report_data, report.report_data())?;
    // The lowest byte, TUD, holds what makes a TD untrusted: debugging and profiling.
    let attributes = report.attributes();
    if attributes & 0xff != 0 {
        return Err(Mismatch::Field {
            field: "TD attributes",
            expected: "none that let the host look in (bits 0 to 7)".into(),
            found: format!("{attributes:#x}"),
        });
    }
    let mut config_id = [0; 48];
    config_id[..32].copy_from_slice(asked.host_data);
    same_bytes("MRCONFIGID", &config_id, report.mr_config_id())
}

fn same<T: PartialEq + ToString>(field: &'static str, expected: &T, found: &T) -> Result<(), Mismatch> {
    if expected == found {
        return Ok(());
    }
    Err(Mismatch::Field { field, expected: expected.to_string(), found: found.to_string() })
}

fn same_bytes(field: &'static str, expected: &[u8], found: &[u8]) -> Result<(), Mismatch> {
    same(field, &hex(expected), &hex(found))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;

    const POLICY: GuestPolicy = GuestPolicy::PRODUCTION;
    const ASKED: Asked<'_> = Asked { report_data: &[7; 64], host_data: &[9; 32] };

    fn report(version: u32) -> Report {
        let mut report = Report::unsigned(version).unwrap();
        report.policy = POLICY.0.into();
        report.report_data = *ASKED.report_data;
        report.host_data = *ASKED.host_data;
        report
    }

    #[test]
    fn this_guests_report_passes() {
        for version in 2..=5 {
            assert_eq!(snp(report(version).as_bytes(), POLICY, &ASKED), Ok(()));
        }
    }

    #[test]
    fn each_difference_is_named() {
        type Change = fn(&mut Report);
        let cases: [(Change, &str); 7] = [
            (|report| report.report_data[63] ^= 1, "report data: expected 0707"),
            (|report| report.vmpl = 1.into(), "VMPL: expected 0, found 1"),
            (
                |report| report.policy = (POLICY.0 | GuestPolicy::SINGLE_SOCKET).into(),
                "guest policy: expected 0x30000 (abi 0.0, smt), found 0x130000 (abi 0.0, smt, single-socket)",
            ),
            (|report| report.policy = (POLICY.0 | GuestPolicy::DEBUG).into(), "found 0xb0000"),
            (|report| report.host_data[0] ^= 0x80, "host data: expected 0909"),
            (|report| report.host_data = [0; 32], "host data: expected 0909"),
            (|report| report.version = 6.into(), "expected version 2 to 5, found 6"),
        ];
        for (change, message) in cases {
            let mut changed = report(3);
            change(&mut changed);
            let error = snp(changed.as_bytes(), POLICY, &ASKED).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
        assert!(snp(&[], POLICY, &ASKED).is_err());
    }

    #[test]
    fn a_measured_debug_policy_is_refused_all_the_same() {
        let debug = GuestPolicy(POLICY.0 | GuestPolicy::DEBUG);
        let mut report = report(3);
        report.policy = debug.0.into();
        let error = snp(report.as_bytes(), debug, &ASKED).unwrap_err().to_string();
        assert!(error.contains("without debug"), "{error}");
    }

    /// A TD report of this guest, with one byte of it changed by `mask`.
    fn td_report(at: usize, mask: u8) -> TdReport {
        let mut bytes = [0; TdReport::BYTES];
        bytes[0] = 0x81;
        bytes[128..192].copy_from_slice(ASKED.report_data);
        // SEPT_VE_DISABLE, as Linux asks for: allowed.
        bytes[515] = 0x10;
        bytes[576..608].copy_from_slice(ASKED.host_data);
        bytes[at] ^= mask;
        TdReport(bytes)
    }

    #[test]
    fn this_guests_td_report_passes_and_each_difference_is_named() {
        assert_eq!(tdx(&td_report(0, 0), &ASKED), Ok(()));
        let cases = [
            (0, 0x80, "expected type 0x81, found 0x1"),
            (128, 1, "report data"),
            (191, 1, "report data"),
            (
                512,
                1,
                "TD attributes: expected none that let the host look in (bits 0 to 7), found 0x10000001",
            ),
            (576, 1, "MRCONFIGID"),
            (607, 1, "MRCONFIGID"),
            // The 16 bytes behind the host data must be zero.
            (608, 1, "MRCONFIGID"),
            (623, 1, "MRCONFIGID"),
        ];
        for (at, mask, message) in cases {
            let error = tdx(&td_report(at, mask), &ASKED).unwrap_err().to_string();
            assert!(error.contains(message), "byte {at}: {error}");
        }
        // Behind MRCONFIGID comes MROWNER, which nobody here sets a value for.
        assert_eq!(tdx(&td_report(624, 1), &ASKED), Ok(()));
    }
}
