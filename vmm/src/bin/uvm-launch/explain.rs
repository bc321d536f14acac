//! `uvm-launch explain`: which launch a report is of.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use launch::image::{Image, Platform};
use measure::bundle::{Bundle, MAX_BUNDLE_BYTES};
use measure::explain::claims::Claims;
use measure::explain::{Candidate, Circumstances, Explanation, Finding, Match, explain};

use crate::input::{EXIT_STATUS, HostDataArguments, ImageFile, NO, YES, print_json, read};

/// Arguments of `explain`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_STATUS)]
pub struct Arguments {
    /// The evidence: a bundle as `uvm-launch report` writes it, or a bare SEV-SNP report or TDX quote.
    report: PathBuf,
    /// An image that it may be of; may be given several times.
    #[arg(long, required = true, value_name = "FILE")]
    image: Vec<PathBuf>,
    #[command(flatten)]
    host_data: HostDataArguments,
    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

/// Prints the launches that reproduce the report's measurement, or what comes nearest.
pub fn run(arguments: &Arguments) -> Result<u8> {
    let shown = arguments.report.display();
    let bundle =
        Bundle::parse(&read(&arguments.report, MAX_BUNDLE_BYTES)?).with_context(|| shown.to_string())?;
    let claims = Claims::parse(&bundle.report).with_context(|| shown.to_string())?;
    let files: Result<Vec<ImageFile>> = arguments.image.iter().map(|path| ImageFile::read(path)).collect();
    let files = files?;
    // No report is of an ordinary machine.
    let measured = |image: &&Image| image.platform != Platform::Native;
    let mut candidates = Vec::new();
    for file in &files {
        let parts = file.images.iter().filter(measured);
        candidates.extend(parts.map(|image| Candidate { name: &file.name, image }));
    }
    let known =
        Circumstances { provider: bundle.provider.as_deref(), host_data: arguments.host_data.resolve()? };
    let explanation = explain(&claims, &candidates, &known);
    if arguments.json {
        print_json(&explanation)?;
    } else {
        show(&explanation);
    }
    Ok(if explanation.matches.is_empty() { NO } else { YES })
}

fn show(explanation: &Explanation) {
    let report = &explanation.report;
    println!("{} (nothing of it is verified here; see `uvm-launch verify`)", report.form);
    println!("  measurement  {}", report.measurement);
    println!("  host data    {}", report.host_data);
    println!("  policy       {}", report.policy);
    println!("  report data  {}", report.report_data);
    explanation.matches.iter().for_each(show_match);
    if explanation.matches.is_empty() {
        println!("\nNo image reproduces the measurement. The nearest first:");
    }
    for near in &explanation.nearest {
        println!("\n{}", near.image);
        near.findings.iter().for_each(show_finding);
    }
}

fn show_match(found: &Match) {
    let vcpus =
        found.vcpus.map_or_else(|| "any number of vCPUs".to_owned(), |vcpus| format!("{vcpus} vCPUs"));
    println!("\n{}: {} on {}, {vcpus}: reproduces the measurement", found.image, found.tee, found.backend);
    if let Some(cause) = &found.cause {
        println!("  but only so: {cause}");
    }
    found.findings.iter().for_each(show_finding);
}

fn show_finding(finding: &Finding) {
    let Finding { what, expected, found, agrees } = finding;
    if *agrees {
        println!("  agrees   {what}: {found}");
    } else {
        println!("  differs  {what}: expected {expected}, found {found}");
    }
}
