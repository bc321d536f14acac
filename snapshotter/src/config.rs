//! The configuration file, `/etc/uvm/snapshotter.toml` unless told otherwise. What it does not set has a default;
//! what is not known is refused.

use std::path::{Path, PathBuf};
use std::{fs, io, thread};

use serde::Deserialize;

/// Where the configuration is looked for.
pub const DEFAULT_PATH: &str = "/etc/uvm/snapshotter.toml";

/// Settings of the service.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Directory of the store.
    pub root: PathBuf,
    /// Socket at which containerd is answered.
    pub socket: PathBuf,
    /// containerd's own socket, for its content store.
    pub containerd: PathBuf,
    /// Directory of containerd's content store, to read blobs from it directly; empty to read them over the
    /// socket only.
    pub content: PathBuf,
    /// Directories with layers that containerd's erofs snapshotter made (its `layer_content_caches`).
    pub adopt: Vec<PathBuf>,
    /// Layers that are converted at the same time, at most. One conversion uses all processors where it can, and
    /// less than 64 MiB of memory.
    pub conversions: usize,
    /// Largest layer that is converted, in bytes of the uncompressed tar.
    pub max_layer_bytes: u64,
    /// Most files in a layer.
    pub max_layer_entries: u64,
}

impl Default for Config {
    fn default() -> Self {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        Self {
            root: "/var/lib/uvm-snapshotter".into(),
            socket: "/run/uvm-snapshotter/snapshotter.sock".into(),
            containerd: "/run/containerd/containerd.sock".into(),
            content: "/var/lib/containerd/io.containerd.content.v1.content".into(),
            adopt: Vec::new(),
            // gzip is undone by one thread: a few layers at a time keep the others busy.
            conversions: processors.clamp(1, 4),
            max_layer_bytes: 64 << 30,
            max_layer_entries: 2_000_000,
        }
    }
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not a configuration.
    #[error("{path}: {source}", path = .path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A setting cannot be.
    #[error("{setting}: expected {expected}, found {found}")]
    Setting {
        /// Name of the setting.
        setting: &'static str,
        /// What it may be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
}

impl Config {
    /// Reads the file at `path`, or the default file if there is one.
    ///
    /// # Errors
    /// When the file named cannot be read, or a file is not a configuration.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let file = path.unwrap_or(Path::new(DEFAULT_PATH));
        let text = match fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if path.is_none() && error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(ConfigError::Read { path: file.into(), source }),
        };
        toml::from_str(&text)
            .map_err(|source| ConfigError::Parse { path: file.into(), source: Box::new(source) })
    }

    /// Checks what cannot be seen from one setting's form.
    ///
    /// # Errors
    /// With the first setting that cannot be.
    pub fn check(&self) -> Result<(), ConfigError> {
        let paths = [("root", &self.root), ("socket", &self.socket), ("containerd", &self.containerd)];
        for (setting, path) in paths {
            // A colon or a backslash would mean something in the options of an overlay mount.
            let text = path.to_str().filter(|text| !text.contains([':', '\\', ',']));
            if !path.is_absolute() || text.is_none() {
                let expected = "an absolute path without colons, commas and backslashes";
                return Err(ConfigError::Setting { setting, expected, found: format!("{path:?}") });
            }
        }
        if self.conversions == 0 {
            return Err(ConfigError::Setting {
                setting: "conversions",
                expected: "at least 1",
                found: "0".into(),
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_and_unknown_ones_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("snapshotter.toml");
        fs::write(&path, "root = '/data'\nconversions = 1\n").unwrap();
        let config = Config::load(Some(&path)).unwrap();
        assert_eq!(config, Config { root: "/data".into(), conversions: 1, ..Config::default() });
        config.check().unwrap();
        fs::write(&path, "rot = '/data'\n").unwrap();
        assert!(Config::load(Some(&path)).unwrap_err().to_string().contains("rot"));
        assert!(Config::load(Some(&directory.path().join("none"))).is_err());
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let bad = [
            (Config { root: "relative".into(), ..Config::default() }, "root"),
            (Config { root: "/a:b".into(), ..Config::default() }, "root"),
            (Config { conversions: 0, ..Config::default() }, "conversions"),
        ];
        for (config, setting) in bad {
            assert!(config.check().unwrap_err().to_string().starts_with(setting));
        }
    }
}
