//! A utility VM without a shim: whoever starts it is the host, and tells the agent what it likes.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use agent_protocol::handshake::{Host, MAX_LEN};
use agent_protocol::rpc::agent::{
    CreateContainerRequest, CreateSandboxRequest, ReadStreamRequest, RemoveContainerRequest,
    StartContainerRequest, Storage, WaitProcessRequest,
};
use agent_protocol::rpc::agent_ttrpc::AgentServiceClient;
use agent_protocol::tee::Tee as GuestTee;
use agent_protocol::{AGENT_PORT, HANDSHAKE_PORT, MAX_STREAM_CHUNK, oci, paths};
use anyhow::{Context as _, Result, anyhow, ensure};
use launch::control::Segment;
use launch::layout::SLOT_LAYERS;
use launch::plan::{HostData, Hypervisor, LaunchPlan, Tee};
use protobuf::MessageField;
use serde_json::json;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context::{Context, with_duration};
use vmm_client::Vmm;

use crate::case::Bed;
use crate::command::eventually;

/// The node is emulated.
const LIMIT: Duration = Duration::from_secs(120);

/// A machine whose agent serves and whose pod exists. It ends when this is dropped.
pub struct OwnMachine {
    // Dropped first, while its socket is still there.
    vmm: Vmm,
    client: AgentServiceClient,
    runtime: Runtime,
    _folder: TempDir,
}

impl std::fmt::Debug for OwnMachine {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "OwnMachine({})", self.vmm.pid())
    }
}

impl OwnMachine {
    /// Boots the product's image, which no processor protects, and makes the pod.
    ///
    /// # Errors
    /// When the machine does not start, or its agent does not serve.
    pub fn start(bed: &Bed) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (product, vsock) = (bed.product.canonicalize()?, folder.path().join("vsock"));
        let listener = UnixListener::bind(folder.path().join(format!("vsock_{HANDSHAKE_PORT}")))?;
        let plan = LaunchPlan {
            image: product.join("uvm.igvm"),
            rootfs: product.join("rootfs.img"),
            vcpus: 1,
            memory_mib: 256,
            tee: Tee::None,
            host_data: HostData::default(),
            hypervisor: Hypervisor::Auto,
            vsock: vsock.clone(),
            console: None,
        };
        let vmm = Vmm::spawn(&product.join("bin/uvm-vmm"), &plan, None, |_| {})?;
        agree(&listener)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let stream = connect(&vsock)?;
        stream.set_nonblocking(true)?;
        let client = runtime.block_on(async {
            let stream = tokio::net::UnixStream::from_std(stream)?;
            anyhow::Ok(AgentServiceClient::new(Client::new(Socket::from(stream))))
        })?;
        let request = CreateSandboxRequest { sandbox_id: "pod".to_owned(), ..Default::default() };
        runtime.block_on(client.create_sandbox(limit(), &request)).map_err(|error| words(&error))?;
        Ok(Self { vmm, client, runtime, _folder: folder })
    }

    /// Shows a whole file on the layers' disk from byte `at` on.
    ///
    /// # Errors
    /// When the machine monitor refuses.
    pub fn attach(&self, at: u64, file: &Path) -> Result<()> {
        let file = File::open(file)?;
        let segment = Segment { offset: 0, length: file.metadata()?.len() };
        Ok(self.vmm.attach(SLOT_LAYERS, at, &[(file, segment)])?)
    }

    /// Asks the agent for a container with these storages that runs `command`.
    ///
    /// # Errors
    /// The agent's words.
    pub fn create(&self, id: &str, storages: Vec<Storage>, command: &[&str]) -> Result<()> {
        let spec = oci::parse_config(config(id, command).to_string().as_bytes())?;
        let request = CreateContainerRequest {
            container_id: id.to_owned(),
            exec_id: id.to_owned(),
            storages,
            OCI: MessageField::some(oci::encode(&spec)?),
            ..Default::default()
        };
        let answer = self.runtime.block_on(self.client.create_container(limit(), &request));
        answer.map(drop).map_err(|error| words(&error))
    }

    /// Runs a created container to its end, and removes it; gives its exit status and what it wrote to standard
    /// output.
    ///
    /// # Errors
    /// The agent's words.
    pub fn finish(&self, id: &str) -> Result<(i32, Vec<u8>)> {
        let (container_id, exec_id) = (id.to_owned(), id.to_owned());
        self.runtime
            .block_on(async {
                let start =
                    StartContainerRequest { container_id: container_id.clone(), ..Default::default() };
                self.client.start_container(limit(), &start).await?;
                let read = ReadStreamRequest {
                    container_id: container_id.clone(),
                    exec_id: exec_id.clone(),
                    len: u32::try_from(MAX_STREAM_CHUNK).unwrap_or(u32::MAX),
                    ..Default::default()
                };
                let mut output = Vec::new();
                loop {
                    let data = self.client.read_stdout(limit(), &read).await?.data;
                    if data.is_empty() {
                        break;
                    }
                    output.extend(data);
                }
                let wait =
                    WaitProcessRequest { container_id: container_id.clone(), exec_id, ..Default::default() };
                let status = self.client.wait_process(limit(), &wait).await?.status;
                let remove = RemoveContainerRequest { container_id, timeout: 10, ..Default::default() };
                self.client.remove_container(limit(), &remove).await?;
                Ok((status, output))
            })
            .map_err(|error: ttrpc::Error| words(&error))
    }
}

fn limit() -> Context {
    with_duration(LIMIT)
}

fn words(error: &ttrpc::Error) -> anyhow::Error {
    match error {
        ttrpc::Error::RpcStatus(status) => anyhow!("{}", status.message),
        other => anyhow!("the connection to the agent broke: {other}"),
    }
}

/// The host's end of the handshake.
fn agree(listener: &UnixListener) -> Result<()> {
    listener.set_nonblocking(true)?;
    let mut stream = eventually("the guest calls", LIMIT, || match listener.accept() {
        Ok((stream, _)) => Ok(Some(stream)),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error.into()),
    })?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let host = Host::new(GuestTee::None, HostData::default().0);
    let mut lines = BufReader::new(stream.try_clone()?);
    let answer = host.answer(&line(&mut lines)?)?;
    stream.write_all(answer.as_bytes())?;
    Host::verdict(&line(&mut lines)?)?;
    Ok(())
}

fn line(from: &mut BufReader<UnixStream>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(u64::try_from(MAX_LEN)? + 1).read_until(b'\n', &mut bytes)?;
    Ok(bytes)
}

/// A stream to the agent through hybrid vsock.
fn connect(vsock: &Path) -> Result<UnixStream> {
    let mut stream = UnixStream::connect(vsock).with_context(|| vsock.display().to_string())?;
    stream.write_all(format!("CONNECT {AGENT_PORT}\n").as_bytes())?;
    // Byte by byte: what follows the line is the agent's.
    let (mut answer, mut byte) = (Vec::new(), [0]);
    while byte != *b"\n" {
        stream.read_exact(&mut byte)?;
        answer.extend(byte);
    }
    ensure!(answer.starts_with(b"OK "), "expected OK, found {:?}", String::from_utf8_lossy(&answer));
    Ok(stream)
}

/// The least that a container needs.
fn config(id: &str, command: &[&str]) -> serde_json::Value {
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": { "uid": 0, "gid": 0 }, "args": command, "cwd": "/", "env": ["PATH=/bin"],
            "noNewPrivileges": false
        },
        "root": { "path": paths::rootfs(id) },
        "mounts": [
            {
                "destination": "/proc", "type": "proc", "source": "proc",
                "options": ["nosuid", "noexec", "nodev"]
            },
            {
                "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]
            }
        ],
        "linux": {
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "cgroupsPath": "/pod",
            "namespaces": [
                { "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" },
                { "type": "network" }
            ]
        }
    })
}
