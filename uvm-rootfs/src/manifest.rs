//! The manifest: directories, small files and links of the root file system, and the agent's place in it.
//!
//! Unknown keys are refused, so that a misspelt `mode` cannot pass for an absent one. Parents are to be listed;
//! none is made silently, because its permissions would be measured without having been written down.

use erofs_verity::layer::{Layer, LayerWriter, WriteError};
use erofs_verity::tree::{Data, Kind, Metadata, Node, Tree, TreeError};
use serde::Deserialize;

/// The manifest that comes with this crate.
const OWN: &str = include_str!("../manifest.toml");

/// What the root file system holds.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    agent: Agent,
    #[serde(default)]
    directory: Vec<Directory>,
    #[serde(default)]
    file: Vec<File>,
    #[serde(default)]
    symlink: Vec<Symlink>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Agent {
    path: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Directory {
    path: String,
    mode: Option<u16>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    path: String,
    mode: Option<u16>,
    content: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Symlink {
    path: String,
    target: String,
}

/// Why a manifest is refused.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not TOML, an unknown key, or a missing one.
    #[error("manifest: {0}")]
    Syntax(#[from] toml::de::Error),
    /// A path that is not absolute, or not in its shortest form.
    #[error("manifest: expected an absolute path without empty components, '.' and '..', found {0:?}")]
    Path(String),
    /// Entries that do not make a tree.
    #[error("manifest: {0}")]
    Tree(#[from] TreeError),
    /// The image cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl Manifest {
    /// Reads a manifest.
    ///
    /// # Errors
    /// When it is not TOML of a manifest's form.
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        Ok(toml::from_str(text)?)
    }

    /// The manifest of the product's own root file system.
    ///
    /// # Errors
    /// Never for the manifest that passed this crate's tests.
    pub fn own() -> Result<Self, ManifestError> {
        Self::parse(OWN)
    }

    /// Writes the file system that the manifest describes, with `agent` in its place.
    ///
    /// # Errors
    /// When a path is malformed or taken, its parent is missing, a node cannot be represented, or the image
    /// cannot be written.
    pub fn write(&self, agent: &[u8], mut writer: LayerWriter) -> Result<Layer, ManifestError> {
        let mut directories: Vec<&Directory> = self.directory.iter().collect();
        // A parent's path sorts before its children's.
        directories.sort_by(|one, other| one.path.cmp(&other.path));
        let mut tree = Tree::new(metadata(0o755))?;
        for Directory { path, mode } in directories {
            insert(&mut tree, path, mode.unwrap_or(0o755), Kind::Directory)?;
        }
        for File { path, mode, content } in &self.file {
            insert(&mut tree, path, mode.unwrap_or(0o644), regular(content.as_bytes(), &mut writer)?)?;
        }
        for Symlink { path, target } in &self.symlink {
            insert(&mut tree, path, 0o777, Kind::Symlink(target.clone().into_bytes()))?;
        }
        insert(&mut tree, &self.agent.path, 0o755, regular(agent, &mut writer)?)?;
        Ok(writer.finish(tree)?)
    }
}

fn regular(content: &[u8], writer: &mut LayerWriter) -> Result<Kind, WriteError> {
    Ok(Kind::Regular { size: content.len() as u64, data: Data::Flat(writer.content(content)?) })
}

fn metadata(permissions: u16) -> Metadata {
    Metadata { permissions, ..Metadata::default() }
}

fn insert(tree: &mut Tree, path: &str, permissions: u16, kind: Kind) -> Result<(), ManifestError> {
    let malformed = || ManifestError::Path(path.to_owned());
    let relative = path.strip_prefix('/').ok_or_else(malformed)?;
    if relative.split('/').any(|name| matches!(name, "" | "." | "..")) {
        return Err(malformed());
    }
    tree.insert(relative.as_bytes(), Node { metadata: metadata(permissions), kind })?;
    Ok(())
}
