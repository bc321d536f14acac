//! Counts of tests: what passed and failed, added up from the summaries that test programs print.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
};

use anyhow::{Context, Result};

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

    /// Adds what another run counted.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
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
