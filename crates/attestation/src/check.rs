//! What a verification says: named checks, each with what was expected and what was found.

use std::fmt;

use serde::Serialize;

/// A demand on evidence. There is no default: a property that nobody cares for is waived by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect<T> {
    /// The property must be so.
    Is(T),
    /// The property may be anything; the verdict says that it was waived.
    Waived,
}

/// How a check ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum Outcome {
    /// The evidence has what was expected.
    Passed {
        /// What was found.
        found: String,
    },
    /// It has not.
    Failed {
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
    },
    /// The caller made no demand.
    Waived {
        /// What was found.
        found: String,
    },
}

/// A named check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Name, stable across versions.
    pub name: &'static str,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: Outcome,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name;
        match &self.outcome {
            Outcome::Passed { found } => write!(f, "ok      {name}: {found}"),
            Outcome::Failed { expected, found } => {
                write!(f, "FAILED  {name}: expected {expected}, found {found}")
            }
            Outcome::Waived { found } => write!(f, "waived  {name}: {found}"),
        }
    }
}

/// All checks of a verification, in the order in which they were made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// The checks.
    pub checks: Vec<Check>,
}

impl Verdict {
    /// Whether there were checks and none failed.
    #[must_use]
    pub fn accepted(&self) -> bool {
        !self.checks.is_empty() && self.failures().next().is_none()
    }

    /// The checks that failed.
    pub fn failures(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| matches!(check.outcome, Outcome::Failed { .. }))
    }

    /// Whether a check of this name failed.
    #[must_use]
    pub fn failed(&self, name: &str) -> bool {
        self.failures().any(|check| check.name == name)
    }

    pub(crate) fn pass(&mut self, name: &'static str, found: impl Into<String>) {
        self.checks.push(Check { name, outcome: Outcome::Passed { found: found.into() } });
    }

    pub(crate) fn fail(&mut self, name: &'static str, expected: impl Into<String>, found: impl Into<String>) {
        self.checks.push(Check {
            name,
            outcome: Outcome::Failed { expected: expected.into(), found: found.into() },
        });
    }

    pub(crate) fn waive(&mut self, name: &'static str, found: impl Into<String>) {
        self.checks.push(Check { name, outcome: Outcome::Waived { found: found.into() } });
    }

    /// One check: passes when `holds`.
    pub(crate) fn check(
        &mut self,
        name: &'static str,
        holds: bool,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) {
        if holds { self.pass(name, found) } else { self.fail(name, expected, found) }
    }

    /// One check from a step that gives a description, or an error.
    pub(crate) fn result<T, E: fmt::Display>(
        &mut self,
        name: &'static str,
        expected: &str,
        result: Result<T, E>,
        describe: impl FnOnce(&T) -> String,
    ) -> Option<T> {
        match result {
            Ok(value) => {
                self.pass(name, describe(&value));
                Some(value)
            }
            Err(error) => {
                self.fail(name, expected, error.to_string());
                None
            }
        }
    }

    /// One check against a demand: `holds` compares, `show` words what was demanded.
    pub(crate) fn expect<T>(
        &mut self,
        name: &'static str,
        demand: &Expect<T>,
        found: impl Into<String>,
        holds: impl FnOnce(&T) -> bool,
        show: impl FnOnce(&T) -> String,
    ) {
        match demand {
            Expect::Waived => self.waive(name, found),
            Expect::Is(demand) => self.check(name, holds(demand), show(demand), found),
        }
    }

    /// One check of bytes that must equal what is demanded.
    pub(crate) fn expect_bytes<const N: usize>(
        &mut self,
        name: &'static str,
        demand: &Expect<[u8; N]>,
        found: &[u8; N],
    ) {
        self.expect(name, demand, hex::encode(found), |wanted| wanted == found, |wanted| hex::encode(wanted));
    }

    /// One check of bytes that must be among those demanded.
    pub(crate) fn expect_one_of<const N: usize>(
        &mut self,
        name: &'static str,
        demand: &Expect<Vec<[u8; N]>>,
        found: &[u8; N],
    ) {
        let show = |wanted: &Vec<[u8; N]>| match wanted.as_slice() {
            [] => "one of no values".to_owned(),
            [one] => hex::encode(one),
            [first, rest @ ..] => format!("{} or one of {} more", hex::encode(first), rest.len()),
        };
        self.expect(name, demand, hex::encode(found), |wanted| wanted.contains(found), show);
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for check in &self.checks {
            writeln!(f, "{check}")?;
        }
        f.write_str(if self.accepted() { "accepted" } else { "REFUSED" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_checked_is_not_accepted() {
        assert!(!Verdict::default().accepted());
    }

    #[test]
    fn one_failure_refuses() {
        let mut verdict = Verdict::default();
        verdict.expect("a", &Expect::Is(1), "1", |wanted| *wanted == 1, i32::to_string);
        verdict.expect("b", &Expect::<i32>::Waived, "7", |_| false, i32::to_string);
        assert!(verdict.accepted());
        verdict.expect_one_of("c", &Expect::Is(vec![[0; 2]; 3]), &[1; 2]);
        assert!(!verdict.accepted() && verdict.failed("c") && !verdict.failed("b"));
        let text = verdict.to_string();
        assert!(text.contains("FAILED  c: expected 0000 or one of 2 more, found 0101"), "{text}");
        assert!(text.ends_with("REFUSED"));
    }

    #[test]
    fn programs_can_read_it() {
        let mut verdict = Verdict::default();
        verdict.fail("x", "1", "2");
        let json = serde_json::to_string(&verdict).unwrap();
        assert_eq!(json, r#"{"checks":[{"name":"x","outcome":"failed","expected":"1","found":"2"}]}"#);
    }
}
