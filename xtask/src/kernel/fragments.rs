//! Kernel configuration fragments: reading them, and checking that Kconfig obeyed.
//!
//! A fragment is blocks of `CONFIG_NAME=value` lines, each block opened by a comment that says why. `n` is written
//! out. Kconfig drops an option silently when something that it depends on is missing; [`check`] does not.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, bail, ensure};

/// One `*.config` file.
pub struct Fragment {
    /// File name.
    pub name: String,
    /// Its text, as read.
    pub text: String,
    /// Option and value, in file order.
    options: Vec<(String, String)>,
}

impl Fragment {
    /// Parses the text of the fragment `name`.
    ///
    /// # Errors
    /// A line that is neither comment, option nor blank; an option without a comment above its block.
    pub fn parse(name: &str, text: &str) -> Result<Self> {
        let mut options = Vec::new();
        let mut explained = false;
        for (number, line) in (1..).zip(text.lines()) {
            if line.is_empty() {
                explained = false;
            } else if line.starts_with("# ") {
                explained = true;
            } else if let Some((option, value)) = line.split_once('=')
                && option.starts_with("CONFIG_")
                && !value.is_empty()
            {
                ensure!(
                    explained,
                    "{name}:{number}: expected a comment above {option} that says why it is set"
                );
                options.push((option.to_owned(), value.to_owned()));
            } else {
                bail!("{name}:{number}: expected a comment or CONFIG_NAME=value, found {line:?}");
            }
        }
        Ok(Self { name: name.to_owned(), text: text.to_owned(), options })
    }
}

/// Reads every `*.config` of `folder`, in the order of their names.
///
/// # Errors
/// Unreadable files, malformed lines, and options that two fragments set.
pub fn read_all(folder: &Path) -> Result<Vec<Fragment>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut paths: Vec<_> = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "config"));
    paths.sort();
    let fragments: Vec<_> = paths
        .iter()
        .map(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            Fragment::parse(&name, &text)
        })
        .collect::<Result<_>>()?;
    ensure!(!fragments.is_empty(), "expected *.config files in {}, found none", folder.display());
    refuse_duplicates(&fragments)?;
    Ok(fragments)
}

fn refuse_duplicates(fragments: &[Fragment]) -> Result<()> {
    let mut owners = BTreeMap::new();
    for fragment in fragments {
        for (option, _) in &fragment.options {
            if let Some(first) = owners.insert(option, &fragment.name) {
                bail!("{option} is set in {first} and again in {}", fragment.name);
            }
        }
    }
    Ok(())
}

/// All options as one `KCONFIG_ALLCONFIG` file.
#[must_use]
pub fn merged(fragments: &[Fragment]) -> String {
    fragments.iter().map(|fragment| fragment.text.as_str()).collect()
}

/// Compares the final `.config` with what the fragments ask for.
///
/// # Errors
/// Lists every option whose final value is not the one asked for.
pub fn check(fragments: &[Fragment], config: &str) -> Result<()> {
    let found: BTreeMap<_, _> = config.lines().filter_map(|line| line.split_once('=')).collect();
    let mut lost = Vec::new();
    for fragment in fragments {
        for (option, asked) in &fragment.options {
            // Kconfig writes an option that is off as a comment, or not at all.
            let found = found.get(option.as_str()).copied().unwrap_or("n");
            if found != asked {
                lost.push(format!("  {}: {option}: asked {asked}, found {found}", fragment.name));
            }
        }
    }
    ensure!(
        lost.is_empty(),
        "Kconfig did not keep these options (a dependency is missing?):\n{}",
        lost.join("\n")
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# Header.\n\n# Why.\nCONFIG_A=y\nCONFIG_B=n\n# Why too.\nCONFIG_C=64\n";

    fn config_error(config: &str) -> String {
        check(&[Fragment::parse("x.config", TEXT).unwrap()], config).unwrap_err().to_string()
    }

    #[test]
    fn a_config_that_obeys_passes() {
        let fragment = Fragment::parse("x.config", TEXT).unwrap();
        check(&[fragment], "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=64\nCONFIG_D=y\n").unwrap();
    }

    #[test]
    fn every_lost_option_is_listed() {
        let error = config_error("CONFIG_B=y\nCONFIG_C=8\n");
        for line in
            ["CONFIG_A: asked y, found n", "CONFIG_B: asked n, found y", "CONFIG_C: asked 64, found 8"]
        {
            assert!(error.contains(line), "{error}");
        }
    }

    #[test]
    fn an_option_without_a_reason_is_refused() {
        let error = Fragment::parse("x.config", "# Header.\n\nCONFIG_A=y\n").err().unwrap().to_string();
        assert!(error.contains("x.config:3"), "{error}");
    }

    #[test]
    fn stray_lines_and_duplicates_are_refused() {
        assert!(Fragment::parse("x.config", "# Why.\nA=y\n").is_err());
        assert!(Fragment::parse("x.config", "# Why.\nCONFIG_A\n").is_err());
        let twice = [Fragment::parse("a", TEXT).unwrap(), Fragment::parse("b", TEXT).unwrap()];
        assert!(refuse_duplicates(&twice).is_err());
    }

    #[test]
    fn the_projects_own_fragments_parse() {
        read_all(&crate::places::repository().join("guest-kernel-config")).unwrap();
    }
}
