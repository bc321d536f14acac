//! From the OCI configuration that the host sends to the one that runs.
//!
//! The pod is the utility VM: network, IPC and UTS namespaces are the agent's own, so those entries go; PID,
//! mount and cgroup namespaces are always new (or, for PIDs, the one that the pod shares). Settings that mean
//! the host (cpusets, swap, security labels, host paths) go too. What would be unsafe or cannot be done here is
//! refused, never ignored.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use agent_protocol::paths;
use agent_protocol::storage::VolumeStorage;
use oci_spec::runtime::{
    Capabilities, Capability, Linux, LinuxCapabilities, LinuxNamespace, LinuxNamespaceBuilder,
    LinuxNamespaceType, LinuxResources, Mount, Process, Spec,
};

use crate::cgroup::Cgroup;
use crate::error::{AgentError, Result};

/// What the agent decides about a container.
#[derive(Debug)]
pub struct Setting<'a> {
    /// Container id, checked.
    pub container: &'a str,
    /// The PID namespace to join, or a new one.
    pub pid_namespace: Option<PathBuf>,
    /// Volumes that the container's mounts may have as their sources.
    pub volumes: &'a [VolumeStorage],
}

/// Most arguments and environment entries of a process.
const MAX_STRINGS: usize = 16 * 1024;

/// Device nodes that every container gets; a configuration may name them again.
const DEVICES: [&str; 6] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"];

/// Adapts `spec`; also returns the kernel parameters of the pod's namespaces, which the agent itself sets.
///
/// # Errors
/// Names the first setting that is refused.
pub fn adapt(mut spec: Spec, setting: &Setting<'_>) -> Result<(Spec, Vec<(String, String)>)> {
    let root = spec.root().as_ref().ok_or_else(|| invalid("the configuration has no root"))?;
    let expected = paths::rootfs(setting.container);
    if root.path() != Path::new(&expected) {
        return Err(invalid(format!("root {}: expected {expected}", root.path().display())));
    }
    if spec.hooks().as_ref().is_some_and(|hooks| *hooks != oci_spec::runtime::Hooks::default()) {
        return Err(unsupported("hooks"));
    }
    let mut process = spec.process().clone().ok_or_else(|| invalid("the configuration has no process"))?;
    adapt_process(&mut process)?;
    let privileged = spec.linux().as_ref().is_some_and(allows_all_devices);
    confine(&mut process, privileged);
    let mounts = spec.mounts().clone().unwrap_or_default();
    mounts.iter().try_for_each(|mount| check_mount(mount, setting.volumes))?;
    let mut linux = spec.linux().clone().unwrap_or_default();
    let sysctl = adapt_linux(&mut linux, setting)?;
    spec.set_process(Some(process)).set_linux(Some(linux)).set_hooks(None).set_hostname(None);
    Ok((spec, sysctl))
}

/// Adapts a further process for a container, by the same rules.
///
/// # Errors
/// Names the first setting that is refused.
pub fn adapt_exec(mut process: Process, container: &Spec) -> Result<Process> {
    adapt_process(&mut process)?;
    confine(&mut process, container.linux().as_ref().is_some_and(allows_all_devices));
    Ok(process)
}

fn adapt_process(process: &mut Process) -> Result<()> {
    let args = process.args().as_deref().unwrap_or_default();
    let env = process.env().as_deref().unwrap_or_default();
    if args.first().is_none_or(String::is_empty) {
        return Err(invalid("the process has no command"));
    }
    if args.len() + env.len() > MAX_STRINGS {
        return Err(invalid(format!("the process has more than {MAX_STRINGS} arguments and variables")));
    }
    if args.iter().chain(env).any(|text| text.contains('\0')) {
        return Err(invalid("an argument or variable of the process contains a NUL"));
    }
    if let Some(at) = env.iter().position(|entry| entry.find('=').is_none_or(|at| at == 0)) {
        return Err(invalid(format!("variable {at} of the process is not NAME=VALUE")));
    }
    if !process.cwd().is_absolute() {
        return Err(invalid("the working directory of the process is not absolute"));
    }
    // The guest's kernel has neither.
    process.set_apparmor_profile(None).set_selinux_label(None);
    // libcontainer installs the seccomp filter early only where this is absent, and late it may not.
    if process.no_new_privileges() == Some(false) {
        process.set_no_new_privileges(None);
    }
    Ok(())
}

/// Takes from a process the capabilities that lead around the agent.
///
/// I/O ports are the machine's, and a simulated guest gets its reports through some: no container reaches them.
/// Device nodes are confined by the absence of the right to make them: `/dev` holds what the agent put there,
/// and the image's own file system is mounted `nodev`. Only a container that may use every device keeps it.
fn confine(process: &mut Process, privileged: bool) {
    let kept = |one: &Capability| match one {
        Capability::SysRawio => false,
        Capability::Mknod => privileged,
        _ => true,
    };
    let strip = |set: &Option<Capabilities>| -> Option<Capabilities> {
        set.as_ref().map(|set| set.iter().copied().filter(kept).collect())
    };
    // libcontainer takes the absence of the section for all capabilities; it means none.
    if process.capabilities().is_none() {
        let none = || Some(Capabilities::default());
        let mut sets = LinuxCapabilities::default();
        sets.set_bounding(none())
            .set_effective(none())
            .set_inheritable(none())
            .set_permitted(none())
            .set_ambient(none());
        process.set_capabilities(Some(sets));
    }
    if let Some(sets) = process.capabilities() {
        let mut stripped = LinuxCapabilities::default();
        stripped
            .set_bounding(strip(sets.bounding()))
            .set_effective(strip(sets.effective()))
            .set_inheritable(strip(sets.inheritable()))
            .set_permitted(strip(sets.permitted()))
            .set_ambient(strip(sets.ambient()));
        process.set_capabilities(Some(stripped));
    }
}

/// Whether the device rules admit everything, as those of a privileged container do.
pub fn allows_all_devices(linux: &Linux) -> bool {
    let rules = linux.resources().as_ref().and_then(|resources| resources.devices().as_ref());
    rules.is_some_and(|rules| {
        rules.iter().any(|rule| {
            let any = rule.major().is_none() && rule.minor().is_none();
            let every_type = rule.typ().is_none_or(|kind| kind.as_str() == "a");
            rule.allow() && any && every_type && rule.access().as_deref() == Some("rwm")
        })
    })
}

fn adapt_linux(linux: &mut Linux, setting: &Setting<'_>) -> Result<Vec<(String, String)>> {
    let mappings = linux.uid_mappings().iter().flatten().chain(linux.gid_mappings().iter().flatten());
    if mappings.count() > 0 {
        return Err(unsupported("user namespaces"));
    }
    if let Some(device) = linux.devices().iter().flatten().find(|device| !is_default_device(device.path())) {
        return Err(unsupported(format!("device {}", device.path().display())));
    }
    linux.set_namespaces(Some(namespaces(linux.namespaces().as_deref().unwrap_or_default(), setting)?));
    linux.set_cgroups_path(Some(Cgroup::oci_path(setting.container)));
    linux.set_mount_label(None).set_intel_rdt(None);
    let propagation = match linux.rootfs_propagation().as_deref() {
        None => None,
        Some("private" | "rprivate") => Some("private".to_owned()),
        Some("slave" | "rslave") => Some("slave".to_owned()),
        Some(other) => return Err(unsupported(format!("root propagation {other}"))),
    };
    linux.set_rootfs_propagation(propagation);
    if let Some(resources) = linux.resources_mut() {
        adapt_resources(resources)?;
    }
    let mut sysctl: Vec<(String, String)> = linux.sysctl().clone().unwrap_or_default().into_iter().collect();
    sysctl.sort_unstable();
    linux.set_sysctl(None);
    match sysctl.iter().find(|(name, _)| !is_pod_parameter(name)) {
        Some((name, _)) => Err(unsupported(format!("kernel parameter {name}"))),
        None => Ok(sysctl),
    }
}

fn is_default_device(path: &Path) -> bool {
    DEVICES.iter().any(|device| path == Path::new(device))
}

/// Parameters of the network and IPC namespaces, which belong to the pod.
fn is_pod_parameter(name: &str) -> bool {
    const IPC: [&str; 8] =
        ["msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced"];
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
    let known = name.starts_with("net.")
        || name.starts_with("fs.mqueue.")
        || name.strip_prefix("kernel.").is_some_and(|rest| IPC.contains(&rest));
    plain && known && !name.contains("..")
}

fn namespaces(requested: &[LinuxNamespace], setting: &Setting<'_>) -> Result<Vec<LinuxNamespace>> {
    use LinuxNamespaceType::{Cgroup, Ipc, Mount, Network, Pid, Time, User, Uts};
    let mut seen = HashSet::new();
    for namespace in requested {
        if !seen.insert(namespace.typ()) {
            return Err(invalid(format!("namespace {} is named twice", namespace.typ())));
        }
        match namespace.typ() {
            Network | Ipc | Uts => {}
            Mount | Cgroup | Pid if namespace.path().is_none() => {}
            Mount | Cgroup | Pid => {
                return Err(unsupported(format!("joining a {} namespace", namespace.typ())));
            }
            User | Time => return Err(unsupported(format!("{} namespaces", namespace.typ()))),
        }
    }
    let make = |kind, path: Option<&PathBuf>| {
        let builder = LinuxNamespaceBuilder::default().typ(kind);
        let builder = if let Some(path) = path { builder.path(path) } else { builder };
        builder.build().map_err(|error| invalid(error.to_string()))
    };
    Ok(vec![make(Pid, setting.pid_namespace.as_ref())?, make(Mount, None)?, make(Cgroup, None)?])
}

fn adapt_resources(resources: &mut LinuxResources) -> Result<()> {
    // The host's CPUs and memory nodes are not the guest's.
    if let Some(mut cpu) = resources.cpu().clone() {
        if cpu.realtime_period().is_some() || cpu.realtime_runtime().is_some() {
            return Err(unsupported("realtime CPU limits"));
        }
        cpu.set_cpus(None).set_mems(None);
        resources.set_cpu(Some(cpu));
    }
    if let Some(mut memory) = resources.memory().as_ref().cloned() {
        if memory.disable_oom_killer() == Some(true) {
            return Err(unsupported("disabling the OOM killer"));
        }
        // The guest never swaps, and "no limit" is how a group starts.
        memory.set_swap(None).set_swappiness(None);
        #[allow(deprecated, reason = "limits of cgroup v1, which the guest does not have")]
        memory.set_kernel(None).set_kernel_tcp(None);
        if memory.limit() == Some(-1) {
            memory.set_limit(None);
        }
        resources.set_memory(Some(memory));
    }
    if resources.network().as_ref().is_some_and(|network| network.class_id().is_some()) {
        return Err(unsupported("network classes"));
    }
    resources.set_network(None);
    if let Some(limits) = resources.hugepage_limits().clone() {
        let limits: Vec<_> = limits.into_iter().filter(|limit| limit.limit() != 0).collect();
        resources.set_hugepage_limits((!limits.is_empty()).then_some(limits));
    }
    Ok(())
}

/// Where bind mounts may come from: files that the host has sent, what the pod shares, and the volumes that the
/// same request names.
fn check_mount(mount: &Mount, volumes: &[VolumeStorage]) -> Result<()> {
    let destination = mount.destination();
    if !destination.is_absolute() {
        return Err(invalid(format!("mount at {}: expected an absolute path", destination.display())));
    }
    let options = mount.options().as_deref().unwrap_or_default();
    let bind = options.iter().any(|option| option == "bind" || option == "rbind");
    let shared = |option: &String| matches!(option.as_str(), "shared" | "rshared");
    if options.iter().any(shared) {
        return Err(unsupported(format!("shared mount at {}", destination.display())));
    }
    match mount.typ().as_deref() {
        _ if bind => check_bind(mount, volumes),
        Some("bind") => check_bind(mount, volumes),
        Some("proc" | "sysfs" | "tmpfs" | "devpts" | "mqueue" | "cgroup" | "cgroup2") => Ok(()),
        other => Err(unsupported(format!("mount of type {other:?} at {}", destination.display()))),
    }
}

/// A source is what the agent itself has made: deeper ones may lead through links that a container laid, and
/// binding follows links.
fn check_bind(mount: &Mount, volumes: &[VolumeStorage]) -> Result<()> {
    let source = mount.source().as_deref().unwrap_or(Path::new(""));
    let copied = source.parent() == Some(Path::new(paths::SHARED_CONTAINERS));
    let plain = source.components().all(|part| !matches!(part, std::path::Component::ParentDir));
    let volume = volumes.iter().any(|volume| source == Path::new(&volume.mount_point()));
    if plain && (copied || volume || source == Path::new(paths::SANDBOX_SHM)) {
        return Ok(());
    }
    let at = mount.destination().display();
    Err(invalid(format!(
        "bind mount of {} at {at}: expected a source directly below {}, {}, or a volume of the request",
        source.display(),
        paths::SHARED_CONTAINERS,
        paths::SANDBOX_SHM
    )))
}

fn invalid(message: impl Into<String>) -> AgentError {
    AgentError::Invalid(message.into())
}

fn unsupported(what: impl AsRef<str>) -> AgentError {
    AgentError::Unsupported(format!("{} in a container's configuration: not supported here", what.as_ref()))
}

#[cfg(test)]
mod tests;
