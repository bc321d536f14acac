//! Cases, and the loop that runs them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, anyhow};

/// What every case may use.
#[derive(Debug)]
pub struct Bed {
    /// The folder that `cargo xtask image` fills: `bin/`, `uvm.igvm`, `rootfs.img`, images.
    pub product: PathBuf,
}

impl Bed {
    /// A program of the product.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.product.join("bin").join(name)
    }
}

/// One thing that must be so.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// `suite::name`.
    pub name: &'static str,
    /// Fails when it is not so.
    pub run: fn(&Bed) -> Result<()>,
}

/// Runs the cases whose name contains `filter`, in order, and reports each. True when all passed.
#[must_use]
pub fn run(bed: &Bed, cases: &[Case], filter: Option<&str>) -> bool {
    let wanted = |case: &&Case| filter.is_none_or(|text| case.name.contains(text));
    let (mut passed, mut failed) = (0u32, Vec::new());
    for case in cases.iter().filter(wanted) {
        let started = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| (case.run)(bed)));
        let seconds = started.elapsed().as_secs_f32();
        match outcome.unwrap_or_else(|_| Err(anyhow!("the case panicked; its message is above"))) {
            Ok(()) => {
                passed += 1;
                println!("ok    {:<44} {seconds:6.1} s", case.name);
            }
            Err(error) => {
                println!("FAIL  {:<44} {seconds:6.1} s\n      {error:?}", case.name);
                failed.push(case.name);
            }
        }
    }
    println!("{passed} passed, {} failed", failed.len());
    failed.is_empty() && passed > 0
}
