//! What of the product can be counted without running it: the same on every machine, every time.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::report::Report;

/// A count or a ratio, with the name by which the baseline knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Counted {
    /// `group/what`.
    pub name: String,
    /// How much of it.
    pub value: f64,
}

/// Images whose launches are priced, and their sidecars.
const IMAGES: [&str; 4] = ["uvm", "uvm-sim", "uvm-measured", "uvm-sim-measured"];
/// Files whose size somebody pays for: per pod in memory, per launch in hashing, per node on disk.
const FILES: [&str; 7] = [
    "bin/containerd-shim-uvm-v2",
    "bin/uvm-vmm",
    "bin/uvm-snapshotter",
    "boot-stub",
    "bzImage",
    "rootfs.img",
    "uvm.igvm",
];

/// Counts of the product in `folder`: pages of each image by what they cost at launch, and sizes of files.
///
/// # Errors
/// When a file is missing or a sidecar has no such counts.
pub fn of_product(folder: &Path) -> Result<Vec<Counted>> {
    let mut counts = Vec::new();
    for image in IMAGES {
        let path = folder.join(image).with_extension("json");
        let shown = || path.display().to_string();
        let sidecar: Value =
            serde_json::from_slice(&fs::read(&path).with_context(shown)?).with_context(shown)?;
        for platform in sidecar["platforms"].as_array().with_context(shown)? {
            let tee = platform["tee"].as_str().with_context(shown)?;
            for kind in ["measured_pages", "shared_pages"] {
                let pages =
                    platform["cost"][kind].as_u64().with_context(|| format!("{}: {kind}", shown()))?;
                counts.push(counted(format!("{kind}/{image} {tee}"), pages));
            }
        }
    }
    for file in FILES {
        let path = folder.join(file);
        let bytes = fs::metadata(&path).with_context(|| path.display().to_string())?.len();
        counts.push(counted(format!("bytes/{file}"), bytes));
    }
    Ok(counts)
}

#[allow(clippy::cast_precision_loss, reason = "counts here are far below 2^52")]
fn counted(name: String, value: u64) -> Counted {
    Counted { name, value: value as f64 }
}

/// Counts of a run, and ratios of its contenders to the first one of each bench; no seconds.
#[must_use]
pub fn of_report(report: &Report) -> Vec<Counted> {
    let mut counts = Vec::new();
    for bench in &report.benches {
        for row in &bench.rows {
            for metric in &row.metrics {
                let name = format!("{}/{}: {}", bench.name, row.contender, metric.name);
                if metric.unit.is_count() {
                    counts.push(Counted { name, value: metric.median });
                    continue;
                }
                let others = bench.rows.iter().filter(|other| other.contender != row.contender);
                for other in others {
                    let Some(base) = other.metric(&metric.name).filter(|base| base.median > 0.0) else {
                        continue;
                    };
                    let name = format!("{name} to {}", other.contender);
                    counts.push(Counted { name, value: metric.median / base.median });
                }
            }
        }
    }
    counts
}
