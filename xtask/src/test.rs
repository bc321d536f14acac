//! `cargo xtask test`: a list of steps, run in order, each timed; the last line counts tests.
//!
//! A step that only checks (formatting, lints) counts as one test. A step that runs tests reports how many passed
//! and failed; one that fails without saying counts as one failure. All steps run even when one fails.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use anyhow::{Context, Result};

use crate::{places, setup};

/// Tests that passed and failed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Tests that passed.
    pub passed: usize,
    /// Tests that failed.
    pub failed: usize,
}

impl Tally {
    /// One check with one outcome.
    #[must_use]
    pub fn of_check(success: bool) -> Self {
        Self { passed: usize::from(success), failed: usize::from(!success) }
    }

    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

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
    Step { name: "unit-tests", run: unit_tests },
    Step { name: "node", run: crate::node::checks::run },
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

/// Runs a test program, shows what it prints, and adds up the summaries that it prints.
///
/// # Errors
/// When the program cannot be run.
pub fn counted(command: &mut Command) -> Result<Tally> {
    let (reader, writer) = std::io::pipe()?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .spawn()
        .with_context(|| format!("cannot start {}", command.get_program().to_string_lossy()))?;
    // The command keeps the pipe's write ends, which would hide the end of output.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut tally = Tally::default();
    for line in BufReader::new(reader).split(b'\n') {
        let line = line?;
        std::io::stderr().write_all(&line)?;
        std::io::stderr().write_all(b"\n")?;
        tally.add(summary(&String::from_utf8_lossy(&line)));
    }
    if !child.wait()?.success() && tally.failed == 0 {
        tally.failed = 1;
    }
    Ok(tally)
}

/// Counts in a summary line of libtest (`test result: …`), nextest (`Summary […] …`) or the node's suites
/// (`N passed, N failed`); zero in any other line.
fn summary(line: &str) -> Tally {
    let line = line.trim();
    let of_suites = line.split_once(" passed, ").is_some_and(|(passed, rest)| {
        passed.parse::<usize>().is_ok()
            && rest.strip_suffix(" failed").is_some_and(|n| n.parse::<usize>().is_ok())
    });
    if !line.starts_with("test result:") && !line.starts_with("Summary [") && !of_suites {
        return Tally::default();
    }
    let words: Vec<_> = line.split([' ', ',', ';', ':']).filter(|word| !word.is_empty()).collect();
    let before = |name: &str| {
        let position = words.iter().position(|word| *word == name)?;
        words.get(position.checked_sub(1)?)?.parse::<usize>().ok()
    };
    Tally {
        passed: before("passed").unwrap_or(0),
        failed: before("failed").unwrap_or(0) + before("timed").unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_of_both_runners_are_counted() {
        let nextest = "     Summary [   0.012s] 7 tests run: 5 passed, 2 failed, 1 skipped";
        assert_eq!(summary(nextest), Tally { passed: 5, failed: 2 });
        let libtest = "test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(summary(libtest), Tally { passed: 3, failed: 1 });
        assert_eq!(summary("26 passed, 1 failed"), Tally { passed: 26, failed: 1 });
        assert_eq!(summary("ok    26 passed, 1 failed"), Tally::default());
        assert_eq!(summary("   Summary [1s] 1 test run: 1 passed (1 slow), 0 skipped").passed, 1);
    }

    #[test]
    fn unknown_steps_are_refused() {
        assert_eq!(selected(&[]).unwrap().len(), STEPS.len());
        assert_eq!(selected(&["node".to_owned()]).unwrap()[0].name, "node");
        assert!(selected(&["nodes".to_owned()]).is_err());
    }

    #[test]
    fn other_lines_count_nothing() {
        assert_eq!(summary("3 passed, some failed"), Tally::default());
        assert_eq!(summary("test a::b ... ok"), Tally::default());
    }

    #[test]
    fn a_program_that_fails_without_a_summary_is_one_failure() {
        assert_eq!(counted(&mut Command::new("false")).unwrap(), Tally { passed: 0, failed: 1 });
        assert_eq!(counted(&mut Command::new("true")).unwrap(), Tally::default());
    }
}
