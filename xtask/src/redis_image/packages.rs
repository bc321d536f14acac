//! Debian packages: which ones the machine's package lists offer, their download, their files.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::files::Files;

/// A package as the package lists have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Package {
    pub(super) name: String,
    /// Name of its file.
    file: String,
    /// SHA-256 of its file, in hexadecimal.
    sha256: String,
}

/// Looks up the candidates of `names` in the package lists, in the order of their file names.
pub(super) fn resolve(names: &[&str]) -> Result<Vec<Package>> {
    crate::setup::ensure_lists()?;
    let output = Command::new("apt-get")
        .args(["--print-uris", "download"])
        .args(names)
        .output()
        .context("cannot run apt-get: the images are made from Debian's packages")?;
    ensure!(
        output.status.success(),
        "apt-get does not know a package (is `apt-get update` due?): {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let listing = String::from_utf8(output.stdout).context("apt-get download --print-uris")?;
    let mut packages = listing.lines().map(parse_uri_line).collect::<Result<Vec<_>>>()?;
    packages.sort_by(|one, other| one.file.cmp(&other.file));
    for name in names {
        let found = packages.iter().filter(|package| package.name == *name).count();
        ensure!(found == 1, "package {name}: expected apt-get to name one file, found {found}");
    }
    Ok(packages)
}

/// Reads a line of the form `'address' file size SHA256:digest`.
pub(super) fn parse_uri_line(line: &str) -> Result<Package> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [_, file, _, digest] = fields[..] else {
        bail!("apt-get download --print-uris: expected four fields, found {line:?}");
    };
    let is_digest = |hex: &&str| hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    let Some(sha256) = digest.strip_prefix("SHA256:").filter(is_digest) else {
        bail!("apt-get download --print-uris: expected SHA256 and 64 digits, found {digest:?}");
    };
    let Some((name, _)) = file.split_once('_').filter(|_| !file.contains('/')) else {
        bail!("apt-get download --print-uris: expected NAME_VERSION_ARCHITECTURE.deb, found {file:?}");
    };
    Ok(Package { name: name.to_owned(), file: file.to_owned(), sha256: sha256.to_ascii_lowercase() })
}

/// Puts the packages' files into `cache`, downloading those that are not there.
pub(super) fn download(packages: &[Package], cache: &Path) -> Result<()> {
    let missing: Vec<&Package> = packages.iter().filter(|package| !package.is_in(cache)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let status = Command::new("apt-get")
        .args(["--quiet", "--quiet", "--option", "APT::Sandbox::User=root", "download"])
        .args(missing.iter().map(|package| &package.name))
        .current_dir(cache)
        .stdout(Stdio::null())
        .status()
        .context("cannot run apt-get")?;
    ensure!(status.success(), "apt-get download failed: {status}");
    for package in missing {
        let file = cache.join(&package.file);
        ensure!(package.is_in(cache), "{}: expected SHA-256 {}", file.display(), package.sha256);
    }
    Ok(())
}

impl Package {
    fn is_in(&self, cache: &Path) -> bool {
        let bytes = fs::read(cache.join(&self.file));
        bytes.is_ok_and(|bytes| hex::encode(Sha256::digest(&bytes)) == self.sha256)
    }
}

/// Adds the package's files to `files`, without running anything of it.
pub(super) fn unpack(package: &Package, cache: &Path, files: &mut Files) -> Result<()> {
    let path = cache.join(&package.file);
    let mut child = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(&path)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run dpkg-deb")?;
    let mut tar = Vec::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_end(&mut tar).context("cannot read from dpkg-deb")?;
    }
    let status = child.wait().context("cannot wait for dpkg-deb")?;
    ensure!(status.success(), "{}: dpkg-deb failed: {status}", path.display());
    files.add_tar(&tar).with_context(|| format!("package {}", package.name))
}
