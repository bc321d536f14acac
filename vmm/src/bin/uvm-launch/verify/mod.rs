//! `uvm-launch verify`: whether to believe a report or quote, check by named check.

mod demands;
mod floor;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use attestation::snp::{self, Certificates};
use attestation::x509::RevocationList;
use attestation::{Verdict, endorsement, tdx};
use evidence::report::Report;
use measure::bundle::{Bundle, MAX_BUNDLE_BYTES};

use crate::input::{EXIT_STATUS, NO, YES, print_json, read};
use demands::Demands;

/// Arguments of `verify`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_STATUS)]
pub struct Arguments {
    /// The evidence: a bundle as `uvm-launch report` writes it, or a bare SEV-SNP report or TDX quote.
    report: PathBuf,
    /// Accept a simulated TEE, whose root of trust anyone can make.
    #[arg(long)]
    allow_sim: bool,
    /// Time at which certificates must be valid, in Unix seconds [default: now].
    #[arg(long, value_name = "SECONDS")]
    time: Option<u64>,
    /// A certificate that is not in the bundle, DER or PEM; may be given several times.
    #[arg(long, value_name = "FILE")]
    certificate: Vec<PathBuf>,
    /// A certificate revocation list, DER; without any, revocation is not checked.
    #[arg(long, value_name = "FILE")]
    crl: Vec<PathBuf>,
    /// TDX: what Intel says about the platform (quote verification collateral, version 3, JSON).
    #[arg(long, value_name = "FILE")]
    collateral: Option<PathBuf>,
    #[command(flatten)]
    demands: demands::DemandArguments,
    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Debug, serde::Serialize)]
struct Answer {
    accepted: bool,
    #[serde(flatten)]
    verdict: Verdict,
}

/// Verifies, and prints every check.
pub fn run(arguments: &Arguments) -> Result<u8> {
    let bundle = Bundle::parse(&read(&arguments.report, MAX_BUNDLE_BYTES)?)
        .with_context(|| arguments.report.display().to_string())?;
    let demands = arguments.demands.resolve(arguments.now()?)?;
    let is_report = bundle.report.len() == Report::BYTES;
    let verdict =
        if is_report { snp(arguments, &bundle, &demands)? } else { tdx(arguments, &bundle, &demands)? };
    let accepted = verdict.accepted();
    if arguments.json {
        print_json(&Answer { accepted, verdict })?;
    } else {
        println!("{verdict}");
    }
    Ok(if accepted { YES } else { NO })
}

impl Arguments {
    fn now(&self) -> Result<u64> {
        let now =
            || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map(|now| now.as_secs());
        self.time.map_or_else(|| now().context("this machine's clock is before 1970"), Ok)
    }
}

fn snp(arguments: &Arguments, bundle: &Bundle, demands: &Demands) -> Result<Verdict> {
    let mut certificates = if bundle.certificates.is_empty() {
        Certificates::default()
    } else {
        Certificates::from_table(&bundle.certificates).context("the bundle's certificates")?
    };
    for path in &arguments.certificate {
        for certificate in crate::input::certificates(path)? {
            certificates.add(certificate).with_context(|| path.display().to_string())?;
        }
    }
    let lists: Result<Vec<RevocationList>> = arguments.crl.iter().map(|path| revocation_list(path)).collect();
    let mut endorsed = Verdict::default();
    let mut measurements = demands.measurements.clone();
    if let Some(trusted) = &demands.endorsement {
        // The report parses or fails its own checks; a measurement of zeros is endorsed by nobody.
        let measured = Report::parse(&bundle.report).map_or([0; 48], |report| report.measurement);
        let (verdict, statement) = endorsement::verify(&trusted.bytes, &trusted.expectations(measured));
        let statement = statement.filter(|_| verdict.accepted());
        measurements = measurements.with_endorsed(statement.map(|statement| statement.measurement));
        endorsed = verdict;
    }
    let expectations = demands.snp(arguments.allow_sim, lists?, &measurements);
    let mut verdict = snp::verify(&bundle.report, &certificates, &expectations);
    verdict.checks.append(&mut endorsed.checks);
    Ok(verdict)
}

fn tdx(arguments: &Arguments, bundle: &Bundle, demands: &Demands) -> Result<Verdict> {
    let path = arguments.collateral.as_ref();
    let path =
        path.context("evidence that is no SEV-SNP report of 1184 bytes: a TDX quote needs --collateral")?;
    let json = read(path, u64::try_from(tdx::COLLATERAL_MAX)?)?;
    let collateral = tdx::Collateral::from_json(&json).with_context(|| path.display().to_string())?;
    anyhow::ensure!(
        demands.endorsement.is_none(),
        "--endorsement: expected an SEV-SNP report, found a quote"
    );
    Ok(tdx::verify(&bundle.report, &collateral, &demands.tdx()))
}

fn revocation_list(path: &Path) -> Result<RevocationList> {
    let bytes = read(path, u64::try_from(attestation::x509::CRL_MAX)?)?;
    RevocationList::from_der(&bytes).with_context(|| path.display().to_string())
}
