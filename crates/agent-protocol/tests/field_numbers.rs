//! The wire numbers of the protocol: each message with one field set has exactly these bytes.
//!
//! The expected bytes are written by hand from the protocol's tables: `(number << 3) | wire type`, then the value.

use agent_protocol::rpc::{agent, events, evidence, health, oci, types};
use protobuf::{Message, MessageField};

/// A string field of number `number` (below 16) holding "x".
fn text(number: u8) -> Vec<u8> {
    vec![number << 3 | 2, 1, b'x']
}

/// A varint field of number `number` (below 16) holding 1.
fn one(number: u8) -> Vec<u8> {
    vec![number << 3, 1]
}

/// An embedded empty message in field `number` (below 16).
fn empty(number: u8) -> Vec<u8> {
    vec![number << 3 | 2, 0]
}

fn x() -> String {
    "x".to_owned()
}

fn some<M: Message>() -> MessageField<M> {
    MessageField::some(M::new())
}

macro_rules! wire {
    ($($($message:ident)::+ { $field:ident: $value:expr } => $bytes:expr;)*) => {
        $({
            let message = $($message)::+ { $field: $value, ..Default::default() };
            let name = concat!(stringify!($($message)::+), ".", stringify!($field));
            assert_eq!(message.write_to_bytes().unwrap(), $bytes, "{name}");
        })*
    };
}

#[test]
fn container_requests() {
    wire! {
        agent::CreateContainerRequest { container_id: x() } => text(1);
        agent::CreateContainerRequest { exec_id: x() } => text(2);
        agent::CreateContainerRequest { string_user: some() } => empty(3);
        agent::CreateContainerRequest { devices: vec![agent::Device::new()] } => empty(4);
        agent::CreateContainerRequest { storages: vec![agent::Storage::new()] } => empty(5);
        agent::CreateContainerRequest { OCI: some() } => empty(6);
        agent::CreateContainerRequest { sandbox_pidns: true } => one(7);
        agent::CreateContainerRequest { shared_mounts: vec![agent::SharedMount::new()] } => empty(8);
        agent::CreateContainerRequest { stdin_port: Some(1) } => one(9);
        agent::CreateContainerRequest { stdout_port: Some(1) } => one(10);
        agent::CreateContainerRequest { stderr_port: Some(1) } => one(11);
        agent::StartContainerRequest { container_id: x() } => text(1);
        agent::RemoveContainerRequest { container_id: x() } => text(1);
        agent::RemoveContainerRequest { timeout: 1 } => one(2);
        agent::ExecProcessRequest { exec_id: x() } => text(2);
        agent::ExecProcessRequest { process: some() } => empty(4);
        agent::ExecProcessRequest { stderr_port: Some(1) } => one(7);
        agent::SignalProcessRequest { exec_id: x() } => text(2);
        agent::SignalProcessRequest { signal: 1 } => one(3);
        agent::WaitProcessRequest { exec_id: x() } => text(2);
        agent::WaitProcessResponse { status: 1 } => one(1);
        agent::UpdateContainerRequest { resources: some() } => empty(2);
    }
}

#[test]
fn streams_and_files() {
    wire! {
        agent::WriteStreamRequest { data: b"x".to_vec() } => text(3);
        agent::WriteStreamResponse { len: 1 } => one(1);
        agent::ReadStreamRequest { len: 1 } => one(3);
        agent::ReadStreamResponse { data: b"x".to_vec() } => text(1);
        agent::CloseStdinRequest { exec_id: x() } => text(2);
        agent::TtyWinResizeRequest { row: 1 } => one(3);
        agent::TtyWinResizeRequest { column: 1 } => one(4);
        agent::CopyFileRequest { path: x() } => text(1);
        agent::CopyFileRequest { file_size: 1 } => one(2);
        agent::CopyFileRequest { file_mode: 1 } => one(3);
        agent::CopyFileRequest { dir_mode: 1 } => one(4);
        agent::CopyFileRequest { uid: 1 } => one(5);
        agent::CopyFileRequest { gid: 1 } => one(6);
        agent::CopyFileRequest { offset: 1 } => one(7);
        agent::CopyFileRequest { data: b"x".to_vec() } => text(8);
        agent::Storage { driver: x() } => text(1);
        agent::Storage { driver_options: vec![x()] } => text(2);
        agent::Storage { source: x() } => text(3);
        agent::Storage { fstype: x() } => text(4);
        agent::Storage { options: vec![x()] } => text(5);
        agent::Storage { mount_point: x() } => text(6);
        agent::Storage { fs_group: some() } => empty(7);
        agent::Storage { shared: true } => one(8);
        agent::FSGroup { group_id: 1 } => one(2);
        agent::Device { options: vec![x()] } => text(5);
        agent::SharedMount { dst_path: x() } => text(5);
        agent::StringUser { additionalGids: vec![x()] } => text(3);
    }
}

#[test]
fn sandbox_and_machine() {
    wire! {
        agent::CreateSandboxRequest { hostname: x() } => text(1);
        agent::CreateSandboxRequest { dns: vec![x()] } => text(2);
        agent::CreateSandboxRequest { storages: vec![agent::Storage::new()] } => empty(3);
        agent::CreateSandboxRequest { sandbox_pidns: true } => one(4);
        agent::CreateSandboxRequest { sandbox_id: x() } => text(5);
        agent::CreateSandboxRequest { guest_hook_path: x() } => text(6);
        agent::CreateSandboxRequest { kernel_modules: vec![agent::KernelModule::new()] } => empty(7);
        agent::ReseedRandomDevRequest { data: b"x".to_vec() } => text(2);
        agent::SetGuestDateTimeRequest { Sec: 1 } => one(1);
        agent::SetGuestDateTimeRequest { Usec: 1 } => one(2);
        agent::GuestDetailsResponse { agent_details: some() } => empty(2);
        agent::GuestDetailsResponse { support_mem_hotplug_probe: true } => one(3);
        agent::AgentDetails { supports_seccomp: true } => one(5);
        agent::AgentDetails { extra_features: vec![x()] } => text(6);
        agent::OOMEvent { container_id: x() } => text(1);
        agent::SetPolicyRequest { policy: x() } => text(1);
        agent::Metrics { metrics: x() } => text(1);
        health::CheckRequest { service: x() } => text(1);
        health::VersionCheckResponse { agent_version: x() } => text(2);
        types::Interface { raw_flags: 1 } => one(8);
        types::Route { flags: 1 } => one(7);
        types::ARPNeighbor { flags: 1 } => one(5);
    }
}

#[test]
fn statistics() {
    wire! {
        agent::StatsContainerResponse { cgroup_stats: some() } => empty(1);
        agent::CgroupStats { cpu_stats: some() } => empty(1);
        agent::CgroupStats { memory_stats: some() } => empty(2);
        agent::CgroupStats { pids_stats: some() } => empty(3);
        agent::CpuUsage { usage_in_usermode: 1 } => one(4);
        agent::ThrottlingData { throttled_time: 1 } => one(3);
        agent::MemoryStats { usage: some() } => empty(2);
        agent::MemoryData { limit: 1 } => one(4);
        agent::PidsStats { limit: 1 } => one(2);
        agent::NetworkStats { tx_dropped: 1 } => one(9);
    }
}

#[test]
fn oci_configuration() {
    wire! {
        oci::Spec { Version: x() } => text(1);
        oci::Spec { Process: some() } => empty(2);
        oci::Spec { Root: some() } => empty(3);
        oci::Spec { Hostname: x() } => text(4);
        oci::Spec { Mounts: vec![oci::Mount::new()] } => empty(5);
        oci::Spec { Hooks: some() } => empty(6);
        oci::Spec { Linux: some() } => empty(8);
        oci::Process { Args: vec![x()] } => text(4);
        oci::Process { Env: vec![x()] } => text(5);
        oci::Process { Cwd: x() } => text(6);
        oci::Process { Capabilities: some() } => empty(7);
        oci::Process { NoNewPrivileges: true } => one(9);
        oci::Process { OOMScoreAdj: 1 } => one(11);
        oci::Process { SelinuxLabel: x() } => text(12);
        oci::User { Username: x() } => text(4);
        oci::LinuxCapabilities { Ambient: vec![x()] } => text(5);
        oci::Mount { type_: x() } => text(3);
        oci::Root { Readonly: true } => one(2);
        oci::Linux { Resources: some() } => empty(4);
        oci::Linux { CgroupsPath: x() } => text(5);
        oci::Linux { Seccomp: some() } => empty(8);
        oci::Linux { MaskedPaths: vec![x()] } => text(10);
        oci::Linux { ReadonlyPaths: vec![x()] } => text(11);
        oci::Linux { IntelRdt: some() } => empty(13);
        oci::LinuxResources { Memory: some() } => empty(2);
        oci::LinuxResources { Network: some() } => empty(7);
        oci::LinuxMemory { Limit: 1 } => one(1);
        oci::LinuxCPU { Quota: 1 } => one(2);
        oci::LinuxDeviceCgroup { Access: x() } => text(5);
        oci::LinuxSyscall { ErrnoRet: Some(oci::linux_syscall::ErrnoRet::Errnoret(1)) } => one(3);
        oci::LinuxSeccompArg { Op: x() } => text(4);
    }
}

#[test]
fn requests_for_evidence() {
    wire! {
        evidence::ReportRequest { nonce: b"x".to_vec() } => text(1);
        evidence::ReportResponse { provider: x() } => text(1);
        evidence::ReportResponse { report: b"x".to_vec() } => text(2);
        evidence::ReportResponse { certificates: b"x".to_vec() } => text(3);
    }
}

#[test]
fn events() {
    wire! {
        events::Corruption { root_hash: x() } => text(1);
        events::Corruption { block: 1 } => one(2);
        events::Corruption { in_tree: true } => one(3);
        events::Corruption { containers: vec![x()] } => text(4);
    }
}
