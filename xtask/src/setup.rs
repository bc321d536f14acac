//! Debian packages that the project needs: each is known by a file that it brings, and installed when missing.

use std::{
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::progress::Progress;

/// A package and the file by which its presence is known.
struct Package {
    name: &'static str,
    file: &'static str,
}

const fn package(name: &'static str, file: &'static str) -> Package {
    Package { name, file }
}

/// Everything needed to build, run and test on Debian 12.
const PACKAGES: &[Package] = &[
    package("gcc", "/usr/bin/gcc"),
    // The fuzzer's run-time.
    package("g++", "/usr/bin/g++"),
    package("make", "/usr/bin/make"),
    package("libc6-dev", "/usr/include/stdio.h"),
    package("libseccomp-dev", "/usr/include/seccomp.h"),
    package("protobuf-compiler", "/usr/bin/protoc"),
    // Guest kernel.
    package("linux-source-6.12", "/usr/src/linux-source-6.12.tar.xz"),
    package("bc", "/usr/bin/bc"),
    package("bison", "/usr/bin/bison"),
    package("cpio", "/usr/bin/cpio"),
    package("flex", "/usr/bin/flex"),
    package("libelf-dev", "/usr/include/libelf.h"),
    package("libssl-dev", "/usr/include/openssl/ssl.h"),
    package("lz4", "/usr/bin/lz4"),
    package("patch", "/usr/bin/patch"),
    package("perl", "/usr/bin/perl"),
    package("xz-utils", "/usr/bin/xz"),
    // Nested node. QEMU brings virtiofsd.
    package("qemu-system-x86", "/usr/bin/qemu-system-x86_64"),
    package("qemu-system-common", "/usr/lib/qemu/virtiofsd"),
    package("kmod", "/sbin/modprobe"),
    package("containerd", "/usr/bin/containerd"),
    package("runc", "/usr/sbin/runc"),
    package("containernetworking-plugins", "/usr/lib/cni/ptp"),
    package("iproute2", "/sbin/ip"),
    package("docker-registry", "/usr/bin/docker-registry"),
    // Other busybox packages bring the same program, but not a static one.
    package("busybox-static", "/var/lib/dpkg/info/busybox-static.list"),
    package("procps", "/usr/bin/pgrep"),
    // What unit tests compare with.
    package("cryptsetup-bin", "/sbin/veritysetup"),
    package("erofs-utils", "/usr/bin/fsck.erofs"),
    package("e2fsprogs", "/sbin/e2fsck"),
];

/// Installs whatever of [`PACKAGES`] is missing. Silent and quick when nothing is.
///
/// # Errors
/// Names the packages when they cannot be installed: no root, no apt, no network.
pub fn ensure_all() -> Result<()> {
    let missing: Vec<_> = missing(PACKAGES, |file| Path::new(file).exists()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!("expected Debian 12 with these packages, found no apt-get to install them: {names}");
    }
    if !rustix::process::geteuid().is_root() {
        bail!("these packages are missing and only root may install them: sudo apt-get install {names}");
    }
    ensure_lists()?;
    refuse_removals(&missing)?;
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(&missing);
    let install = || apt_get(&format!("Installing {names}"), &arguments);
    // Lists that are weeks old name packages that are no longer there.
    install()
        .or_else(|_| update_lists().and_then(|()| install()))
        .with_context(|| format!("these packages are still missing: {names}"))
}

/// Installs cargo's fuzzing command if it is missing.
///
/// # Errors
/// When it cannot be built.
pub fn ensure_cargo_fuzz() -> Result<()> {
    let found = Command::new("cargo").args(["fuzz", "--version"]).output()?.status.success();
    if found {
        return Ok(());
    }
    let progress = Progress::start("Installing cargo-fuzz");
    let install = ["install", "--quiet", "--locked", "cargo-fuzz"];
    let output = Command::new("cargo").args(install).output().context("cannot start cargo")?;
    if !output.status.success() {
        bail!("cargo install cargo-fuzz: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    progress.finish("done");
    Ok(())
}

/// Reads the package lists if there are none.
///
/// # Errors
/// When they cannot be had.
pub fn ensure_lists() -> Result<()> {
    if lists_are_empty() { update_lists() } else { Ok(()) }
}

fn update_lists() -> Result<()> {
    apt_get("Reading package lists", &["update"])
}

/// Installing must not take away what the user has, such as a containerd from elsewhere.
fn refuse_removals(missing: &[&str]) -> Result<()> {
    let simulated = Command::new("apt-get")
        .args(["-s", "install", "--no-install-recommends"])
        .args(missing)
        .env("LC_ALL", "C")
        .output()
        .context("cannot start apt-get")?;
    let said = String::from_utf8_lossy(&simulated.stdout);
    let removed: Vec<_> = removals(&said).collect();
    if !removed.is_empty() {
        bail!("installing {} would remove {}: do it by hand", missing.join(" "), removed.join(" "));
    }
    Ok(())
}

/// The packages that a simulated apt-get would remove, but for the one that its static twin replaces.
fn removals(simulation: &str) -> impl Iterator<Item = &str> {
    let lines = simulation.lines().filter_map(|line| line.strip_prefix("Remv ")?.split(' ').next());
    lines.filter(|name| *name != "busybox")
}

fn missing(
    packages: &'static [Package],
    exists: impl Fn(&str) -> bool,
) -> impl Iterator<Item = &'static str> {
    packages.iter().filter(move |package| !exists(package.file)).map(|package| package.name)
}

fn lists_are_empty() -> bool {
    let Ok(lists) = std::fs::read_dir("/var/lib/apt/lists") else { return true };
    !lists.flatten().any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
}

/// Runs apt-get without questions, showing its last line as progress and its errors on failure.
pub(crate) fn apt_get(title: &str, arguments: &[&str]) -> Result<()> {
    let mut progress = Progress::start(title);
    let mut child = Command::new("apt-get")
        .args(["-q", "-o", "Dpkg::Use-Pty=0"])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start apt-get")?;
    let stderr = child.stderr.take().context("apt-get has no standard error")?;
    let errors = std::thread::spawn(move || {
        let mut text = String::new();
        BufReader::new(stderr).read_to_string(&mut text).map(|_| text)
    });
    for line in BufReader::new(child.stdout.take().context("apt-get has no standard output")?).lines() {
        progress.note(line?.trim());
    }
    let status = child.wait()?;
    let errors = errors.join().ok().and_then(Result::ok).unwrap_or_default();
    if !status.success() {
        bail!("apt-get {}: {status}: {}", arguments.join(" "), errors.trim());
    }
    progress.finish("done");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removals_are_seen() {
        let simulation = "Inst runc (1.1)\nRemv containerd.io [1.7]\nRemv busybox [1.35]\nConf runc (1.1)\n";
        assert_eq!(removals(simulation).collect::<Vec<_>>(), ["containerd.io"]);
    }

    #[test]
    fn only_packages_without_their_file_are_missing() {
        let found: Vec<_> =
            missing(PACKAGES, |file| file != "/usr/bin/bc" && file != "/usr/bin/flex").collect();
        assert_eq!(found, ["bc", "flex"]);
        assert_eq!(missing(PACKAGES, |_| true).count(), 0);
    }
}
