//! The guard: counts and ratios against a committed baseline. No seconds: they say more about the machine.
//!
//! Less is better of everything that is guarded. A limit has its own margin, because some counts are exact and others
//! scatter.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use super::counts::Counted;
use super::table::number;

/// What was counted when it was last decided on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Baseline {
    /// By the names of [`Counted`].
    pub limits: BTreeMap<String, Limit>,
}

/// One entry of the baseline.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// What it was.
    pub value: f64,
    /// How much more is still no failure, in percent of the value.
    pub margin_percent: f64,
}

impl Limit {
    fn most(self) -> f64 {
        self.value * (1.0 + self.margin_percent / 100.0)
    }
}

/// How a count stands to its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Not above what it was.
    Holds,
    /// Above, within the margin.
    WithinMargin,
    /// Above the margin.
    Worse,
    /// The baseline has it, this run has not.
    NotMeasured,
}

/// A line of the guard's table.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    name: String,
    limit: Limit,
    found: Option<f64>,
    /// What it means.
    pub verdict: Verdict,
}

impl Baseline {
    /// Reads a baseline.
    ///
    /// # Errors
    /// When it is none.
    pub fn read(path: &Path) -> Result<Self> {
        let shown = path.display();
        let bytes = fs::read(path).with_context(|| format!("cannot read {shown}"))?;
        let baseline: Self =
            serde_json::from_slice(&bytes).with_context(|| format!("{shown}: no baseline"))?;
        let sound =
            |limit: &Limit| limit.value.is_finite() && limit.value >= 0.0 && limit.margin_percent >= 0.0;
        ensure!(baseline.limits.values().all(sound), "{shown}: expected values and margins of at least zero");
        Ok(baseline)
    }

    /// Each limit beside what was counted.
    #[must_use]
    pub fn judge(&self, counts: &[Counted]) -> Vec<Line> {
        let judge = |(name, limit): (&String, &Limit)| {
            let found = counts.iter().find(|count| count.name == *name).map(|count| count.value);
            let verdict = match found {
                None => Verdict::NotMeasured,
                Some(found) if found > limit.most() => Verdict::Worse,
                Some(found) if found > limit.value => Verdict::WithinMargin,
                Some(_) => Verdict::Holds,
            };
            Line { name: name.clone(), limit: *limit, found, verdict }
        };
        self.limits.iter().map(judge).collect()
    }

    /// The same limits with the values of `counts`; what was not counted stays.
    #[must_use]
    pub fn updated(&self, counts: &[Counted]) -> Self {
        let mut limits = self.limits.clone();
        for (name, limit) in &mut limits {
            if let Some(count) = counts.iter().find(|count| count.name == *name) {
                limit.value = count.value;
            }
        }
        Self { limits }
    }
}

/// Whether the guard lets this pass: nothing is worse, and `required` counts, by the beginning of their names, were
/// all measured. A count that silently disappears is not guarded any more.
#[must_use]
pub fn passes(lines: &[Line], required: &[&str]) -> bool {
    lines.iter().all(|line| match line.verdict {
        Verdict::Worse => false,
        Verdict::NotMeasured => required.iter().all(|prefix| !line.name.starts_with(prefix)),
        Verdict::Holds | Verdict::WithinMargin => true,
    })
}

/// The guard's table.
#[must_use]
pub fn table(lines: &[Line]) -> String {
    let mut text = String::from("| guarded | baseline | margin | now | |\n|---|---:|---:|---:|---|\n");
    for Line { name, limit, found, verdict } in lines {
        let found = found.map_or_else(|| "–".to_owned(), number);
        let words = match verdict {
            Verdict::Holds => "holds",
            Verdict::WithinMargin => "within its margin",
            Verdict::Worse => "WORSE",
            Verdict::NotMeasured => "not measured in this run",
        };
        let _ = writeln!(
            text,
            "| {name} | {} | {}% | {found} | {words} |",
            number(limit.value),
            number(limit.margin_percent)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(name: &str, value: f64) -> Counted {
        Counted { name: name.into(), value }
    }

    fn baseline() -> Baseline {
        let limit = |value, margin_percent| Limit { value, margin_percent };
        let limits = [("measured_pages/uvm snp", limit(13.0, 0.0)), ("bytes/vmm", limit(1000.0, 5.0))];
        Baseline { limits: limits.map(|(name, limit)| (name.to_owned(), limit)).into() }
    }

    const REQUIRED: &[&str] = &["measured_pages/", "bytes/"];

    #[test]
    fn what_is_no_worse_passes() {
        let lines =
            baseline().judge(&[counted("measured_pages/uvm snp", 12.0), counted("bytes/vmm", 1050.0)]);
        assert!(passes(&lines, REQUIRED));
        assert_eq!(lines.iter().filter(|line| line.verdict == Verdict::WithinMargin).count(), 1);
    }

    #[test]
    fn a_worse_build_fails_and_the_table_says_where() {
        let worse = [counted("measured_pages/uvm snp", 14.0), counted("bytes/vmm", 1000.0)];
        let lines = baseline().judge(&worse);
        assert!(!passes(&lines, REQUIRED));
        assert!(
            table(&lines).contains("| measured_pages/uvm snp | 13 | 0% | 14 | WORSE |"),
            "{}",
            table(&lines)
        );
    }

    #[test]
    fn a_required_count_may_not_disappear() {
        let lines = baseline().judge(&[counted("measured_pages/uvm snp", 13.0)]);
        assert!(!passes(&lines, REQUIRED));
        assert!(passes(&lines, &["measured_pages/"]));
    }

    #[test]
    fn updating_keeps_margins_and_what_was_not_measured() {
        let updated = baseline().updated(&[counted("bytes/vmm", 900.0)]);
        assert_eq!(updated.limits["bytes/vmm"], Limit { value: 900.0, margin_percent: 5.0 });
        assert_eq!(updated.limits["measured_pages/uvm snp"], baseline().limits["measured_pages/uvm snp"]);
    }

    /// The committed baseline is read, and limits the pages of every isolation that a processor measures.
    #[test]
    fn the_committed_baseline_is_sound() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("baseline.json");
        let baseline = Baseline::read(&path).unwrap();
        for name in ["measured_pages/uvm snp", "measured_pages/uvm tdx", "measured_pages/uvm-sim sim"] {
            let limit = baseline.limits[name];
            assert!(limit.value <= 32.0, "{name}: {limit:?}");
            assert!(limit.margin_percent < 1.0, "{name}: an exact count needs no margin");
        }
    }
}
