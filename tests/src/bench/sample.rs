//! Measured values: what was measured, in what unit, and how its samples are distributed.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// What a quantity is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    /// Milliseconds.
    #[serde(rename = "ms")]
    Milliseconds,
    /// Microseconds.
    #[serde(rename = "us")]
    Microseconds,
    /// Things: exits, faults, pages.
    #[serde(rename = "count")]
    Count,
    /// Kibibytes.
    #[serde(rename = "KiB")]
    Kibibytes,
    /// Mebibytes in a second.
    #[serde(rename = "MiB/s")]
    MebibytesPerSecond,
}

impl Unit {
    /// As it is written after a number.
    #[must_use]
    pub const fn symbol(self) -> &'static str {
        match self {
            Self::Milliseconds => "ms",
            Self::Microseconds => "µs",
            Self::Count => "",
            Self::Kibibytes => "KiB",
            Self::MebibytesPerSecond => "MiB/s",
        }
    }

    /// Whether more of it is better; of all else less is.
    #[must_use]
    pub const fn more_is_better(self) -> bool {
        matches!(self, Self::MebibytesPerSecond)
    }

    /// Whether it does not depend on how fast the machine is.
    #[must_use]
    pub const fn is_count(self) -> bool {
        matches!(self, Self::Count | Self::Kibibytes)
    }
}

/// One value of one quantity.
#[derive(Debug, Clone, PartialEq)]
pub struct Value {
    /// The quantity.
    pub name: String,
    /// Its unit.
    pub unit: Unit,
    /// How much.
    pub value: f64,
}

impl Value {
    /// A value of `name`.
    #[must_use]
    pub fn new(name: impl Into<String>, unit: Unit, value: f64) -> Self {
        Self { name: name.into(), unit, value }
    }

    /// A number of things or of kibibytes.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "counts here are far below 2^52")]
    pub fn count(name: impl Into<String>, unit: Unit, value: u64) -> Self {
        Self::new(name, unit, value as f64)
    }

    /// A time that is known in microseconds, in milliseconds.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "a century is below 2^52 microseconds")]
    pub fn milliseconds(name: impl Into<String>, microseconds: u64) -> Self {
        Self::new(name, Unit::Milliseconds, microseconds as f64 / 1000.0)
    }
}

/// All samples of one quantity of one contender, and what they amount to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metric {
    /// The quantity.
    pub name: String,
    /// Unit of all numbers here.
    pub unit: Unit,
    /// The middle sample.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
    /// Distance between the quartiles.
    pub spread: f64,
    /// In the order in which they were measured.
    pub samples: Vec<f64>,
}

impl Metric {
    /// What `samples` amount to.
    ///
    /// # Errors
    /// When there are none, or one is no number.
    pub fn new(name: impl Into<String>, unit: Unit, samples: Vec<f64>) -> Result<Self> {
        let name = name.into();
        ensure!(!samples.is_empty(), "{name}: expected at least one sample, found none");
        ensure!(
            samples.iter().all(|sample| sample.is_finite()),
            "{name}: expected numbers, found {samples:?}"
        );
        let mut sorted = samples.clone();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (sorted[0], sorted[sorted.len() - 1]);
        let spread = quantile(&sorted, 3, 4) - quantile(&sorted, 1, 4);
        Ok(Self { name, unit, median: quantile(&sorted, 1, 2), min, max, spread, samples })
    }
}

/// The quantile `part`/`of` of sorted samples, between two of them by their distance.
#[allow(clippy::cast_precision_loss, reason = "a remainder below four")]
fn quantile(sorted: &[f64], part: usize, of: usize) -> f64 {
    let last = sorted.len() - 1;
    let (index, rest) = (last * part / of, last * part % of);
    let (low, high) = (sorted[index], sorted[(index + 1).min(last)]);
    low + (high - low) * rest as f64 / of as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metric(samples: &[f64]) -> Metric {
        Metric::new("x", Unit::Count, samples.to_vec()).unwrap()
    }

    #[test]
    fn medians_and_quartiles() {
        assert!((metric(&[3.0]).median - 3.0).abs() < 1e-9);
        assert!((metric(&[4.0, 1.0, 2.0]).median - 2.0).abs() < 1e-9);
        let even = metric(&[4.0, 1.0, 2.0, 3.0]);
        assert!((even.median - 2.5).abs() < 1e-9);
        assert!((even.spread - 1.5).abs() < 1e-9);
        assert!((even.min - 1.0).abs() < 1e-9 && (even.max - 4.0).abs() < 1e-9);
        assert!((even.samples[0] - 4.0).abs() < 1e-9, "samples keep their order");
    }

    #[test]
    fn nothing_and_nonsense_are_refused() {
        assert!(Metric::new("x", Unit::Count, vec![]).is_err());
        assert!(Metric::new("x", Unit::Count, vec![1.0, f64::NAN]).is_err());
    }
}
