//! The guest kernel: Debian's `linux-source-6.12` with `guest-kernel-config/`, cached by content.
//!
//! The result's folder is named by the SHA-256 of everything that decides its bytes: fragments, patches, source
//! package, compiler and linker, and [`RECIPE`]. It appears by one rename, so whoever sees it sees it whole.

mod fragments;

use std::{
    fs,
    io::{BufRead, BufReader, LineWriter, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::{places, progress::Progress, setup};

const SOURCE: &str = "/usr/src/linux-source-6.12.tar.xz";
const SOURCE_PACKAGE: &str = "linux-source-6.12";

/// Variables that make the build independent of who builds when. Part of the cache key.
const RECIPE: &[&str] = &[
    "ARCH=x86_64",
    "KBUILD_BUILD_TIMESTAMP=1970-01-01 00:00:00 UTC",
    "KBUILD_BUILD_USER=uvm",
    "KBUILD_BUILD_HOST=uvm",
    "KBUILD_BUILD_VERSION=1",
    "LOCALVERSION=-uvm",
    "LC_ALL=C",
];
/// Path that stands for the build folder wherever the compiler would record it.
const MAPPED_PATH: &str = "/usr/src/linux";
/// Largest image in bytes: each is copied and hashed at every launch.
const MAX_IMAGE_BYTES: u64 = 5_000_000;
/// Objects that the present configuration compiles, about: only progress is reckoned with it.
const EXPECTED_STEPS: usize = 1900;

/// A built kernel.
pub struct Kernel {
    /// The `bzImage`.
    pub image: PathBuf,
}

/// What the image was made from, kept beside it as `build.json`.
#[derive(Serialize)]
struct BuildRecord<'a> {
    source_package: &'a str,
    tools: &'a [String],
    recipe: &'a [&'a str],
    image_bytes: u64,
    image_sha256: String,
}

/// Gives the guest kernel, building it when the cache has none for the present inputs.
///
/// # Errors
/// Missing tools; a fragment's option that did not survive into `.config`; a failed build, naming its log.
pub fn build() -> Result<Kernel> {
    setup::ensure_all()?;
    let inputs = places::repository().join("guest-kernel-config");
    let fragments = fragments::read_all(&inputs)?;
    let patches = read_patches(&inputs.join("patches"))?;
    let source_package = format!("{SOURCE_PACKAGE} {}", package_version(SOURCE_PACKAGE)?);
    let tools = tool_versions()?;
    let key = cache_key(&fragments, &patches, &source_package, &tools);

    let cache = places::cache()?.join("kernel");
    let folder = cache.join(&key);
    let kernel = Kernel { image: folder.join("bzImage") };
    if kernel.image.exists() {
        return Ok(kernel);
    }
    fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
    let lock = fs::File::create(cache.join("lock"))?;
    lock.lock().context("cannot lock the kernel cache")?;
    if kernel.image.exists() {
        return Ok(kernel);
    }

    let mut progress = Progress::start("Building the guest kernel");
    let work = tempfile::Builder::new().prefix(".build-").tempdir_in(&cache)?;
    let log = cache.join(format!("{}.log", &key[..16]));
    let tree = unpack(work.path(), &mut progress)?;
    patches.iter().try_for_each(|patch| apply(patch, &tree))?;
    let make = Make { tree: &tree, log: &log };
    let merged = work.path().join("merged.config");
    fs::write(&merged, fragments::merged(&fragments))?;
    make.run(&["allnoconfig", &format!("KCONFIG_ALLCONFIG={}", merged.display())], |_| {})?;
    make.run(&["olddefconfig"], |_| {})?;
    let config = fs::read_to_string(tree.join(".config"))?;
    fragments::check(&fragments, &config)?;
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let mut steps = 0_usize;
    make.run(&[&format!("-j{jobs}"), "bzImage"], |line| {
        steps += 1;
        progress.note(&format!("{}% {}", (steps * 100 / EXPECTED_STEPS).min(99), line.trim()));
    })?;

    let finished = work.path().join("finished");
    fs::create_dir(&finished)?;
    fs::rename(tree.join("arch/x86/boot/bzImage"), finished.join("bzImage"))?;
    fs::rename(tree.join(".config"), finished.join("config"))?;
    let bytes = record(&finished, &source_package, &tools)?;
    fs::rename(&finished, &folder)
        .with_context(|| format!("cannot move the kernel to {}", folder.display()))?;
    fs::remove_file(&log)?;
    progress.finish(&format!("{bytes} bytes, {}", kernel.image.display()));
    Ok(kernel)
}

/// Checks the image's size and writes `build.json`; gives the size in bytes.
fn record(folder: &Path, source_package: &str, tools: &[String]) -> Result<u64> {
    let image = fs::read(folder.join("bzImage"))?;
    let image_bytes = u64::try_from(image.len())?;
    ensure!(
        image_bytes <= MAX_IMAGE_BYTES,
        "expected a kernel image of at most {MAX_IMAGE_BYTES} bytes, found {image_bytes}"
    );
    let record = BuildRecord {
        source_package,
        tools,
        recipe: RECIPE,
        image_bytes,
        image_sha256: hex::encode(Sha256::digest(&image)),
    };
    fs::write(folder.join("build.json"), serde_json::to_vec_pretty(&record)?)?;
    Ok(image_bytes)
}

fn package_version(package: &str) -> Result<String> {
    let output = Command::new("dpkg-query").args(["-W", "-f", "${Version}", package]).output()?;
    ensure!(
        output.status.success(),
        "expected package {package} to be installed, dpkg-query does not know it"
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// First line of `--version` of each program whose version shows in the image.
fn tool_versions() -> Result<Vec<String>> {
    ["gcc", "as", "ld", "lz4"].iter().map(|tool| first_line_of_version(tool)).collect()
}

fn first_line_of_version(tool: &str) -> Result<String> {
    let output = Command::new(tool)
        .arg("--version")
        .output()
        .with_context(|| format!("cannot run {tool} --version"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(format!("{tool}: {}", text.lines().next().unwrap_or_default()))
}

/// A change to the source: its file name and text.
type Patch = (String, String);

/// Patches in the order of their names.
fn read_patches(folder: &Path) -> Result<Vec<Patch>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut patches = Vec::new();
    for entry in entries {
        let entry = entry?;
        patches.push((entry.file_name().to_string_lossy().into_owned(), fs::read_to_string(entry.path())?));
    }
    patches.sort();
    Ok(patches)
}

/// Applies a patch exactly: one that only nearly fits was written for another source.
fn apply((name, text): &Patch, tree: &Path) -> Result<()> {
    let mut child = Command::new("patch")
        .args(["--strip=1", "--fuzz=0", "--batch", "--forward"])
        .current_dir(tree)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start patch")?;
    child.stdin.take().context("patch has no standard input")?.write_all(text.as_bytes())?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "patch {name} does not fit {SOURCE}: {}", said.trim());
    Ok(())
}

fn cache_key(
    fragments: &[fragments::Fragment],
    patches: &[Patch],
    source_package: &str,
    tools: &[String],
) -> String {
    let mut hash = Sha256::new();
    // Each part is preceded by its length, so that no two lists of parts run together alike.
    let mut add = |part: &str| {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    };
    add(source_package);
    tools.iter().for_each(|tool| add(tool));
    RECIPE.iter().for_each(|variable| add(variable));
    add(MAPPED_PATH);
    let texts = fragments.iter().map(|fragment| (&fragment.name, &fragment.text));
    for (name, text) in texts.chain(patches.iter().map(|(name, text)| (name, text))) {
        add(name);
        add(text);
    }
    hex::encode(hash.finalize())
}

fn unpack(folder: &Path, progress: &mut Progress) -> Result<PathBuf> {
    progress.note("unpacking the source");
    let status = Command::new("tar").args(["-xf", SOURCE, "-C"]).arg(folder).status()?;
    ensure!(status.success(), "cannot unpack {SOURCE}: tar: {status}");
    let tree = folder.join(SOURCE_PACKAGE);
    ensure!(tree.join("Makefile").exists(), "expected {SOURCE} to hold {SOURCE_PACKAGE}/Makefile");
    Ok(tree)
}

/// One source tree and the log of what is made in it.
struct Make<'a> {
    tree: &'a Path,
    log: &'a Path,
}

impl Make<'_> {
    fn run(&self, arguments: &[&str], mut on_line: impl FnMut(&str)) -> Result<()> {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log)?;
        let map = format!("-ffile-prefix-map={}={MAPPED_PATH}", self.tree.display());
        let mut child = Command::new("make")
            .current_dir(self.tree)
            .args(arguments)
            .args(RECIPE)
            .args([format!("KCFLAGS={map}"), format!("KAFLAGS={map}")])
            // The caller may itself run under make or cargo: their settings must not reach this build.
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log.try_clone()?)
            .spawn()
            .context("cannot start make")?;
        let lines = BufReader::new(child.stdout.take().context("make has no standard output")?).lines();
        let mut copy = LineWriter::new(log);
        for line in lines {
            let line = line?;
            writeln!(copy, "{line}")?;
            on_line(&line);
        }
        let status = child.wait()?;
        if !status.success() {
            bail!("make {}: {status}; the log is {}", arguments.join(" "), self.log.display());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fragment(name: &str, text: &str) -> fragments::Fragment {
        fragments::Fragment::parse(name, text).unwrap()
    }

    #[test]
    fn every_input_changes_the_key() {
        let base = [fragment("a.config", "# Why.\nCONFIG_A=y\n")];
        let patches = [("1.patch".to_owned(), "text".to_owned())];
        let tools = ["gcc 12".to_owned()];
        let key = cache_key(&base, &patches, "source 1", &tools);
        assert_eq!(key, cache_key(&base, &patches, "source 1", &tools));
        assert_ne!(key, cache_key(&base, &[], "source 1", &tools));
        assert_ne!(key, cache_key(&base, &patches, "source 2", &tools));
        assert_ne!(key, cache_key(&base, &patches, "source 1", &["gcc 13".to_owned()]));
        for other in [("b.config", "# Why.\nCONFIG_A=y\n"), ("a.config", "# Why.\nCONFIG_A=n\n")] {
            assert_ne!(key, cache_key(&[fragment(other.0, other.1)], &patches, "source 1", &tools));
        }
    }
}
