//! Which cases ended how, kept in a file: a node that dies under the suites takes no results along, and those that
//! are left go on in another node.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// How often a case may begin: a case whose node dies each time is at fault itself.
const BEGINNINGS: usize = 2;

/// Results so far.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    file: Option<PathBuf>,
    ended: BTreeMap<String, bool>,
}

impl Progress {
    /// Reads what `file` has, if it is there; results are added to it. Cases that began too often without an end
    /// have failed.
    ///
    /// # Errors
    /// When the file cannot be read or has other lines than [`Progress`] writes.
    pub fn load(file: &Path) -> Result<Self> {
        let text = match fs::read_to_string(file) {
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            text => text.with_context(|| file.display().to_string())?,
        };
        let mut progress = Self { file: Some(file.to_owned()), ended: BTreeMap::new() };
        let mut begun = BTreeMap::<&str, usize>::new();
        for line in text.lines() {
            match line.split_once(' ') {
                Some(("began", case)) => *begun.entry(case).or_default() += 1,
                Some((how @ ("ok" | "FAIL"), case)) => {
                    progress.ended.insert(case.to_owned(), how == "ok");
                }
                _ => bail!("{}: expected `began`, `ok` or `FAIL` and a case, found {line:?}", file.display()),
            }
        }
        for (case, _) in begun.into_iter().filter(|(_, times)| *times >= BEGINNINGS) {
            if !progress.knows(case) {
                println!("FAIL  {case}: its node died {BEGINNINGS} times");
                progress.end(case, false)?;
            }
        }
        Ok(progress)
    }

    /// Whether the case has ended.
    #[must_use]
    pub fn knows(&self, case: &str) -> bool {
        self.ended.contains_key(case)
    }

    /// Notes that a case begins.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn begin(&self, case: &str) -> Result<()> {
        self.note("began", case)
    }

    /// Notes how a case ended.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn end(&mut self, case: &str, passed: bool) -> Result<()> {
        self.ended.insert(case.to_owned(), passed);
        self.note(if passed { "ok" } else { "FAIL" }, case)
    }

    /// How many cases passed and failed.
    #[must_use]
    pub fn count(&self) -> (usize, usize) {
        let passed = self.ended.values().filter(|passed| **passed).count();
        (passed, self.ended.len() - passed)
    }

    fn note(&self, what: &str, case: &str) -> Result<()> {
        let Some(path) = &self.file else { return Ok(()) };
        let mut file = File::options().append(true).create(true).open(path)?;
        let written = file.write_all(format!("{what} {case}\n").as_bytes()).and_then(|()| file.sync_all());
        written.with_context(|| path.display().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_outlive_the_process() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("progress");
        let mut first = Progress::load(&file)?;
        for (case, passed) in [("a::one", true), ("a::two", false)] {
            first.begin(case)?;
            first.end(case, passed)?;
        }
        first.begin("a::three")?;
        let second = Progress::load(&file)?;
        assert_eq!(second.count(), (1, 1));
        assert!(second.knows("a::two") && !second.knows("a::three"));
        second.begin("a::three")?;
        let third = Progress::load(&file)?;
        assert_eq!(third.count(), (1, 2), "it died twice");
        assert_eq!(Progress::load(&file)?.count(), (1, 2));
        Ok(())
    }

    #[test]
    fn other_lines_are_refused() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("progress");
        fs::write(&file, "ok a::one\nperhaps a::two\n")?;
        assert!(Progress::load(&file).unwrap_err().to_string().contains("perhaps"));
        Ok(())
    }
}
