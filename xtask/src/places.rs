//! Where things are: the repository, its build output, and the user's cache.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Root of the repository this program was built from.
#[must_use]
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"))
}

/// What `cargo xtask` makes, beside cargo's own output.
#[must_use]
pub fn target() -> PathBuf {
    repository().join("target")
}

/// `$XDG_CACHE_HOME/uvm`, or `~/.cache/uvm`: what is slow to make and depends on its inputs alone.
///
/// # Errors
/// When neither variable is set.
pub fn cache() -> Result<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("uvm"))
        .context("no cache folder: expected XDG_CACHE_HOME or HOME to hold an absolute path")
}
