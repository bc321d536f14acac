//! The runtime's configuration: one TOML file, read once when a pod is created.
//!
//! containerd names the file, or passes its text, in `runtimeoptions.v1.Options` (`config_path` = 2,
//! `config_body` = 3); without either it is [`DEFAULT_PATH`]. An unknown key or section is an error that
//! names the file and the key. A missing file at the default path is an error too: there is no image to
//! launch without one.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use containerd_shim::protos::protobuf::well_known_types::any::Any;
use launch::plan::{Hypervisor, Tee};
use protobuf::CodedInputStream;
use serde::Deserialize;

use crate::sizing::SCRATCH_MIB;

/// Where the configuration is when containerd names no other.
pub const DEFAULT_PATH: &str = "/etc/uvm/uvm.toml";
/// Longest configuration that is read, in bytes.
const MAX_CONFIG_BYTES: u64 = 64 * 1024;
/// The one type of runtime options that is understood.
const OPTIONS_TYPE: &str = "runtimeoptions.v1.Options";

/// A pod annotation that changes the machine; each works only where the configuration allows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Annotation {
    /// Number of virtual CPUs.
    DefaultVcpus,
    /// Memory of the machine in MiB.
    DefaultMemory,
    /// Size of the pod's encrypted scratch device in MiB.
    ScratchMib,
}

/// The checked configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The IGVM file that machines are launched from.
    pub image: PathBuf,
    /// The root file system image that the IGVM file's command line names by its root hash.
    pub rootfs: PathBuf,
    /// The virtual machine monitor.
    #[serde(default = "default_vmm")]
    pub vmm: PathBuf,
    /// Where packed layers are kept, shared by all pods.
    #[serde(default = "default_cache")]
    pub cache: PathBuf,
    /// Virtual CPUs of a pod without CPU limits.
    #[serde(default = "default_vcpus")]
    pub default_vcpus: u32,
    /// Memory in MiB of the machine of a pod without memory limits.
    #[serde(default = "default_memory_mib")]
    pub default_memory_mib: u64,
    /// Memory in MiB that the guest itself needs, added to the containers' limits.
    #[serde(default = "default_base_memory_mib")]
    pub base_memory_mib: u64,
    /// Size in MiB of the encrypted scratch device of a pod that does not ask for another; zero means none.
    #[serde(default)]
    pub scratch_mib: u64,
    /// Where the files behind scratch devices are.
    #[serde(default = "default_scratch_dir")]
    pub scratch_dir: PathBuf,
    /// The kubelet's directory, by which a pod's volumes are known.
    #[serde(default = "default_kubelet_root")]
    pub kubelet_root: PathBuf,
    /// Isolation to launch with.
    #[serde(default = "default_tee")]
    pub tee: Tee,
    /// Whose virtual machines are used.
    #[serde(default)]
    pub hypervisor: Hypervisor,
    /// Pod annotations that are honoured.
    #[serde(default)]
    pub enable_annotations: Vec<Annotation>,
    /// Whether the serial output of a debug image is kept, in the pod's state directory.
    #[serde(default)]
    pub debug_console: bool,
    /// How long a machine may take from its start until its agent serves, in seconds.
    #[serde(default = "default_boot_timeout_s")]
    pub boot_timeout_s: u64,
    /// How long the agent may take for a request that changes something, in seconds.
    #[serde(default = "default_request_timeout_s")]
    pub request_timeout_s: u64,
}

fn default_vmm() -> PathBuf {
    "/usr/local/bin/uvm-vmm".into()
}

fn default_cache() -> PathBuf {
    "/var/lib/uvm/layers".into()
}

fn default_scratch_dir() -> PathBuf {
    "/var/lib/uvm/scratch".into()
}

fn default_kubelet_root() -> PathBuf {
    "/var/lib/kubelet".into()
}

const fn default_vcpus() -> u32 {
    1
}

const fn default_memory_mib() -> u64 {
    512
}

const fn default_base_memory_mib() -> u64 {
    64
}

const fn default_tee() -> Tee {
    Tee::None
}

const fn default_boot_timeout_s() -> u64 {
    60
}

const fn default_request_timeout_s() -> u64 {
    60
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {source}", path = .path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Larger than any configuration needs to be.
    #[error("configuration {origin}: expected at most {MAX_CONFIG_BYTES} bytes")]
    TooLarge {
        /// Where it came from.
        origin: String,
    },
    /// Not TOML, an unknown key, a missing one, or a value of the wrong type.
    #[error("configuration {origin}: {message}")]
    Syntax {
        /// Where it came from.
        origin: String,
        /// Line, key and what was expected.
        message: String,
    },
    /// A value out of its range.
    #[error("configuration {origin}: {key}: expected {expected}, found {found}")]
    Value {
        /// Where it came from.
        origin: String,
        /// The key.
        key: &'static str,
        /// What would be accepted.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// Options of a type that this runtime does not have.
    #[error("runtime options: expected {OPTIONS_TYPE}, found {0}")]
    OptionsType(String),
    /// Options that are not a protobuf message of their type.
    #[error("runtime options: {0}")]
    Options(#[source] protobuf::Error),
}

/// Where containerd says that the configuration is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    File(PathBuf),
    Text(String),
}

impl Source {
    fn from_options(options: Option<&Any>) -> Result<Self, ConfigError> {
        let default = Self::File(DEFAULT_PATH.into());
        let Some(any) = options.filter(|any| !any.type_url.is_empty()) else { return Ok(default) };
        if any.type_url.rsplit('/').next() != Some(OPTIONS_TYPE) {
            return Err(ConfigError::OptionsType(any.type_url.clone()));
        }
        let (path, body) = decode_options(&any.value).map_err(ConfigError::Options)?;
        Ok(match (path, body) {
            (_, Some(body)) => Self::Text(body),
            (Some(path), None) => Self::File(path.into()),
            (None, None) => default,
        })
    }
}

/// `config_path` and `config_body` of a `runtimeoptions.v1.Options`; empty strings count as absent.
fn decode_options(bytes: &[u8]) -> protobuf::Result<(Option<String>, Option<String>)> {
    let mut input = CodedInputStream::from_bytes(bytes);
    let (mut path, mut body) = (None, None);
    while let Some(tag) = input.read_raw_tag_or_eof()? {
        // Field number << 3 | wire type 2 (length-delimited).
        match tag {
            0x12 => path = Some(input.read_string()?),
            0x1a => body = Some(input.read_bytes()?),
            other => protobuf::rt::skip_field_for_tag(other, &mut input)?,
        }
    }
    let body = body.map(String::from_utf8).transpose().map_err(std::io::Error::other)?;
    let filled = |text: &String| !text.is_empty();
    Ok((path.filter(filled), body.filter(filled)))
}

impl Config {
    /// Reads the configuration that a task's options name.
    ///
    /// # Errors
    /// When the options or the configuration are not understood, or a value is out of its range.
    pub fn from_options(options: Option<&Any>) -> Result<Self, ConfigError> {
        match Source::from_options(options)? {
            Source::Text(text) => Self::parse(&text, "from the runtime options"),
            Source::File(path) => {
                let text = read(&path)?;
                Self::parse(&text, &path.display().to_string())
            }
        }
    }

    /// Parses and checks `text`; `origin` names it in errors.
    ///
    /// # Errors
    /// When it is not the TOML of a configuration, or a value is out of its range.
    pub fn parse(text: &str, origin: &str) -> Result<Self, ConfigError> {
        if text.len() as u64 > MAX_CONFIG_BYTES {
            return Err(ConfigError::TooLarge { origin: origin.into() });
        }
        let config: Self = toml::from_str(text)
            .map_err(|error| ConfigError::Syntax { origin: origin.into(), message: error.to_string() })?;
        config.check(origin)?;
        Ok(config)
    }

    fn check(&self, origin: &str) -> Result<(), ConfigError> {
        let value = |key, expected, found| ConfigError::Value { origin: origin.into(), key, expected, found };
        let paths = [
            ("image", &self.image),
            ("rootfs", &self.rootfs),
            ("vmm", &self.vmm),
            ("cache", &self.cache),
            ("scratch_dir", &self.scratch_dir),
            ("kubelet_root", &self.kubelet_root),
        ];
        for (key, path) in paths {
            if !path.is_absolute() {
                return Err(value(key, "an absolute path", path.display().to_string()));
            }
        }
        if !(1..=launch::layout::MAX_VCPUS).contains(&self.default_vcpus) {
            return Err(value("default_vcpus", "1 to 64", self.default_vcpus.to_string()));
        }
        if self.default_memory_mib < launch::layout::MIN_MEMORY_MIB {
            return Err(value("default_memory_mib", "at least 64", self.default_memory_mib.to_string()));
        }
        if self.scratch_mib != 0 && !SCRATCH_MIB.contains(&self.scratch_mib) {
            return Err(value("scratch_mib", "0 or 32 to 16777216", self.scratch_mib.to_string()));
        }
        for (key, seconds) in
            [("boot_timeout_s", self.boot_timeout_s), ("request_timeout_s", self.request_timeout_s)]
        {
            if !(1..=3600).contains(&seconds) {
                return Err(value(key, "1 to 3600", seconds.to_string()));
            }
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.into(), source };
    let mut text = String::new();
    // One byte more than allowed, so that `parse` sees that there is more.
    File::open(path).map_err(failed)?.take(MAX_CONFIG_BYTES + 1).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = "image = \"/i\"\nrootfs = \"/r\"\n";

    fn options(type_url: &str, value: &[u8]) -> Any {
        Any { type_url: type_url.into(), value: value.into(), ..Any::default() }
    }

    #[test]
    fn defaults() {
        let config = Config::parse(MINIMAL, "x").unwrap();
        assert_eq!((config.default_vcpus, config.default_memory_mib, config.base_memory_mib), (1, 512, 64));
        assert_eq!(config.cache, Path::new("/var/lib/uvm/layers"));
        assert!(config.enable_annotations.is_empty() && !config.debug_console);
    }

    #[test]
    fn the_sample_is_the_defaults() {
        let sample = Config::parse(include_str!("../uvm.toml"), "uvm.toml").unwrap();
        let defaults = Config::parse(
            "image = \"/usr/share/uvm/uvm.igvm\"\nrootfs = \"/usr/share/uvm/rootfs.img\"\n",
            "x",
        );
        assert_eq!(sample, defaults.unwrap());
    }

    #[test]
    fn isolation_and_hypervisor_are_chosen_by_name() {
        for (name, tee) in [("none", Tee::None), ("sim", Tee::Sim), ("snp", Tee::Snp), ("tdx", Tee::Tdx)] {
            let text = format!("{MINIMAL}tee = \"{name}\"\nhypervisor = \"mshv\"\n");
            let config = Config::parse(&text, "x").unwrap();
            assert_eq!((config.tee, config.hypervisor), (tee, Hypervisor::Mshv));
        }
    }

    #[test]
    fn refusals_name_file_and_key() {
        let cases = [
            ("image = \"/i\"", "rootfs"),
            ("image = \"/i\"\nrootfs = \"/r\"\nkernel = \"/k\"", "kernel"),
            ("image = \"i\"\nrootfs = \"/r\"", "image: expected an absolute path, found i"),
            (
                "image = \"/i\"\nrootfs = \"/r\"\ndefault_vcpus = 0",
                "default_vcpus: expected 1 to 64, found 0",
            ),
            (
                "image = \"/i\"\nrootfs = \"/r\"\nscratch_mib = 31",
                "scratch_mib: expected 0 or 32 to 16777216",
            ),
            ("image = \"/i\"\nrootfs = \"/r\"\nkubelet_root = \"k\"", "kubelet_root"),
            ("image = \"/i\"\nrootfs = \"/r\"\ntee = \"magic\"", "tee"),
            ("image = \"/i\"\nrootfs = \"/r\"\nhypervisor = \"xen\"", "hypervisor"),
            ("image = \"/i\"\nrootfs = \"/r\"\nenable_annotations = [\"kernel\"]", "enable_annotations"),
        ];
        for (text, key) in cases {
            let error = Config::parse(text, "/etc/x.toml").unwrap_err().to_string();
            assert!(error.contains("/etc/x.toml") && error.contains(key), "{error}");
        }
    }

    #[test]
    fn options_name_the_source() {
        let default = Source::File(DEFAULT_PATH.into());
        assert_eq!(Source::from_options(None).unwrap(), default);
        assert_eq!(Source::from_options(Some(&options("", b""))).unwrap(), default);
        assert_eq!(Source::from_options(Some(&options(OPTIONS_TYPE, b""))).unwrap(), default);
        // type_url = 1 "x", config_path = 2 "/a"
        let path = options(OPTIONS_TYPE, b"\x0a\x01x\x12\x02/a");
        assert_eq!(Source::from_options(Some(&path)).unwrap(), Source::File("/a".into()));
        let body = options("type.googleapis.com/runtimeoptions.v1.Options", b"\x12\x02/a\x1a\x01b");
        assert_eq!(Source::from_options(Some(&body)).unwrap(), Source::Text("b".into()));
    }

    #[test]
    fn foreign_or_broken_options_are_refused() {
        let runc = Source::from_options(Some(&options("containerd.runc.v1.Options", b""))).unwrap_err();
        assert!(runc.to_string().contains("found containerd.runc.v1.Options"), "{runc}");
        assert!(Source::from_options(Some(&options(OPTIONS_TYPE, b"\x12\x7f/"))).is_err());
    }
}
