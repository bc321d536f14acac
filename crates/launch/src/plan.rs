//! The launch plan: everything that the VMM is told, once, before it builds the machine.
//!
//! The plan travels as JSON over an inherited file descriptor. The wire form is private to this module;
//! a [`LaunchPlan`] in hand has passed every check.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::image::Platform;
use crate::layout::{MAX_MEMORY_MIB, MAX_VCPUS, MIN_MEMORY_MIB};

/// Longest plan, in bytes of JSON, that is read.
pub const MAX_PLAN_BYTES: usize = 64 * 1024;

/// Longest path of a Unix socket, with its terminating zero (`sun_path` in unix(7)).
const UNIX_PATH_MAX: usize = 108;
/// Room that the hybrid vsock port suffix (`_4294967295`) needs behind the socket's path.
const PORT_SUFFIX_MAX: usize = 11;

/// How the guest is protected from the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tee {
    /// An ordinary virtual machine: no protection from the host, no measurement by a processor.
    None,
    /// SEV-SNP in software: the launch is measured and its report is genuine in form, but the memory is in
    /// the clear and the report's root of trust is made on the spot.
    Sim,
    /// AMD SEV-SNP.
    Snp,
    /// Intel TDX.
    Tdx,
}

impl Tee {
    /// The part of an image that starts under this isolation.
    #[must_use]
    pub const fn platform(self) -> Platform {
        match self {
            Self::None => Platform::Native,
            Self::Sim | Self::Snp => Platform::Snp,
            Self::Tdx => Platform::Tdx,
        }
    }
}

/// Why a text names no isolation, or no hypervisor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}, found {found:?}")]
pub struct NameError {
    expected: &'static str,
    found: String,
}

impl NameError {
    fn new(expected: &'static str, found: &str) -> Self {
        Self { expected, found: found.chars().take(80).collect() }
    }
}

impl std::str::FromStr for Tee {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text {
            "none" => Ok(Self::None),
            "sim" => Ok(Self::Sim),
            "snp" => Ok(Self::Snp),
            "tdx" => Ok(Self::Tdx),
            other => Err(NameError::new("none, sim, snp or tdx", other)),
        }
    }
}

impl std::str::FromStr for Hypervisor {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Kvm),
            "mshv" => Ok(Self::Mshv),
            other => Err(NameError::new("auto, kvm or mshv", other)),
        }
    }
}

impl std::fmt::Display for Hypervisor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Kvm => "kvm",
            Self::Mshv => "mshv",
        })
    }
}

impl std::fmt::Display for Tee {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Sim => f.write_str("sim"),
            Self::Snp => f.write_str("snp"),
            Self::Tdx => f.write_str("tdx"),
        }
    }
}

/// Whose virtual machines are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hypervisor {
    /// KVM where there is `/dev/kvm`, else the Microsoft Hypervisor.
    #[default]
    Auto,
    /// Linux's KVM.
    Kvm,
    /// The Microsoft Hypervisor, through `/dev/mshv`.
    Mshv,
}

/// What the owner of a guest binds to its launch: SEV-SNP's `HOST_DATA`. TDX's `MRCONFIGID` holds the same 32
/// bytes, followed by 16 of zeros. In JSON: 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostData(pub [u8; 32]);

/// Why a text is no host data.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("host data: expected 64 hexadecimal digits, found {0:?}")]
pub struct HostDataError(String);

impl std::str::FromStr for HostData {
    type Err = HostDataError;

    fn from_str(text: &str) -> Result<Self, HostDataError> {
        let mut bytes = [0; 32];
        let decoded = hex::decode_to_slice(text, &mut bytes);
        decoded.map_err(|_| HostDataError(text.chars().take(80).collect()))?;
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for HostData {
    type Error = HostDataError;

    fn try_from(text: String) -> Result<Self, HostDataError> {
        text.parse()
    }
}

impl From<HostData> for String {
    fn from(data: HostData) -> Self {
        data.to_string()
    }
}

impl std::fmt::Display for HostData {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A checked launch plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawPlan", into = "RawPlan")]
pub struct LaunchPlan {
    /// The IGVM file.
    pub image: PathBuf,
    /// The root file system image, for block slot 0, opened read-only.
    pub rootfs: PathBuf,
    /// Number of virtual CPUs, 1 to [`MAX_VCPUS`].
    pub vcpus: u32,
    /// Guest memory in MiB, [`MIN_MEMORY_MIB`] to [`MAX_MEMORY_MIB`].
    pub memory_mib: u64,
    /// Isolation to launch with.
    pub tee: Tee,
    /// What is bound to the launch, where there is isolation.
    pub host_data: HostData,
    /// Whose virtual machines to use.
    pub hypervisor: Hypervisor,
    /// Unix socket that the VMM listens on for hybrid vsock; `<path>_<port>` take the guest's connections.
    pub vsock: PathBuf,
    /// Where the serial output of a debug image goes; production images have no console.
    pub console: Option<PathBuf>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPlan {
    image: PathBuf,
    rootfs: PathBuf,
    vcpus: u32,
    memory_mib: u64,
    tee: Tee,
    #[serde(default)]
    host_data: HostData,
    #[serde(default)]
    hypervisor: Hypervisor,
    vsock: PathBuf,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    console: Option<PathBuf>,
}

/// Why a plan is refused.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// Not JSON, an unknown field, or a missing one.
    #[error("launch plan: {0}")]
    Syntax(#[source] serde_json::Error),
    /// More bytes than any plan needs.
    #[error("launch plan: expected at most {MAX_PLAN_BYTES} bytes, found {0}")]
    TooLong(usize),
}

#[derive(Debug, thiserror::Error)]
enum PlanFieldError {
    #[error("vcpus: expected 1 to {MAX_VCPUS}, found {0}")]
    Vcpus(u32),
    #[error("memory_mib: expected {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB}, found {0}")]
    Memory(u64),
    #[error("{field}: expected an absolute path, found {path:?}")]
    Relative { field: &'static str, path: PathBuf },
    #[error("vsock: expected a path of at most {max} bytes, found {found}")]
    SocketPath { max: usize, found: usize },
}

impl TryFrom<RawPlan> for LaunchPlan {
    type Error = String;

    fn try_from(raw: RawPlan) -> Result<Self, String> {
        check(&raw).map_err(|error| error.to_string())?;
        let RawPlan { image, rootfs, vcpus, memory_mib, tee, host_data, hypervisor, vsock, console } = raw;
        Ok(Self { image, rootfs, vcpus, memory_mib, tee, host_data, hypervisor, vsock, console })
    }
}

impl From<LaunchPlan> for RawPlan {
    fn from(plan: LaunchPlan) -> Self {
        let LaunchPlan { image, rootfs, vcpus, memory_mib, tee, host_data, hypervisor, vsock, console } =
            plan;
        Self { image, rootfs, vcpus, memory_mib, tee, host_data, hypervisor, vsock, console }
    }
}

fn check(raw: &RawPlan) -> Result<(), PlanFieldError> {
    if !(1..=MAX_VCPUS).contains(&raw.vcpus) {
        return Err(PlanFieldError::Vcpus(raw.vcpus));
    }
    if !(MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&raw.memory_mib) {
        return Err(PlanFieldError::Memory(raw.memory_mib));
    }
    let console = raw.console.as_ref().map(|path| ("console", path));
    let paths = [("image", &raw.image), ("rootfs", &raw.rootfs), ("vsock", &raw.vsock)];
    for (field, path) in paths.into_iter().chain(console) {
        if !path.is_absolute() {
            return Err(PlanFieldError::Relative { field, path: path.clone() });
        }
    }
    let found = raw.vsock.as_os_str().len();
    let max = UNIX_PATH_MAX - 1 - PORT_SUFFIX_MAX;
    if found > max {
        return Err(PlanFieldError::SocketPath { max, found });
    }
    Ok(())
}

impl LaunchPlan {
    /// Reads and checks a plan.
    ///
    /// # Errors
    /// When the bytes are too many, are not the JSON of a plan, or a value is out of its range.
    pub fn from_json(bytes: &[u8]) -> Result<Self, PlanError> {
        if bytes.len() > MAX_PLAN_BYTES {
            return Err(PlanError::TooLong(bytes.len()));
        }
        serde_json::from_slice(bytes).map_err(PlanError::Syntax)
    }

    /// The plan as JSON, as [`LaunchPlan::from_json`] reads it.
    ///
    /// # Errors
    /// When a path is not UTF-8, which JSON cannot carry.
    pub fn to_json(&self) -> Result<Vec<u8>, PlanError> {
        serde_json::to_vec(self).map_err(PlanError::Syntax)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> LaunchPlan {
        LaunchPlan {
            image: "/image.igvm".into(),
            rootfs: "/rootfs.img".into(),
            vcpus: 2,
            memory_mib: 512,
            tee: Tee::Sim,
            host_data: HostData([7; 32]),
            hypervisor: Hypervisor::Auto,
            vsock: "/run/uvm/x/vsock".into(),
            console: None,
        }
    }

    #[test]
    fn round_trip() {
        assert_eq!(LaunchPlan::from_json(&plan().to_json().unwrap()).unwrap(), plan());
    }

    #[test]
    fn refusals_name_field_expected_and_found() {
        type Break = fn(&mut LaunchPlan);
        let cases: [(Break, &str); 4] = [
            (|p| p.vcpus = 0, "vcpus: expected 1 to 64, found 0"),
            (|p| p.memory_mib = 1, "memory_mib: expected 64 to 512000, found 1"),
            (|p| p.rootfs = "x".into(), "rootfs: expected an absolute path, found \"x\""),
            (
                |p| p.vsock = format!("/{}", "x".repeat(200)).into(),
                "vsock: expected a path of at most 96 bytes",
            ),
        ];
        for (break_it, message) in cases {
            let mut bad = plan();
            break_it(&mut bad);
            let error = LaunchPlan::from_json(&bad.to_json().unwrap()).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn names_are_the_same_in_text_and_json() {
        for tee in [Tee::None, Tee::Sim, Tee::Snp, Tee::Tdx] {
            assert_eq!(tee.to_string().parse(), Ok(tee));
            assert_eq!(serde_json::to_string(&tee).unwrap(), format!("\"{tee}\""));
        }
        for hypervisor in [Hypervisor::Auto, Hypervisor::Kvm, Hypervisor::Mshv] {
            assert_eq!(hypervisor.to_string().parse(), Ok(hypervisor));
            assert_eq!(serde_json::to_string(&hypervisor).unwrap(), format!("\"{hypervisor}\""));
        }
        assert_eq!("".parse::<Tee>().unwrap_err().to_string(), "expected none, sim, snp or tdx, found \"\"");
    }

    #[test]
    fn unknown_field_is_refused() {
        let mut json = plan().to_json().unwrap();
        json.pop();
        json.extend_from_slice(b",\"append\":\"x\"}");
        assert!(LaunchPlan::from_json(&json).unwrap_err().to_string().contains("append"));
    }
}
