//! Evidence about this guest: where it comes from, and what the agent itself checks in it before it serves.
//!
//! What the guest was measured for names the one provider that is asked: configfs-tsm ([`tsm`]) for SEV-SNP and
//! TDX, the report device ([`sim`]) for a simulation. On SEV-SNP a report reaches the guest under a key that it
//! shares with the secure processor alone, and on TDX a TD report ([`td_report`]) comes from the TDX module, so
//! that the guest may believe either without checking a signature. A TDX quote passes through the host: it is
//! for verifiers, and the agent decides nothing by it.
//!
//! At the start the agent asks for a report over fresh random data and compares it ([`check`]) with its measured
//! policy and with the host data that the host claims. Any difference, and no provider or no report, and the
//! guest does not serve.

pub mod check;
pub mod sim;
pub mod td_report;
pub mod tsm;

use std::sync::Arc;

use agent_protocol::tee::Tee;
use thiserror::Error;

use crate::error::AgentError;
use crate::expectation::Expectation;
use check::{Asked, Mismatch};

/// Evidence for a verifier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// The report's format, by its provider's name.
    pub provider: &'static str,
    /// The report or quote.
    pub report: Vec<u8>,
    /// The host's certificate table, possibly empty.
    pub certificates: Vec<u8>,
}

/// Why there is no evidence, or not the expected one.
#[derive(Debug, Error)]
pub enum EvidenceError {
    /// The guest was measured for no isolation.
    #[error("no evidence: this utility VM was measured for tee none, and nothing vouches for it")]
    Unprotected,
    /// Nobody in this guest gives reports.
    #[error("no provider of reports: expected {expected}, found {found}")]
    NoProvider {
        /// The provider's name.
        expected: &'static str,
        /// What was found in its place.
        found: String,
    },
    /// The provider did not do what it was asked.
    #[error("{provider} gave no report: {what}: {source}")]
    Io {
        /// The provider's name.
        provider: &'static str,
        /// What was attempted.
        what: String,
        /// How it failed.
        source: std::io::Error,
    },
    /// The provider answered what no provider may.
    #[error("{provider} gave no report: {found}")]
    Answer {
        /// The provider's name.
        provider: &'static str,
        /// What it answered.
        found: String,
    },
    /// The report is not the one that this guest must have.
    #[error("this guest's report: {0}")]
    Mismatch(#[from] Mismatch),
}

impl From<EvidenceError> for AgentError {
    fn from(error: EvidenceError) -> Self {
        match error {
            EvidenceError::Unprotected => Self::State(error.to_string()),
            other => Self::Runtime(other.to_string()),
        }
    }
}

/// Gives evidence over chosen data.
pub trait Attester: Send + Sync {
    /// A fresh report whose report data is `report_data`. May block for seconds.
    ///
    /// # Errors
    /// If there is no report.
    fn evidence(&self, report_data: &[u8; 64]) -> Result<Evidence, EvidenceError>;
}

/// The attester of a guest that nothing vouches for.
#[derive(Debug)]
pub struct Unattested;

impl Attester for Unattested {
    fn evidence(&self, _: &[u8; 64]) -> Result<Evidence, EvidenceError> {
        Err(EvidenceError::Unprotected)
    }
}

/// The attester of a guest that was measured for `tee`.
#[must_use]
pub fn attester(tee: Tee) -> Arc<dyn Attester> {
    match tee {
        Tee::None => Arc::new(Unattested),
        Tee::Sim => Arc::new(sim::SimDevice),
        Tee::Snp => Arc::new(tsm::Reports::new(tsm::SEV_GUEST)),
        Tee::Tdx => Arc::new(tsm::Reports::new(tsm::TDX_GUEST)),
    }
}

/// Makes sure that this guest is what it was measured to be, launched with `host_data`, and gives its attester.
///
/// # Errors
/// If there is no report, or it says something else.
pub fn admit(expectation: Expectation, host_data: &[u8; 32]) -> Result<Arc<dyn Attester>, EvidenceError> {
    let attester = attester(expectation.tee());
    match expectation {
        Expectation::None => {}
        Expectation::Sim(policy) | Expectation::Snp(policy) => {
            let report_data = fresh()?;
            let report = attester.evidence(&report_data)?.report;
            check::snp(&report, policy, &Asked { report_data: &report_data, host_data })?;
        }
        Expectation::Tdx => {
            let report_data = fresh()?;
            let report = td_report::take(&report_data)?;
            check::tdx(&report, &Asked { report_data: &report_data, host_data })?;
        }
    }
    Ok(attester)
}

/// Report data that no earlier report can have. The kernel's generator is seeded by then: it blocks until it is.
fn fresh() -> Result<[u8; 64], EvidenceError> {
    let failed = |source| EvidenceError::Io { provider: "the kernel", what: "random data".into(), source };
    let mut data = [0; 64];
    match rustix::rand::getrandom(&mut data, rustix::rand::GetRandomFlags::empty()) {
        Ok(64) => Ok(data),
        Ok(_) => Err(failed(std::io::ErrorKind::UnexpectedEof.into())),
        Err(errno) => Err(failed(errno.into())),
    }
}
