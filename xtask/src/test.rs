//! `cargo xtask test`: a list of steps, run in order, each timed; the last line counts tests.
//!
//! A step that only checks (formatting, lints) counts as one test. A step that runs tests reports how many passed
//! and failed; one that fails without saying counts as one failure. All steps run even when one fails.

use std::{
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::{Context, Result};

use crate::tally::{Tally, counted};
use crate::{image, places, setup};

/// A named piece of the test run.
struct Step {
    name: &'static str,
    run: fn() -> Result<Tally>,
}

/// What `cargo xtask test` does, in order: cheap checks first.
const STEPS: &[Step] = &[
    Step { name: "formatting", run: || check("cargo", &["fmt", "--all", "--check"]) },
    Step {
        name: "lints",
        run: || check("cargo", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]),
    },
    Step { name: "stub-lints", run: stub_lints },
    Step { name: "unit-tests", run: unit_tests },
    Step { name: "fuzz", run: crate::fuzz::short },
    Step { name: "node", run: crate::node::checks::run },
    Step { name: "scratch", run: crate::scratch::run },
    Step { name: "tdx-entry", run: crate::tdx_entry::run },
    Step { name: "guard", run: crate::bench::guard },
    Step { name: "suites", run: crate::suites::run },
];

/// Runs the steps of these names, or all when there are none; the exit code says whether all passed.
///
/// # Errors
/// An unknown name, or a machine that cannot be set up. Failing steps are counted, not returned.
pub fn run(names: &[String]) -> Result<ExitCode> {
    let steps = selected(names)?;
    setup::ensure_all()?;
    let mut total = Tally::default();
    for (number, step) in (1..).zip(&steps) {
        eprintln!("── [{number}/{}] {}", steps.len(), step.name);
        let started = Instant::now();
        let tally = (step.run)().unwrap_or_else(|error| {
            eprintln!("{}: {error:#}", step.name);
            Tally::of_check(false)
        });
        eprintln!(
            "── {}: {} passed, {} failed ({:.1} s)",
            step.name,
            tally.passed,
            tally.failed,
            started.elapsed().as_secs_f64()
        );
        total.add(tally);
    }
    println!("{} passed, {} failed", total.passed, total.failed);
    Ok(ExitCode::from(u8::from(total.failed > 0)))
}

fn selected(names: &[String]) -> Result<Vec<&'static Step>> {
    if names.is_empty() {
        return Ok(STEPS.iter().collect());
    }
    let step = |name: &String| {
        STEPS.iter().find(|step| step.name == name).with_context(|| {
            let known: Vec<_> = STEPS.iter().map(|step| step.name).collect();
            format!("expected one of the steps {}, found {name}", known.join(", "))
        })
    };
    names.iter().map(step).collect()
}

fn check(program: &str, arguments: &[&str]) -> Result<Tally> {
    let status = Command::new(program).args(arguments).current_dir(places::repository()).status()?;
    Ok(Tally::of_check(status.success()))
}

/// The boot stub's program links without an operating system, so the workspace's lints pass it by.
fn stub_lints() -> Result<Tally> {
    let mut clippy = Command::new("cargo");
    clippy.current_dir(places::repository()).env("RUSTFLAGS", image::STUB_FLAGS);
    clippy.args(["clippy", "--quiet", "--package=boot-stub", "--bin=boot-stub", "--features=program"]);
    clippy
        .args(["--profile=stub", "--target", image::TRIPLE, "--target-dir"])
        .arg(places::target().join("stub"));
    Ok(Tally::of_check(clippy.args(["--", "-D", "warnings"]).status()?.success()))
}

/// Unit tests of the whole workspace: by nextest where it is installed, else by cargo.
fn unit_tests() -> Result<Tally> {
    let nextest = Command::new("cargo").args(["nextest", "--version"]).output()?.status.success();
    let arguments: &[&str] = if nextest {
        &["nextest", "run", "--workspace", "--no-fail-fast"]
    } else {
        &["test", "--workspace", "--no-fail-fast"]
    };
    counted(Command::new("cargo").args(arguments).current_dir(places::repository()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_steps_are_refused() {
        assert_eq!(selected(&[]).unwrap().len(), STEPS.len());
        assert_eq!(selected(&["node".to_owned()]).unwrap()[0].name, "node");
        assert!(selected(&["nodes".to_owned()]).is_err());
    }
}
