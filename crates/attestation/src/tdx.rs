//! Intel TDX quotes (Intel TDX DCAP quoting library API, quote versions 4 and 5).
//!
//! Signatures, certificate chains, TCB information and revocation lists are the `dcap-qvl` crate's work, offline, from
//! collateral that the caller provides; what is demanded of platform and guest is checked here, by name.

use std::fmt;

use dcap_qvl::{
    QuoteCollateralV3, TcbStatus,
    policy::{QuoteClaims, QuotePolicy},
    quote::{Report, TDReport10},
    verify::QuoteVerifier,
};
use thiserror::Error;

use crate::{Expect, Verdict};

/// Most bytes of a quote; genuine ones have about five thousand.
pub const QUOTE_MAX: usize = 64 * 1024;
/// Most bytes of collateral.
pub const COLLATERAL_MAX: usize = 4 * 1024 * 1024;

/// `tee_type` of TDX.
const TEE_TDX: u32 = 0x81;
/// TD attributes, bits 0 to 7 (TUD): any of them makes the TD open to its host.
const UNTRUSTED: u8 = 0xff;

/// Why collateral cannot be used.
#[derive(Debug, Error)]
pub enum Error {
    /// Too many bytes.
    #[error("TDX collateral: expected at most {COLLATERAL_MAX} bytes, found {0}")]
    Size(usize),
    /// Not collateral.
    #[error("TDX collateral: expected JSON of quote verification collateral version 3: {0}")]
    Json(#[from] serde_json::Error),
}

/// What Intel says about the platform, as far as a quote's verification needs it.
#[derive(Debug, Clone)]
pub struct Collateral(QuoteCollateralV3);

impl Collateral {
    /// Reads collateral as provisioning caches give it: JSON, version 3.
    ///
    /// # Errors
    /// Too long, or not of that form.
    pub fn from_json(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.len() > COLLATERAL_MAX {
            return Err(Error::Size(bytes.len()));
        }
        Ok(Self(serde_json::from_slice(bytes)?))
    }
}

/// What a quote must say.
#[derive(Debug, Clone)]
pub struct Expectations {
    /// The time at which certificates and collateral must be valid, in Unix seconds: the verifier's own.
    pub now: u64,
    /// TCB statuses that will do, in Intel's words; `UpToDate` is the only one without a known flaw. `Revoked` never
    /// will.
    pub statuses: Vec<String>,
    /// Security advisories that may be open on the platform.
    pub advisories: Expect<Vec<String>>,
    /// Security version numbers of the TDX module: byte 0 is the minor SVN, byte 1 the major. Both are floors.
    pub module_svn: Expect<[u8; 2]>,
    /// Extended features that the TD may use.
    pub xfam: Expect<[u8; 8]>,
    /// Build-time measurements that will do.
    pub mrtd: Expect<Vec<[u8; 48]>>,
    /// MRCONFIGID (see [`mr_config_id`]).
    pub mr_config_id: Expect<[u8; 48]>,
    /// MROWNER.
    pub mr_owner: Expect<[u8; 48]>,
    /// MROWNERCONFIG.
    pub mr_owner_config: Expect<[u8; 48]>,
    /// Run-time measurements 0 to 3. This product extends none of them: a TD that was launched from its images has
    /// zeros.
    pub rtmrs: [Expect<[u8; 48]>; 4],
    /// Report data: what ties the quote to this conversation.
    pub report_data: Expect<[u8; 64]>,
}

/// MRCONFIGID of a TD that was launched with this host data.
#[must_use]
pub fn mr_config_id(host_data: &[u8; 32]) -> [u8; 48] {
    let mut id = [0; 48];
    id[..32].copy_from_slice(host_data);
    id
}

/// Verifies a quote. The verdict is accepted only if every check passed or was waived.
#[must_use]
pub fn verify(quote: &[u8], collateral: &Collateral, expectations: &Expectations) -> Verdict {
    let mut verdict = Verdict::default();
    if quote.len() > QUOTE_MAX {
        verdict.fail("quote", format!("at most {QUOTE_MAX} bytes"), quote.len().to_string());
        return verdict;
    }
    // Debugging is allowed here, so that it is refused below, under its own name.
    let verifier: QuoteVerifier = QuoteVerifier::new_prod().allow_debug(true);
    let claims = verifier
        .verify_with_policy(
            quote,
            &collateral.0,
            expectations.now,
            &QuotePolicy::claims_only(expectations.now),
        )
        .map_err(|error| Chained(format!("{error:#}")));
    let expected = "a quote that Intel's chain, this collateral and its revocation lists bear out";
    let Some(claims) =
        verdict.result("quote", expected, claims, |_| "signature and collateral hold".to_owned())
    else {
        return verdict;
    };
    check_collateral(&mut verdict, &claims, expectations);
    let report = match &claims.report {
        Report::TD10(report) => report,
        Report::TD15(report) => &report.base,
        Report::TD15Ex(report) => &report.base.base,
        Report::SgxEnclave(_) => {
            verdict.fail("TEE type", format!("{TEE_TDX:#x} (TDX)"), format!("{:#x} (SGX)", claims.tee_type));
            return verdict;
        }
    };
    let tee = claims.tee_type;
    verdict.check("TEE type", tee == TEE_TDX, format!("{TEE_TDX:#x} (TDX)"), format!("{tee:#x}"));
    check_module(&mut verdict, report, expectations);
    check_guest(&mut verdict, report, expectations);
    verdict
}

fn check_collateral(verdict: &mut Verdict, claims: &QuoteClaims, expectations: &Expectations) {
    let (end, now) = (claims.earliest_expiration_date, expectations.now);
    verdict.check(
        "collateral dates",
        now <= end,
        format!("collateral that is valid at {now} (Unix seconds)"),
        format!("valid until {end}"),
    );
    let status = claims.tcb.status.to_string();
    let expected = if expectations.statuses.is_empty() {
        "one of no statuses".to_owned()
    } else {
        expectations.statuses.join(" or ")
    };
    let allowed = claims.tcb.status != TcbStatus::Revoked && expectations.statuses.contains(&status);
    verdict.check("TCB status", allowed, expected, status);
    let open = &claims.tcb.advisory_ids;
    let found = if open.is_empty() { "none".to_owned() } else { open.join(", ") };
    verdict.expect(
        "advisories",
        &expectations.advisories,
        found,
        |allowed| open.iter().all(|id| allowed.contains(id)),
        |allowed| {
            if allowed.is_empty() { "none".to_owned() } else { format!("at most {}", allowed.join(", ")) }
        },
    );
}

fn check_module(verdict: &mut Verdict, report: &TDReport10, expectations: &Expectations) {
    let signer = &report.mr_signer_seam;
    verdict.expect_bytes("TDX module signer", &Expect::Is([0; 48]), signer);
    verdict.expect_bytes("TDX module attributes", &Expect::Is([0; 8]), &report.seam_attributes);
    let svn = [report.tee_tcb_svn[0], report.tee_tcb_svn[1]];
    verdict.expect(
        "TDX module SVN",
        &expectations.module_svn,
        format!("{}.{}", svn[1], svn[0]),
        |floor| svn.iter().zip(floor).all(|(found, floor)| found >= floor),
        |floor| format!("at least {}.{}", floor[1], floor[0]),
    );
}

fn check_guest(verdict: &mut Verdict, report: &TDReport10, expectations: &Expectations) {
    let attributes = report.td_attributes;
    verdict.check(
        "TD attributes debug",
        attributes[0] & UNTRUSTED == 0,
        "no attribute in bits 0 to 7 (debug, profiling)",
        hex::encode(attributes),
    );
    verdict.expect_bytes("XFAM", &expectations.xfam, &report.xfam);
    verdict.expect_one_of("MRTD", &expectations.mrtd, &report.mr_td);
    verdict.expect_bytes("MRCONFIGID", &expectations.mr_config_id, &report.mr_config_id);
    verdict.expect_bytes("MROWNER", &expectations.mr_owner, &report.mr_owner);
    verdict.expect_bytes("MROWNERCONFIG", &expectations.mr_owner_config, &report.mr_owner_config);
    let found = [&report.rt_mr0, &report.rt_mr1, &report.rt_mr2, &report.rt_mr3];
    let names = ["RTMR0", "RTMR1", "RTMR2", "RTMR3"];
    for ((name, demand), found) in names.into_iter().zip(&expectations.rtmrs).zip(found) {
        verdict.expect_bytes(name, demand, found);
    }
    verdict.expect_bytes("report data", &expectations.report_data, &report.report_data);
}

/// An error with its causes in one line.
struct Chained(String);

impl fmt::Display for Chained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
