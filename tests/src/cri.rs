//! A client of the Container Runtime Interface, in the words that a kubelet uses.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hyper_util::rt::TokioIo;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, ContainerState, ContainerStats, ContainerStatsRequest,
    ContainerStatusRequest, CreateContainerRequest, DnsConfig, ExecRequest, ExecSyncRequest,
    ExecSyncResponse, ImageSpec, LinuxPodSandboxConfig, Mount, PodSandboxConfig, PodSandboxMetadata,
    PodSandboxState, PodSandboxStatusRequest, PullImageRequest, RemoveContainerRequest, RemoveImageRequest,
    RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest, StopContainerRequest,
    StopPodSandboxRequest,
};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::command::eventually;
use crate::ctr::BUSYBOX;

const SOCKET: &str = "/run/containerd/containerd.sock";
const HANDLER: &str = "uvm";
/// The node is emulated.
const TIMEOUT: Duration = Duration::from_secs(120);

/// A connection to containerd's CRI.
#[derive(Debug)]
pub struct Cri {
    runtime: Runtime,
    client: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
}

/// What a container is made of.
#[derive(Debug, Clone, Copy)]
pub struct Container<'a> {
    /// Its name in the pod; it logs to `<name>.log`.
    pub name: &'a str,
    /// Reference of its image.
    pub image: &'a str,
    /// Its command.
    pub command: &'a [&'a str],
    /// Folders of the host and where they are in the container.
    pub mounts: &'a [(&'a Path, &'a str)],
}

/// A pod sandbox.
#[derive(Debug, Clone)]
pub struct Pod {
    /// The sandbox's id.
    pub id: String,
    /// Folder of the containers' logs.
    pub logs: PathBuf,
    config: PodSandboxConfig,
}

macro_rules! call {
    ($cri:expr, $method:ident, $request:expr) => {
        call!($cri, client, $method, $request)
    };
    ($cri:expr, $service:ident, $method:ident, $request:expr) => {
        $cri.runtime
            .block_on($cri.$service.$method(tonic::Request::new($request)))
            .map(tonic::Response::into_inner)
            .with_context(|| stringify!($method))
    };
}

impl Cri {
    /// Connects.
    ///
    /// # Errors
    /// When containerd does not answer.
    pub fn connect() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        // The address is ignored: the connector below knows the socket.
        let endpoint = Endpoint::from_static("http://containerd").timeout(TIMEOUT);
        let connector =
            tower::service_fn(|_: Uri| async { UnixStream::connect(SOCKET).await.map(TokioIo::new) });
        let channel =
            runtime.block_on(endpoint.connect_with_connector(connector)).context("connect to CRI")?;
        let (client, images) = (RuntimeServiceClient::new(channel.clone()), ImageServiceClient::new(channel));
        Ok(Self { runtime, client, images })
    }

    /// `RunPodSandbox` under the handler `uvm`, logging below `logs`.
    ///
    /// # Errors
    /// What CRI answers.
    pub fn run_pod(&mut self, name: &str, logs: &Path) -> Result<Pod> {
        self.run_annotated_pod(name, logs, &[])
    }

    /// [`Cri::run_pod`] with annotations.
    ///
    /// # Errors
    /// What CRI answers.
    pub fn run_annotated_pod(
        &mut self,
        name: &str,
        logs: &Path,
        annotations: &[(&str, &str)],
    ) -> Result<Pod> {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.into(),
                uid: format!("{name}-uid"),
                namespace: "default".into(),
                attempt: 0,
            }),
            hostname: name.into(),
            log_directory: logs.display().to_string(),
            dns_config: Some(DnsConfig { servers: vec!["192.0.2.1".into()], ..DnsConfig::default() }),
            linux: Some(LinuxPodSandboxConfig::default()),
            annotations: annotations.iter().map(owned).collect(),
            ..PodSandboxConfig::default()
        };
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: HANDLER.into() };
        let id = call!(self, run_pod_sandbox, request)?.pod_sandbox_id;
        Ok(Pod { id, logs: logs.into(), config })
    }

    /// `PullImage`.
    ///
    /// # Errors
    /// What CRI answers.
    pub fn pull(&mut self, image: &str) -> Result<()> {
        let request = PullImageRequest { image: Some(image_spec(image)), ..PullImageRequest::default() };
        call!(self, images, pull_image, request)?;
        Ok(())
    }

    /// `RemoveImage`.
    ///
    /// # Errors
    /// What CRI answers.
    pub fn remove_image(&mut self, image: &str) -> Result<()> {
        call!(self, images, remove_image, RemoveImageRequest { image: Some(image_spec(image)) })?;
        Ok(())
    }

    /// `CreateContainer`: `command` in the test image, logging to `<name>.log`.
    ///
    /// # Errors
    /// What CRI answers.
    pub fn create(&mut self, pod: &Pod, name: &str, command: &[&str]) -> Result<String> {
        self.create_container(pod, &Container { name, image: BUSYBOX, command, mounts: &[] })
    }

    /// `CreateContainer`.
    ///
    /// # Errors
    /// What CRI answers.
    pub fn create_container(&mut self, pod: &Pod, container: &Container<'_>) -> Result<String> {
        let mount = |(host, inside): &(&Path, &str)| Mount {
            host_path: host.display().to_string(),
            container_path: (*inside).to_owned(),
            ..Mount::default()
        };
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: container.name.into(), attempt: 0 }),
            image: Some(image_spec(container.image)),
            command: container.command.iter().map(|word| (*word).into()).collect(),
            mounts: container.mounts.iter().map(mount).collect(),
            log_path: format!("{}.log", container.name),
            ..ContainerConfig::default()
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        Ok(call!(self, create_container, request)?.container_id)
    }

    /// `StartContainer`.
    ///
    /// # Errors
    /// What CRI answers.
    pub fn start(&mut self, container: &str) -> Result<()> {
        call!(self, start_container, StartContainerRequest { container_id: container.into() })?;
        Ok(())
    }

    /// `CreateContainer` and `StartContainer`.
    ///
    /// # Errors
    /// What CRI answers.
    pub fn run(&mut self, pod: &Pod, name: &str, command: &[&str]) -> Result<String> {
        self.run_container(pod, &Container { name, image: BUSYBOX, command, mounts: &[] })
    }

    /// [`Cri::create_container`] and `StartContainer`.
    ///
    /// # Errors
    /// What CRI answers.
    pub fn run_container(&mut self, pod: &Pod, container: &Container<'_>) -> Result<String> {
        let id = self.create_container(pod, container)?;
        self.start(&id)?;
        Ok(id)
    }

    /// `ExecSync`, which must succeed; gives standard output.
    ///
    /// # Errors
    /// What CRI answers, or what the command said.
    pub fn succeed(&mut self, container: &str, command: &[&str]) -> Result<String> {
        let answer = self.exec_sync(container, command)?;
        ensure!(answer.exit_code == 0, "{command:?}: {answer:?}");
        Ok(String::from_utf8_lossy(&answer.stdout).into_owned())
    }

    /// Waits until a container has exited; gives its exit code and reason.
    ///
    /// # Errors
    /// When it does not.
    pub fn wait(&mut self, container: &str) -> Result<(i32, String)> {
        eventually(&format!("exit of container {container}"), TIMEOUT, || {
            let request = ContainerStatusRequest { container_id: container.into(), verbose: false };
            let status = call!(self, container_status, request)?.status.context("a status")?;
            let exited = status.state == ContainerState::ContainerExited as i32;
            Ok(exited.then_some((status.exit_code, status.reason)))
        })
    }

    /// Whether the sandbox is ready.
    ///
    /// # Errors
    /// What CRI answers.
    pub fn pod_ready(&mut self, pod: &Pod) -> Result<bool> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: false };
        let status = call!(self, pod_sandbox_status, request)?.status.context("a status")?;
        Ok(status.state == PodSandboxState::SandboxReady as i32)
    }

    /// `ExecSync`.
    ///
    /// # Errors
    /// What CRI answers.
    pub fn exec_sync(&mut self, container: &str, command: &[&str]) -> Result<ExecSyncResponse> {
        let cmd = command.iter().map(|word| (*word).into()).collect();
        let timeout = i64::try_from(TIMEOUT.as_secs())?;
        call!(self, exec_sync, ExecSyncRequest { container_id: container.into(), cmd, timeout })
    }

    /// `Exec`: the address at which the streams are to be had.
    ///
    /// # Errors
    /// What CRI answers.
    pub fn exec_url(&mut self, container: &str, command: &[&str]) -> Result<String> {
        let request = ExecRequest {
            container_id: container.into(),
            cmd: command.iter().map(|word| (*word).into()).collect(),
            tty: false,
            stdin: true,
            stdout: true,
            stderr: true,
        };
        Ok(call!(self, exec, request)?.url)
    }

    /// `ContainerStats`.
    ///
    /// # Errors
    /// What CRI answers.
    pub fn stats(&mut self, container: &str) -> Result<ContainerStats> {
        let request = ContainerStatsRequest { container_id: container.into() };
        call!(self, container_stats, request)?.stats.context("stats")
    }

    /// `StopContainer`, with a second for the container to end by itself.
    ///
    /// # Errors
    /// What CRI answers.
    pub fn stop_container(&mut self, container: &str) -> Result<()> {
        call!(self, stop_container, StopContainerRequest { container_id: container.into(), timeout: 1 })?;
        Ok(())
    }

    /// `RemoveContainer`.
    ///
    /// # Errors
    /// What CRI answers.
    pub fn remove_container(&mut self, container: &str) -> Result<()> {
        call!(self, remove_container, RemoveContainerRequest { container_id: container.into() })?;
        Ok(())
    }

    /// `StopPodSandbox` and `RemovePodSandbox`.
    ///
    /// # Errors
    /// What CRI answers.
    pub fn remove_pod(&mut self, pod: &Pod) -> Result<()> {
        let id = pod.id.clone();
        call!(self, stop_pod_sandbox, StopPodSandboxRequest { pod_sandbox_id: id.clone() })?;
        call!(self, remove_pod_sandbox, RemovePodSandboxRequest { pod_sandbox_id: id })?;
        Ok(())
    }
}

fn image_spec(image: &str) -> ImageSpec {
    ImageSpec { image: image.into(), annotations: HashMap::new(), ..ImageSpec::default() }
}

/// The lines that a container wrote to `stream` (`stdout` or `stderr`), from its CRI log.
///
/// # Errors
/// When the log is missing or not in CRI's form: time, stream, tag, text.
pub fn logged(pod: &Pod, name: &str, stream: &str) -> Result<Vec<String>> {
    let path = pod.logs.join(format!("{name}.log"));
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let mut lines = Vec::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.splitn(4, ' ').collect();
        ensure!(fields.len() == 4, "log line {line:?}");
        if fields[1] == stream {
            lines.push(fields[3].to_owned());
        }
    }
    Ok(lines)
}
