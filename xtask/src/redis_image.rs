//! Images for the demo and the tests, made from Debian's packages: redis with its libraries, and busybox.
//!
//! An image is an OCI archive that `ctr image import` takes. Its layers hold the files of packages as they are in
//! the distribution's archive; no maintainer script runs, nothing is installed on this machine, and root is not
//! needed. The archive is a function of the packages and of the recipe alone, and is built again only when
//! one of them changes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use indicatif::ProgressBar;
use serde::Serialize;

use archive::Config;
use files::Files;

mod archive;
mod files;
mod packages;

/// Raised when the recipes' or the archive's form changes, so that cached archives are built again.
const RECIPE_VERSION: u32 = 1;

#[derive(Serialize)]
struct Recipe {
    /// File name of the archive.
    file: &'static str,
    /// Name under which containerd knows the image.
    reference: &'static str,
    /// Packages of each layer, bottom layer first.
    layers: &'static [&'static [&'static str]],
    command: &'static [&'static str],
}

const REDIS: Recipe = Recipe {
    file: "redis.oci.tar",
    reference: "docker.io/library/redis:uvm",
    layers: &[
        &["busybox-static", "libc6"],
        &[
            "libatomic1",
            "libcap2",
            "libgcc-s1",
            "libgcrypt20",
            "libgpg-error0",
            "libjemalloc2",
            "liblz4-1",
            "liblzf1",
            "liblzma5",
            "libssl3",
            "libstdc++6",
            "libsystemd0",
            "libzstd1",
        ],
        &["redis-server", "redis-tools"],
    ],
    command: &["redis-server", "--save", "", "--bind", "127.0.0.1", "--protected-mode", "no"],
};

const BUSYBOX: Recipe = Recipe {
    file: "busybox.oci.tar",
    reference: "docker.io/library/busybox:uvm",
    layers: &[&["busybox-static"]],
    command: &["sh"],
};

/// An OCI archive and the name that its image gets on import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageArchive {
    /// The archive.
    pub path: PathBuf,
    /// Image reference.
    pub reference: &'static str,
}

/// Builds `redis.oci.tar` in `directory`, or finds it there: redis-server, redis-cli and a busybox shell, in three
/// layers.
///
/// # Errors
/// When a package cannot be had or is not what the recipe takes it for, or the archive cannot be written.
pub fn redis(directory: &Path, progress: &ProgressBar) -> Result<ImageArchive> {
    build(&REDIS, directory, progress).context("cannot make the redis image")
}

/// Builds `busybox.oci.tar` in `directory`, or finds it there: a static busybox and its commands, in one layer.
///
/// # Errors
/// As [`redis`].
pub fn busybox(directory: &Path, progress: &ProgressBar) -> Result<ImageArchive> {
    build(&BUSYBOX, directory, progress).context("cannot make the busybox image")
}

fn build(recipe: &Recipe, directory: &Path, progress: &ProgressBar) -> Result<ImageArchive> {
    let image = ImageArchive { path: directory.join(recipe.file), reference: recipe.reference };
    let cache = directory.join("debs");
    fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
    progress.set_message(format!("{}: looking up packages", recipe.file));
    let names: Vec<&str> = recipe.layers.concat();
    let packages = packages::resolve(&names)?;
    let key = serde_json::to_string(&(RECIPE_VERSION, recipe, &packages))?;
    let key_path = directory.join(format!("{}.key", recipe.file));
    if image.path.exists() && fs::read_to_string(&key_path).is_ok_and(|found| found == key) {
        return Ok(image);
    }
    progress.set_message(format!("{}: downloading packages", recipe.file));
    packages::download(&packages, &cache)?;
    let mut layers = Vec::new();
    for names in recipe.layers {
        let mut files = Files::default();
        for package in packages.iter().filter(|package| names.contains(&package.name.as_str())) {
            progress.set_message(format!("{}: unpacking {}", recipe.file, package.name));
            packages::unpack(package, &cache, &mut files)?;
        }
        layers.push(files);
    }
    if let Some(base) = layers.first_mut() {
        base.add_base()?;
    }
    files::check_libraries(&layers)?;
    progress.set_message(format!("{}: writing", recipe.file));
    let config = Config { reference: recipe.reference, command: recipe.command };
    // The key goes first and comes last: an archive without its key is never taken for a finished one.
    let _ = fs::remove_file(&key_path);
    archive::write(&layers, &config, &image.path)?;
    fs::write(&key_path, key).with_context(|| format!("cannot write {}", key_path.display()))?;
    Ok(image)
}

#[cfg(test)]
mod tests;
