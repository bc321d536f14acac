//! What has been done, and how it is undone.
//!
//! Steps are undone in reverse. One that cannot be undone stays, and so do those before it: undoing again goes
//! on from there.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{AgentError, Context, Result};
use crate::layers::dm::DeviceMapper;
use crate::layers::mount;
use crate::tree;

/// Something done, named by what undoes it.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Directory(PathBuf),
    Mount(PathBuf),
    Device(String),
    /// A directory with whatever a container has put into it.
    Tree(PathBuf),
}

/// A record of steps, first one first.
#[derive(Debug, Default)]
pub struct Steps(Vec<Step>);

impl Steps {
    /// Makes a directory and records it with those of its parents that are new.
    ///
    /// # Errors
    /// If one cannot be made; those before it are recorded.
    pub fn directory(&mut self, path: &Path) -> Result<()> {
        let missing: Vec<&Path> = path.ancestors().take_while(|parent| !parent.exists()).collect();
        for directory in missing.into_iter().rev() {
            fs::create_dir(directory).doing(|| format!("make {}", directory.display()))?;
            self.0.push(Step::Directory(directory.to_owned()));
        }
        Ok(())
    }

    /// Makes a directory that will be removed with all that it holds then. Its parents stay.
    ///
    /// # Errors
    /// If it exists or cannot be made.
    pub fn tree(&mut self, path: &Path) -> Result<()> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).doing(|| format!("make {}", parent.display()))?;
        }
        fs::create_dir(path).doing(|| format!("make {}", path.display()))?;
        self.0.push(Step::Tree(path.to_owned()));
        Ok(())
    }

    /// Records a mount.
    pub fn mounted(&mut self, target: &Path) {
        self.0.push(Step::Mount(target.to_owned()));
    }

    /// Records a device-mapper device.
    pub fn device(&mut self, name: &str) {
        self.0.push(Step::Device(name.to_owned()));
    }

    /// Undoes everything, last step first. It may be called again after a failure.
    ///
    /// # Errors
    /// If a step cannot be undone; it and those before it remain.
    pub async fn undo(&mut self) -> Result<()> {
        while let Some(step) = self.0.last() {
            match step {
                Step::Mount(target) => mount::unmount(target)?,
                Step::Device(name) => DeviceMapper::open()?.remove(name)?,
                Step::Directory(path) => remove_if_empty(path)?,
                Step::Tree(path) => remove_tree(path.clone()).await?,
            }
            self.0.pop();
        }
        Ok(())
    }
}

/// Directories above one's own are shared: the last one to leave removes them.
fn remove_if_empty(path: &Path) -> Result<()> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result.doing(|| format!("remove {}", path.display())),
    }
}

/// A container decides how large its tree is: the other requests go on meanwhile.
async fn remove_tree(path: PathBuf) -> Result<()> {
    let shown = path.display().to_string();
    let removed = tokio::task::spawn_blocking(move || tree::remove(&path)).await;
    removed
        .map_err(|error| AgentError::Runtime(format!("remove {shown}: {error}")))?
        .doing(|| format!("remove {shown}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn directories_are_undone_in_reverse_unless_in_use() {
        let root = tempfile::tempdir().unwrap();
        let mut steps = Steps::default();
        steps.directory(&root.path().join("a/b")).unwrap();
        assert_eq!(steps.0.len(), 2);
        fs::write(root.path().join("a/other"), "").unwrap();
        steps.undo().await.unwrap();
        assert!(root.path().join("a/other").exists() && !root.path().join("a/b").exists());
    }

    #[tokio::test]
    async fn a_tree_goes_with_its_contents_and_is_new_when_made() {
        let root = tempfile::tempdir().unwrap();
        let mut steps = Steps::default();
        let path = root.path().join("upper/c1");
        steps.tree(&path).unwrap();
        assert!(Steps::default().tree(&path).is_err());
        fs::create_dir_all(path.join("x/y")).unwrap();
        steps.undo().await.unwrap();
        assert!(!path.exists() && root.path().join("upper").exists());
    }

    #[tokio::test]
    async fn what_cannot_be_undone_stays_recorded() {
        let root = tempfile::tempdir().unwrap();
        let mut steps = Steps::default();
        let tree = root.path().join("c1");
        steps.tree(&tree).unwrap();
        steps.directory(&root.path().join("d")).unwrap();
        // Somebody took the directory away, and put a file in its place.
        fs::remove_dir(root.path().join("d")).unwrap();
        fs::write(root.path().join("d"), "").unwrap();
        assert!(steps.undo().await.is_err());
        assert!(tree.exists() && steps.0.len() == 2);
        fs::remove_file(root.path().join("d")).unwrap();
        steps.undo().await.unwrap();
        assert!(!tree.exists() && steps.0.is_empty());
    }
}
