//! `oci-spec`'s types to messages. What has no counterpart is left out here; [`super::encode`] finds it.

use std::collections::HashMap;
use std::path::Path;

use oci_spec::runtime as spec;
use protobuf::MessageField;

use super::OciError;
use crate::rpc::oci;

pub fn spec(from: &spec::Spec) -> Result<oci::Spec, OciError> {
    Ok(oci::Spec {
        Version: from.version().clone(),
        Process: optional(from.process(), process)?,
        Root: plain(from.root(), |root| oci::Root {
            Path: text(root.path()),
            Readonly: root.readonly().unwrap_or_default(),
            ..Default::default()
        }),
        Hostname: from.hostname().clone().unwrap_or_default(),
        Mounts: from.mounts().iter().flatten().map(mount).collect(),
        Hooks: plain(from.hooks(), hooks),
        Annotations: map(from.annotations()),
        Linux: optional(from.linux(), linux)?,
        ..Default::default()
    })
}

pub fn process(from: &spec::Process) -> Result<oci::Process, OciError> {
    let console_size = optional(&from.console_size(), |size| {
        Ok(oci::Box {
            Height: narrow("consoleSize.height", size.height())?,
            Width: narrow("consoleSize.width", size.width())?,
            ..Default::default()
        })
    })?;
    let user = from.user();
    let rlimit = |limit: &spec::PosixRlimit| oci::POSIXRlimit {
        Type: limit.typ().to_string(),
        Hard: limit.hard(),
        Soft: limit.soft(),
        ..Default::default()
    };
    Ok(oci::Process {
        Terminal: from.terminal().unwrap_or_default(),
        ConsoleSize: console_size,
        User: MessageField::some(oci::User {
            UID: user.uid(),
            GID: user.gid(),
            AdditionalGids: user.additional_gids().clone().unwrap_or_default(),
            Username: user.username().clone().unwrap_or_default(),
            ..Default::default()
        }),
        Args: list(from.args()),
        Env: list(from.env()),
        Cwd: text(from.cwd()),
        Capabilities: plain(from.capabilities(), capabilities),
        Rlimits: from.rlimits().iter().flatten().map(rlimit).collect(),
        NoNewPrivileges: from.no_new_privileges().unwrap_or_default(),
        ApparmorProfile: from.apparmor_profile().clone().unwrap_or_default(),
        OOMScoreAdj: i64::from(from.oom_score_adj().unwrap_or_default()),
        SelinuxLabel: from.selinux_label().clone().unwrap_or_default(),
        ..Default::default()
    })
}

pub fn resources(from: &spec::LinuxResources) -> Result<oci::LinuxResources, OciError> {
    let hugepage = |limit: &spec::LinuxHugepageLimit| {
        Ok(oci::LinuxHugepageLimit {
            Pagesize: limit.page_size().clone(),
            Limit: narrow("hugepageLimits.limit", limit.limit())?,
            ..Default::default()
        })
    };
    Ok(oci::LinuxResources {
        Devices: from.devices().iter().flatten().map(device_rule).collect(),
        Memory: plain(from.memory(), memory),
        CPU: plain(from.cpu(), cpu),
        Pids: plain(from.pids(), |pids| oci::LinuxPids { Limit: pids.limit(), ..Default::default() }),
        BlockIO: plain(from.block_io(), block_io),
        HugepageLimits: from.hugepage_limits().iter().flatten().map(hugepage).collect::<Result<_, _>>()?,
        Network: plain(from.network(), network),
        Unified: map(from.unified()),
        ..Default::default()
    })
}

fn mount(from: &spec::Mount) -> oci::Mount {
    oci::Mount {
        destination: text(from.destination()),
        source: from.source().as_ref().map(text).unwrap_or_default(),
        type_: from.typ().clone().unwrap_or_default(),
        options: list(from.options()),
        ..Default::default()
    }
}

fn hooks(from: &spec::Hooks) -> oci::Hooks {
    let hook = |hook: &spec::Hook| oci::Hook {
        Path: text(hook.path()),
        Args: list(hook.args()),
        Env: list(hook.env()),
        Timeout: hook.timeout().unwrap_or_default(),
        ..Default::default()
    };
    #[allow(
        deprecated,
        reason = "the protocol carries the deprecated prestart hooks, and the agent refuses them"
    )]
    let prestart = from.prestart();
    oci::Hooks {
        Prestart: prestart.iter().flatten().map(hook).collect(),
        Poststart: from.poststart().iter().flatten().map(hook).collect(),
        Poststop: from.poststop().iter().flatten().map(hook).collect(),
        ..Default::default()
    }
}

fn linux(from: &spec::Linux) -> Result<oci::Linux, OciError> {
    Ok(oci::Linux {
        UIDMappings: from.uid_mappings().iter().flatten().map(id_mapping).collect(),
        GIDMappings: from.gid_mappings().iter().flatten().map(id_mapping).collect(),
        Sysctl: map(from.sysctl()),
        Resources: optional(from.resources(), resources)?,
        CgroupsPath: from.cgroups_path().as_ref().map(text).unwrap_or_default(),
        Namespaces: from.namespaces().iter().flatten().map(namespace).collect(),
        Devices: from.devices().iter().flatten().map(device).collect(),
        Seccomp: plain(from.seccomp(), seccomp),
        RootfsPropagation: from.rootfs_propagation().clone().unwrap_or_default(),
        MaskedPaths: list(from.masked_paths()),
        ReadonlyPaths: list(from.readonly_paths()),
        MountLabel: from.mount_label().clone().unwrap_or_default(),
        IntelRdt: plain(from.intel_rdt(), |rdt| oci::LinuxIntelRdt {
            L3CacheSchema: rdt.l3_cache_schema().clone().unwrap_or_default(),
            ..Default::default()
        }),
        ..Default::default()
    })
}

fn id_mapping(from: &spec::LinuxIdMapping) -> oci::LinuxIDMapping {
    oci::LinuxIDMapping {
        HostID: from.host_id(),
        ContainerID: from.container_id(),
        Size: from.size(),
        ..Default::default()
    }
}

fn namespace(from: &spec::LinuxNamespace) -> oci::LinuxNamespace {
    let name = match from.typ() {
        spec::LinuxNamespaceType::Mount => "mount",
        spec::LinuxNamespaceType::Cgroup => "cgroup",
        spec::LinuxNamespaceType::Uts => "uts",
        spec::LinuxNamespaceType::Ipc => "ipc",
        spec::LinuxNamespaceType::User => "user",
        spec::LinuxNamespaceType::Pid => "pid",
        spec::LinuxNamespaceType::Network => "network",
        spec::LinuxNamespaceType::Time => "time",
    };
    oci::LinuxNamespace {
        Type: name.to_owned(),
        Path: from.path().as_ref().map(text).unwrap_or_default(),
        ..Default::default()
    }
}

fn device(from: &spec::LinuxDevice) -> oci::LinuxDevice {
    oci::LinuxDevice {
        Path: text(from.path()),
        Type: from.typ().as_str().to_owned(),
        Major: from.major(),
        Minor: from.minor(),
        FileMode: from.file_mode().unwrap_or_default(),
        UID: from.uid().unwrap_or_default(),
        GID: from.gid().unwrap_or_default(),
        ..Default::default()
    }
}

fn device_rule(from: &spec::LinuxDeviceCgroup) -> oci::LinuxDeviceCgroup {
    oci::LinuxDeviceCgroup {
        Allow: from.allow(),
        Type: from.typ().map(|kind| kind.as_str().to_owned()).unwrap_or_default(),
        Major: from.major().unwrap_or(super::decode::ANY_DEVICE),
        Minor: from.minor().unwrap_or(super::decode::ANY_DEVICE),
        Access: from.access().clone().unwrap_or_default(),
        ..Default::default()
    }
}

fn memory(from: &spec::LinuxMemory) -> oci::LinuxMemory {
    #[allow(deprecated, reason = "the protocol carries the kernel limits of cgroup v1")]
    let (kernel, kernel_tcp) = (from.kernel(), from.kernel_tcp());
    oci::LinuxMemory {
        Limit: from.limit().unwrap_or_default(),
        Reservation: from.reservation().unwrap_or_default(),
        Swap: from.swap().unwrap_or_default(),
        Kernel: kernel.unwrap_or_default(),
        KernelTCP: kernel_tcp.unwrap_or_default(),
        Swappiness: from.swappiness().unwrap_or_default(),
        DisableOOMKiller: from.disable_oom_killer().unwrap_or_default(),
        ..Default::default()
    }
}

fn cpu(from: &spec::LinuxCpu) -> oci::LinuxCPU {
    oci::LinuxCPU {
        Shares: from.shares().unwrap_or_default(),
        Quota: from.quota().unwrap_or_default(),
        Period: from.period().unwrap_or_default(),
        RealtimeRuntime: from.realtime_runtime().unwrap_or_default(),
        RealtimePeriod: from.realtime_period().unwrap_or_default(),
        Cpus: from.cpus().clone().unwrap_or_default(),
        Mems: from.mems().clone().unwrap_or_default(),
        ..Default::default()
    }
}

fn block_io(from: &spec::LinuxBlockIo) -> oci::LinuxBlockIO {
    let throttles = |devices: &Option<Vec<spec::LinuxThrottleDevice>>| {
        let throttle = |device: &spec::LinuxThrottleDevice| oci::LinuxThrottleDevice {
            Major: device.major(),
            Minor: device.minor(),
            Rate: device.rate(),
            ..Default::default()
        };
        devices.iter().flatten().map(throttle).collect()
    };
    let weight = |device: &spec::LinuxWeightDevice| oci::LinuxWeightDevice {
        Major: device.major(),
        Minor: device.minor(),
        Weight: device.weight().unwrap_or_default().into(),
        LeafWeight: device.leaf_weight().unwrap_or_default().into(),
        ..Default::default()
    };
    oci::LinuxBlockIO {
        Weight: from.weight().unwrap_or_default().into(),
        LeafWeight: from.leaf_weight().unwrap_or_default().into(),
        WeightDevice: from.weight_device().iter().flatten().map(weight).collect(),
        ThrottleReadBpsDevice: throttles(from.throttle_read_bps_device()),
        ThrottleWriteBpsDevice: throttles(from.throttle_write_bps_device()),
        ThrottleReadIOPSDevice: throttles(from.throttle_read_iops_device()),
        ThrottleWriteIOPSDevice: throttles(from.throttle_write_iops_device()),
        ..Default::default()
    }
}

fn network(from: &spec::LinuxNetwork) -> oci::LinuxNetwork {
    let priority = |priority: &spec::LinuxInterfacePriority| oci::LinuxInterfacePriority {
        Name: priority.name().clone(),
        Priority: priority.priority(),
        ..Default::default()
    };
    oci::LinuxNetwork {
        ClassID: from.class_id().unwrap_or_default(),
        Priorities: from.priorities().iter().flatten().map(priority).collect(),
        ..Default::default()
    }
}

fn seccomp(from: &spec::LinuxSeccomp) -> oci::LinuxSeccomp {
    let argument = |arg: &spec::LinuxSeccompArg| oci::LinuxSeccompArg {
        Index: arg.index() as u64,
        Value: arg.value(),
        ValueTwo: arg.value_two().unwrap_or_default(),
        Op: arg.op().to_string(),
        ..Default::default()
    };
    let rule = |rule: &spec::LinuxSyscall| oci::LinuxSyscall {
        Names: rule.names().clone(),
        Action: rule.action().to_string(),
        ErrnoRet: rule.errno_ret().map(oci::linux_syscall::ErrnoRet::Errnoret),
        Args: rule.args().iter().flatten().map(argument).collect(),
        ..Default::default()
    };
    oci::LinuxSeccomp {
        DefaultAction: from.default_action().to_string(),
        Architectures: from.architectures().iter().flatten().map(ToString::to_string).collect(),
        Flags: from.flags().iter().flatten().map(ToString::to_string).collect(),
        Syscalls: from.syscalls().iter().flatten().map(rule).collect(),
        ..Default::default()
    }
}

fn capabilities(from: &spec::LinuxCapabilities) -> oci::LinuxCapabilities {
    let names = |set: &Option<spec::Capabilities>| {
        let mut names: Vec<String> =
            set.iter().flatten().map(|capability| format!("CAP_{capability}")).collect();
        names.sort_unstable();
        names
    };
    oci::LinuxCapabilities {
        Bounding: names(from.bounding()),
        Effective: names(from.effective()),
        Inheritable: names(from.inheritable()),
        Permitted: names(from.permitted()),
        Ambient: names(from.ambient()),
        ..Default::default()
    }
}

fn optional<T, M>(
    from: &Option<T>,
    convert: impl Fn(&T) -> Result<M, OciError>,
) -> Result<MessageField<M>, OciError> {
    from.as_ref().map(convert).transpose().map(MessageField::from_option)
}

fn plain<T, M>(from: &Option<T>, convert: impl Fn(&T) -> M) -> MessageField<M> {
    MessageField::from_option(from.as_ref().map(convert))
}

fn list(from: &Option<Vec<String>>) -> Vec<String> {
    from.clone().unwrap_or_default()
}

fn map(from: &Option<HashMap<String, String>>) -> HashMap<String, String> {
    from.clone().unwrap_or_default()
}

/// Paths come from JSON, so they are UTF-8 and nothing is replaced here.
fn text(path: &(impl AsRef<Path> + ?Sized)) -> String {
    path.as_ref().to_string_lossy().into_owned()
}

fn narrow<T: Copy + ToString, U: TryFrom<T>>(field: &'static str, value: T) -> Result<U, OciError> {
    let range = |_| OciError::Range { field, found: value.to_string(), expected: std::any::type_name::<U>() };
    U::try_from(value).map_err(range)
}
