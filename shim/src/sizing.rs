//! How large a pod's machine is: one rule, in pure code, without hotplug.
//!
//! Virtual CPUs are the sum of the CPU limits, rounded up, at least one. Memory is what the guest needs for
//! itself plus the sum of the memory limits. Without a limit the configured default is the whole machine's.
//! Limits come from the sandbox annotations that containerd's CRI plugin writes, or from a plain container's
//! own resources. Kata's annotations `default_vcpus` and `default_memory` override the result where the
//! configuration allows them, and are refused where it does not: the number of CPUs is measured. So does
//! `uvm.scratch_mib`, the size of the pod's encrypted scratch device; zero means that it has none.

use std::collections::HashMap;

use agent_protocol::storage::scratch::MIN_BYTES as MIN_SCRATCH_BYTES;
use launch::layout::{MAX_MEMORY_MIB, MAX_VCPUS, MIN_MEMORY_MIB};
use oci_spec::runtime::Spec;

use crate::config::{Annotation, Config};
use crate::identity::Role;
use crate::layers::positions::DISK_BYTES;

const CPU_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const CPU_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";
const MEMORY: &str = "io.kubernetes.cri.sandbox-memory";
const KATA_VCPUS: &str = "io.katacontainers.config.hypervisor.default_vcpus";
const KATA_MEMORY: &str = "io.katacontainers.config.hypervisor.default_memory";
const SCRATCH: &str = "uvm.scratch_mib";

/// CPU period in microseconds when a quota comes without one (the kernel's default).
const DEFAULT_PERIOD_US: u64 = 100_000;
const MIB: u64 = 1 << 20;

/// Size of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Scratch device in MiB; zero means none.
    pub scratch_mib: u64,
}

/// Sizes of scratch devices in MiB.
pub const SCRATCH_MIB: std::ops::RangeInclusive<u64> = MIN_SCRATCH_BYTES / MIB..=DISK_BYTES / MIB;

/// Why a pod has no size.
#[derive(Debug, thiserror::Error)]
pub enum SizingError {
    /// An annotation that is not a number.
    #[error("annotation {key}: expected a number, found {found:?}")]
    Number {
        /// Name of the annotation.
        key: &'static str,
        /// Its value.
        found: String,
    },
    /// An annotation that the configuration does not allow.
    #[error("annotation {0} is not allowed: `enable_annotations` of the runtime's configuration lacks it")]
    NotAllowed(&'static str),
    /// More CPUs than a machine has, or none.
    #[error("pod needs {0} virtual CPUs: expected 1 to {MAX_VCPUS}")]
    Vcpus(u64),
    /// More memory than a machine has, or too little.
    #[error("pod needs {0} MiB of memory: expected {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB}")]
    Memory(u64),
    /// A scratch device that is too small or too large.
    #[error("pod asks for a scratch device of {0} MiB: expected 0 or {SCRATCH_MIB:?}")]
    Scratch(u64),
}

/// What a pod's containers may use at most; zero means no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Limits {
    quota_us: u64,
    period_us: u64,
    memory_bytes: u64,
}

/// The size of the pod that `spec` leads.
///
/// # Errors
/// When an annotation is not a number or not allowed, or the size is out of a machine's range.
pub fn size(role: Role, spec: &Spec, config: &Config) -> Result<Size, SizingError> {
    let none = HashMap::new();
    let annotations = spec.annotations().as_ref().unwrap_or(&none);
    let limits = if role == Role::Single { own_limits(spec) } else { sandbox_limits(annotations)? };

    let mut vcpus = match limits.quota_us {
        0 => u64::from(config.default_vcpus),
        quota => quota.div_ceil(if limits.period_us == 0 { DEFAULT_PERIOD_US } else { limits.period_us }),
    };
    let mut memory_mib = match limits.memory_bytes {
        0 => config.default_memory_mib,
        bytes => config.base_memory_mib.saturating_add(bytes.div_ceil(MIB)),
    };
    if let Some(count) = allowed(annotations, KATA_VCPUS, Annotation::DefaultVcpus, config)? {
        vcpus = count;
    }
    if let Some(mib) = allowed(annotations, KATA_MEMORY, Annotation::DefaultMemory, config)? {
        memory_mib = mib;
    }
    let vcpus = match u32::try_from(vcpus) {
        Ok(count) if (1..=MAX_VCPUS).contains(&count) => count,
        _ => return Err(SizingError::Vcpus(vcpus)),
    };
    if !(MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&memory_mib) {
        return Err(SizingError::Memory(memory_mib));
    }
    let scratch = allowed(annotations, SCRATCH, Annotation::ScratchMib, config)?;
    let scratch_mib = scratch.unwrap_or(config.scratch_mib);
    if scratch_mib != 0 && !SCRATCH_MIB.contains(&scratch_mib) {
        return Err(SizingError::Scratch(scratch_mib));
    }
    Ok(Size { vcpus, memory_mib, scratch_mib })
}

fn own_limits(spec: &Spec) -> Limits {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let cpu = resources.and_then(|resources| resources.cpu().as_ref());
    let memory = resources.and_then(|resources| resources.memory().as_ref());
    // Negative limits mean "no limit" in the OCI runtime specification.
    let positive = |limit: i64| u64::try_from(limit).unwrap_or(0);
    Limits {
        quota_us: cpu.and_then(|cpu| cpu.quota()).map_or(0, positive),
        period_us: cpu.and_then(|cpu| cpu.period()).unwrap_or(0),
        memory_bytes: memory.and_then(|memory| memory.limit()).map_or(0, positive),
    }
}

fn sandbox_limits(annotations: &HashMap<String, String>) -> Result<Limits, SizingError> {
    // As in a spec, a negative quota is no limit.
    let signed =
        |key| number::<i64>(annotations, key).map(|n| n.map_or(0, |n| u64::try_from(n).unwrap_or(0)));
    Ok(Limits {
        quota_us: signed(CPU_QUOTA)?,
        period_us: number(annotations, CPU_PERIOD)?.unwrap_or(0),
        memory_bytes: signed(MEMORY)?,
    })
}

fn number<T: std::str::FromStr>(
    annotations: &HashMap<String, String>,
    key: &'static str,
) -> Result<Option<T>, SizingError> {
    annotations
        .get(key)
        .map(|text| text.parse().map_err(|_| SizingError::Number { key, found: text.clone() }))
        .transpose()
}

fn allowed(
    annotations: &HashMap<String, String>,
    key: &'static str,
    which: Annotation,
    config: &Config,
) -> Result<Option<u64>, SizingError> {
    if annotations.contains_key(key) && !config.enable_annotations.contains(&which) {
        return Err(SizingError::NotAllowed(key));
    }
    number(annotations, key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(extra: &str) -> Config {
        Config::parse(&format!("image = \"/i\"\nrootfs = \"/r\"\n{extra}"), "x").unwrap()
    }

    fn sandbox(pairs: &[(&str, &str)]) -> Spec {
        let annotations: HashMap<_, _> =
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        serde_json::from_value(serde_json::json!({ "ociVersion": "1.0.2", "annotations": annotations }))
            .unwrap()
    }

    fn single(resources: &str) -> Spec {
        let json = format!("{{\"ociVersion\":\"1.0.2\",\"linux\":{{\"resources\":{resources}}}}}");
        serde_json::from_str(&json).unwrap()
    }

    #[test]
    fn without_limits_the_default() {
        let expected = Size { vcpus: 1, memory_mib: 512, scratch_mib: 0 };
        assert_eq!(size(Role::Sandbox, &sandbox(&[]), &config("")).unwrap(), expected);
        assert_eq!(size(Role::Single, &single("{}"), &config("")).unwrap(), expected);
        let unlimited = single(r#"{"cpu":{"quota":-1,"period":100000},"memory":{"limit":-1}}"#);
        assert_eq!(size(Role::Single, &unlimited, &config("")).unwrap(), expected);
        let zero = sandbox(&[(CPU_QUOTA, "0"), (MEMORY, "0")]);
        assert_eq!(size(Role::Sandbox, &zero, &config("")).unwrap(), expected);
    }

    #[test]
    fn limits_round_up_and_memory_gets_the_base() {
        let pod = sandbox(&[(CPU_QUOTA, "150000"), (CPU_PERIOD, "100000"), (MEMORY, "104857601")]);
        assert_eq!(
            size(Role::Sandbox, &pod, &config("")).unwrap(),
            Size { vcpus: 2, memory_mib: 165, scratch_mib: 0 }
        );
        let own = single(r#"{"cpu":{"quota":50000},"memory":{"limit":67108864}}"#);
        assert_eq!(
            size(Role::Single, &own, &config("")).unwrap(),
            Size { vcpus: 1, memory_mib: 128, scratch_mib: 0 }
        );
    }

    #[test]
    fn kata_annotations_need_permission() {
        let pod = sandbox(&[(KATA_VCPUS, "4"), (KATA_MEMORY, "2048")]);
        let refused = size(Role::Sandbox, &pod, &config("")).unwrap_err().to_string();
        assert!(refused.contains(KATA_VCPUS) && refused.contains("enable_annotations"), "{refused}");
        let lenient = config("enable_annotations = [\"default_vcpus\", \"default_memory\"]");
        assert_eq!(
            size(Role::Sandbox, &pod, &lenient).unwrap(),
            Size { vcpus: 4, memory_mib: 2048, scratch_mib: 0 }
        );
    }

    #[test]
    fn scratch_is_configured_or_asked_for() {
        let of = |pod: &Spec, config: &Config| size(Role::Sandbox, pod, config).map(|size| size.scratch_mib);
        let asks = sandbox(&[(SCRATCH, "64")]);
        assert_eq!(of(&sandbox(&[]), &config("scratch_mib = 1024")).unwrap(), 1024);
        assert!(of(&asks, &config("")).unwrap_err().to_string().contains("uvm.scratch_mib is not allowed"));
        let lenient = config("scratch_mib = 1024\nenable_annotations = [\"scratch_mib\"]");
        assert_eq!(of(&asks, &lenient).unwrap(), 64);
        assert_eq!(of(&sandbox(&[(SCRATCH, "0")]), &lenient).unwrap(), 0);
        for size in ["31", "16777217"] {
            let error = of(&sandbox(&[(SCRATCH, size)]), &lenient).unwrap_err().to_string();
            assert!(error.contains(&format!("{size} MiB: expected 0 or 32..=16777216")), "{error}");
        }
    }

    #[test]
    fn sizes_no_machine_has_are_refused() {
        let lenient = config("enable_annotations = [\"default_vcpus\", \"default_memory\"]");
        let cases = [
            ((KATA_VCPUS, "0"), "0 virtual CPUs"),
            ((KATA_VCPUS, "65"), "65 virtual CPUs"),
            ((KATA_MEMORY, "63"), "63 MiB"),
            ((MEMORY, "9223372036854775807"), "MiB of memory"),
            ((CPU_QUOTA, "much"), "found \"much\""),
        ];
        for (annotation, message) in cases {
            let error = size(Role::Sandbox, &sandbox(&[annotation]), &lenient).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
