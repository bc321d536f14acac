//! The node's own kernel: Debian's cloud kernel, fetched and unpacked into the cache, never installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{places, progress::Progress, setup};

/// Depends on the newest kernel of the line that the guest kernel is built from.
const META_PACKAGE: &str = "linux-image-6.12-cloud-amd64";
/// Modules that the first process loads on the way up: unpacked once here, not at each boot.
const BOOT_MODULES: &[&str] =
    &["overlay", "irqbypass", "kvm", "kvm-amd", "kvm-intel", "tun", "loop", "dm-mod", "erofs"];

/// An unpacked kernel.
pub struct NodeKernel {
    /// The `vmlinuz`.
    pub image: PathBuf,
    /// Folder that holds `lib/modules`.
    pub root: PathBuf,
}

/// Gives the node's kernel, downloading it when the cache has none.
///
/// # Errors
/// No network, or no such package.
pub fn fetch() -> Result<NodeKernel> {
    let cache = places::cache()?.join("node-kernel");
    if let Some(kernel) = cached(&cache)? {
        return Ok(kernel);
    }
    fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
    let mut progress = Progress::start("Fetching the node's kernel");
    setup::ensure_lists()?;
    let package = newest_package()?;
    let work = tempfile::Builder::new().prefix(".fetch-").tempdir_in(&cache)?;
    progress.note(&package);
    run(Command::new("apt-get").args(["-q", "download", &package]).current_dir(work.path()))?;
    let archive = find(work.path(), |name| name.ends_with(".deb"))?;
    let root = work.path().join("root");
    run(Command::new("dpkg").arg("-x").args([&archive, &root]))?;
    prepare_modules(&root)?;
    fs::rename(&root, cache.join(&package)).context("cannot move the node's kernel into the cache")?;
    progress.finish(&package);
    cached(&cache)?.context("expected a kernel in the package just unpacked")
}

/// The last of the kernels in the cache: each folder is complete, for it appears by one rename.
fn cached(cache: &Path) -> Result<Option<NodeKernel>> {
    let Ok(entries) = fs::read_dir(cache) else { return Ok(None) };
    let roots = entries.flatten().map(|entry| entry.path());
    let newest = roots.filter(|path| path.join("boot").is_dir() && path.join("lib/modules").is_dir()).max();
    newest
        .map(|root| {
            let image = find(&root.join("boot"), |name| name.starts_with("vmlinuz-"))?;
            Ok(NodeKernel { image, root })
        })
        .transpose()
}

fn newest_package() -> Result<String> {
    let output = Command::new("apt-cache")
        .args(["depends", "--important", META_PACKAGE])
        .env("LC_ALL", "C")
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let package = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    package
        .map(str::to_owned)
        .find(|name| name.starts_with("linux-image-"))
        .with_context(|| format!("expected {META_PACKAGE} in the package lists; run apt-get update"))
}

/// Decompresses the modules of the boot path and writes the index that modprobe needs.
fn prepare_modules(root: &Path) -> Result<()> {
    let modules = root.join("lib/modules");
    let version = find(&modules, |_| true)?;
    for name in BOOT_MODULES {
        let file = Command::new("find").arg(&version).args(["-name", &format!("{name}.ko.xz")]).output()?;
        let file = String::from_utf8(file.stdout)?;
        ensure!(!file.trim().is_empty(), "expected module {name} in {}", version.display());
        run(Command::new("xz").args(["-d", file.trim()]))?;
    }
    let release = version.file_name().context("modules have no version")?;
    run(Command::new("depmod").arg("-b").arg(root).arg(release))
}

fn find(folder: &Path, accept: impl Fn(&str) -> bool) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut entries = entries.flatten().filter(|entry| entry.file_name().to_str().is_some_and(&accept));
    let entry = entries.next().with_context(|| format!("expected file not found in {}", folder.display()))?;
    Ok(entry.path())
}

fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot start {program}"))?;
    ensure!(
        output.status.success(),
        "{program}: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
