//! Messages to `oci-spec`'s types, by way of the JSON form, whose parser knows every name and type.

use std::collections::HashMap;

use oci_spec::runtime as spec;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::OciError;
use crate::rpc::oci;

/// "Any" as a device number in a device rule: OCI leaves the number out, proto3 would make that 0.
pub const ANY_DEVICE: i64 = -1;

pub fn spec(from: &oci::Spec) -> Result<spec::Spec, OciError> {
    if from.Windows.is_some() {
        return Err(OciError::Platform("Windows"));
    }
    if from.Solaris.is_some() {
        return Err(OciError::Platform("Solaris"));
    }
    let fields = Fields::new()
        .always("ociVersion", &from.Version)
        .set("hostname", &from.Hostname)
        .list("mounts", &from.Mounts, mount)
        .set("annotations", &from.Annotations)
        .part("process", from.Process.as_ref(), process_fields)
        .part("root", from.Root.as_ref(), |root| {
            Fields::new().always("path", &root.Path).always("readonly", &root.Readonly)
        })
        .part("hooks", from.Hooks.as_ref(), hooks)
        .part("linux", from.Linux.as_ref(), linux);
    fields.read("configuration")
}

pub fn process(from: &oci::Process) -> Result<spec::Process, OciError> {
    process_fields(from).read("process")
}

pub fn resources(from: &oci::LinuxResources) -> Result<spec::LinuxResources, OciError> {
    resource_fields(from).read("resources")
}

fn process_fields(from: &oci::Process) -> Fields {
    let user = from.User.get_or_default();
    let user = Fields::new()
        .always("uid", &user.UID)
        .always("gid", &user.GID)
        .set("additionalGids", &user.AdditionalGids)
        .set("username", &user.Username);
    Fields::new()
        .always("terminal", &from.Terminal)
        .part("consoleSize", from.ConsoleSize.as_ref(), |size| {
            Fields::new().always("height", &size.Height).always("width", &size.Width)
        })
        .always("user", &user.0)
        .always("args", &from.Args)
        .always("env", &from.Env)
        .always("cwd", &from.Cwd)
        .part("capabilities", from.Capabilities.as_ref(), |sets| {
            Fields::new()
                .always("bounding", &sets.Bounding)
                .always("effective", &sets.Effective)
                .always("inheritable", &sets.Inheritable)
                .always("permitted", &sets.Permitted)
                .always("ambient", &sets.Ambient)
        })
        .list("rlimits", &from.Rlimits, |limit| {
            Fields::new().always("type", &limit.Type).always("hard", &limit.Hard).always("soft", &limit.Soft)
        })
        .always("noNewPrivileges", &from.NoNewPrivileges)
        .set("apparmorProfile", &from.ApparmorProfile)
        .set("oomScoreAdj", &from.OOMScoreAdj)
        .set("selinuxLabel", &from.SelinuxLabel)
}

fn mount(from: &oci::Mount) -> Fields {
    Fields::new()
        .always("destination", &from.destination)
        .set("type", &from.type_)
        .set("source", &from.source)
        .set("options", &from.options)
}

fn hooks(from: &oci::Hooks) -> Fields {
    let hook = |hook: &oci::Hook| {
        Fields::new()
            .always("path", &hook.Path)
            .set("args", &hook.Args)
            .set("env", &hook.Env)
            .set("timeout", &hook.Timeout)
    };
    Fields::new().list("prestart", &from.Prestart, hook).list("poststart", &from.Poststart, hook).list(
        "poststop",
        &from.Poststop,
        hook,
    )
}

fn linux(from: &oci::Linux) -> Fields {
    let mapping = |mapping: &oci::LinuxIDMapping| {
        Fields::new()
            .always("hostID", &mapping.HostID)
            .always("containerID", &mapping.ContainerID)
            .always("size", &mapping.Size)
    };
    Fields::new()
        .list("uidMappings", &from.UIDMappings, mapping)
        .list("gidMappings", &from.GIDMappings, mapping)
        .set("sysctl", &from.Sysctl)
        .part("resources", from.Resources.as_ref(), resource_fields)
        .set("cgroupsPath", &from.CgroupsPath)
        .list("namespaces", &from.Namespaces, |namespace| {
            Fields::new().always("type", &namespace.Type).set("path", &namespace.Path)
        })
        .list("devices", &from.Devices, |device| {
            Fields::new()
                .always("path", &device.Path)
                .always("type", &device.Type)
                .always("major", &device.Major)
                .always("minor", &device.Minor)
                .set("fileMode", &device.FileMode)
                .always("uid", &device.UID)
                .always("gid", &device.GID)
        })
        .part("seccomp", from.Seccomp.as_ref(), seccomp)
        .set("rootfsPropagation", &from.RootfsPropagation)
        .set("maskedPaths", &from.MaskedPaths)
        .set("readonlyPaths", &from.ReadonlyPaths)
        .set("mountLabel", &from.MountLabel)
        .part("intelRdt", from.IntelRdt.as_ref(), |rdt| {
            Fields::new().set("l3CacheSchema", &rdt.L3CacheSchema)
        })
}

fn seccomp(from: &oci::LinuxSeccomp) -> Fields {
    let argument = |arg: &oci::LinuxSeccompArg| {
        Fields::new()
            .always("index", &arg.Index)
            .always("value", &arg.Value)
            .set("valueTwo", &arg.ValueTwo)
            .always("op", &arg.Op)
    };
    let rule = |rule: &oci::LinuxSyscall| {
        let fields = Fields::new()
            .always("names", &rule.Names)
            .always("action", &rule.Action)
            .list("args", &rule.Args, argument);
        match rule.ErrnoRet {
            Some(oci::linux_syscall::ErrnoRet::Errnoret(errno)) => fields.always("errnoRet", &errno),
            None => fields,
        }
    };
    Fields::new()
        .always("defaultAction", &from.DefaultAction)
        .set("architectures", &from.Architectures)
        .set("flags", &from.Flags)
        .list("syscalls", &from.Syscalls, rule)
}

fn resource_fields(from: &oci::LinuxResources) -> Fields {
    Fields::new()
        .list("devices", &from.Devices, device_rule)
        .part("memory", from.Memory.as_ref(), |memory| {
            Fields::new()
                .set("limit", &memory.Limit)
                .set("reservation", &memory.Reservation)
                .set("swap", &memory.Swap)
                .set("kernel", &memory.Kernel)
                .set("kernelTCP", &memory.KernelTCP)
                .set("swappiness", &memory.Swappiness)
                .set("disableOOMKiller", &memory.DisableOOMKiller)
        })
        .part("cpu", from.CPU.as_ref(), |cpu| {
            Fields::new()
                .set("shares", &cpu.Shares)
                .set("quota", &cpu.Quota)
                .set("period", &cpu.Period)
                .set("realtimeRuntime", &cpu.RealtimeRuntime)
                .set("realtimePeriod", &cpu.RealtimePeriod)
                .set("cpus", &cpu.Cpus)
                .set("mems", &cpu.Mems)
        })
        .part("pids", from.Pids.as_ref(), |pids| Fields::new().always("limit", &pids.Limit))
        .part("blockIO", from.BlockIO.as_ref(), block_io)
        .list("hugepageLimits", &from.HugepageLimits, |limit| {
            Fields::new().always("pageSize", &limit.Pagesize).always("limit", &limit.Limit)
        })
        .part("network", from.Network.as_ref(), |network| {
            Fields::new().set("classID", &network.ClassID).list(
                "priorities",
                &network.Priorities,
                |priority| {
                    Fields::new().always("name", &priority.Name).always("priority", &priority.Priority)
                },
            )
        })
        .set("unified", &from.Unified)
}

fn device_rule(from: &oci::LinuxDeviceCgroup) -> Fields {
    let number = |number: i64| (number != ANY_DEVICE).then_some(number);
    Fields::new()
        .always("allow", &from.Allow)
        .set("type", &from.Type)
        .set("access", &from.Access)
        .always("major", &number(from.Major))
        .always("minor", &number(from.Minor))
}

fn block_io(from: &oci::LinuxBlockIO) -> Fields {
    let throttle = |device: &oci::LinuxThrottleDevice| {
        Fields::new()
            .always("major", &device.Major)
            .always("minor", &device.Minor)
            .always("rate", &device.Rate)
    };
    Fields::new()
        .set("weight", &from.Weight)
        .set("leafWeight", &from.LeafWeight)
        .list("weightDevice", &from.WeightDevice, |device| {
            Fields::new()
                .always("major", &device.Major)
                .always("minor", &device.Minor)
                .set("weight", &device.Weight)
                .set("leafWeight", &device.LeafWeight)
        })
        .list("throttleReadBpsDevice", &from.ThrottleReadBpsDevice, throttle)
        .list("throttleWriteBpsDevice", &from.ThrottleWriteBpsDevice, throttle)
        .list("throttleReadIOPSDevice", &from.ThrottleReadIOPSDevice, throttle)
        .list("throttleWriteIOPSDevice", &from.ThrottleWriteIOPSDevice, throttle)
}

/// The fields of one JSON object, under the names of the OCI specification.
struct Fields(Map<String, Value>);

impl Fields {
    fn new() -> Self {
        Self(Map::new())
    }

    /// A field whose zero is a value of its own.
    fn always<T: Serialize>(mut self, name: &str, value: &T) -> Self {
        self.0.insert(name.to_owned(), json!(value));
        self
    }

    /// A field that the protocol does not set when it is zero or empty.
    fn set<T: Serialize + Unset>(self, name: &str, value: &T) -> Self {
        if value.is_unset() { self } else { self.always(name, value) }
    }

    fn list<T>(self, name: &str, items: &[T], convert: impl Fn(&T) -> Fields) -> Self {
        if items.is_empty() {
            return self;
        }
        let items: Vec<Value> = items.iter().map(|item| Value::Object(convert(item).0)).collect();
        self.always(name, &items)
    }

    fn part<T>(self, name: &str, message: Option<&T>, convert: impl Fn(&T) -> Fields) -> Self {
        match message {
            Some(message) => self.always(name, &convert(message).0),
            None => self,
        }
    }

    fn read<T: DeserializeOwned>(self, what: &'static str) -> Result<T, OciError> {
        serde_json::from_value(Value::Object(self.0)).map_err(|source| OciError::Json { what, source })
    }
}

/// proto3's "not set".
trait Unset {
    fn is_unset(&self) -> bool;
}

macro_rules! unset {
    ($($kind:ty: $test:expr;)*) => {
        $(impl Unset for $kind {
            fn is_unset(&self) -> bool {
                let test: fn(&Self) -> bool = $test;
                test(self)
            }
        })*
    };
}

unset! {
    bool: |set| !set;
    u32: |number| *number == 0;
    u64: |number| *number == 0;
    i64: |number| *number == 0;
    String: |text| text.is_empty();
    Vec<String>: |items| items.is_empty();
    Vec<u32>: |items| items.is_empty();
    HashMap<String, String>: |fields| fields.is_empty();
}
