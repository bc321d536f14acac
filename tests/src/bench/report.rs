//! What a run found, as it is written to `bench.json` and read again for comparison.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use super::environment::Environment;
use super::sample::Metric;

/// Version of the file's form.
const VERSION: u32 = 1;

/// A whole run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// Form of this file.
    pub version: u32,
    /// Where it ran.
    pub environment: Environment,
    /// What was run, in order.
    pub benches: Vec<BenchReport>,
}

/// One bench.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BenchReport {
    /// Its name on the command line.
    pub name: String,
    /// What it measures.
    pub title: String,
    /// One for each contender.
    pub rows: Vec<Row>,
    /// What could not be measured here, and why.
    pub missing: Vec<String>,
}

/// One contender.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// Who.
    pub contender: String,
    /// What was started.
    pub command: Vec<String>,
    /// What it took.
    pub metrics: Vec<Metric>,
    /// Samples that failed, and why.
    pub failures: Vec<String>,
}

impl Row {
    /// The quantity `name`, if it was measured.
    #[must_use]
    pub fn metric(&self, name: &str) -> Option<&Metric> {
        self.metrics.iter().find(|metric| metric.name == name)
    }
}

impl BenchReport {
    /// The row of `contender`, if it took part.
    #[must_use]
    pub fn row(&self, contender: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.contender == contender)
    }

    /// Quantities of all rows, in the order of their first appearance.
    #[must_use]
    pub fn quantities(&self) -> Vec<&Metric> {
        let mut found: Vec<&Metric> = Vec::new();
        for metric in self.rows.iter().flat_map(|row| &row.metrics) {
            if found.iter().all(|known| known.name != metric.name) {
                found.push(metric);
            }
        }
        found
    }
}

impl Report {
    /// A run of nothing yet.
    #[must_use]
    pub fn new(environment: Environment) -> Self {
        Self { version: VERSION, environment, benches: Vec::new() }
    }

    /// The bench `name`, if it was run.
    #[must_use]
    pub fn bench(&self, name: &str) -> Option<&BenchReport> {
        self.benches.iter().find(|bench| bench.name == name)
    }

    /// Reads a report.
    ///
    /// # Errors
    /// When it is none, or one of another form.
    pub fn read(path: &Path) -> Result<Self> {
        let shown = path.display();
        let bytes = fs::read(path).with_context(|| format!("cannot read {shown}"))?;
        let report: Self = serde_json::from_slice(&bytes).with_context(|| format!("{shown}: no report"))?;
        let found = report.version;
        ensure!(found == VERSION, "{shown}: expected a report of form {VERSION}, found {found}");
        Ok(report)
    }
}
