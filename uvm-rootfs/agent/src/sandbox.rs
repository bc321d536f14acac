//! The pod: the one sandbox of this guest and its containers.
//!
//! The pod's network, IPC and UTS namespaces are the agent's own. A sandbox is created once. When something that
//! was mounted cannot be undone, the sandbox is *inconsistent*: what is mounted no longer follows from the
//! containers that exist, so no further container is created, until the guest ends.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agent_protocol::rpc::agent::{
    CreateContainerRequest, CreateSandboxRequest, SetGuestDateTimeRequest, Storage,
};
use agent_protocol::storage::{self, ScratchStorage};
use agent_protocol::{id, paths};
use rustix::time::{ClockId, Timespec, clock_settime};

use crate::container::{Container, Services};
use crate::error::{AgentError, Context, Result};
use crate::layers::mount;
use crate::note;
use crate::runtime::{Created, Task};
use crate::scratch;
use crate::volumes::WritableSpace;

/// Longest host name in bytes (Linux).
const MAX_HOSTNAME: usize = 64;
/// Most lines and bytes of resolver settings.
const MAX_DNS: usize = 4096;
/// Size of the pod's shared memory when the request does not say, in bytes.
const SHM_SIZE: u64 = 64 * 1024 * 1024;

/// The pod.
#[derive(Debug)]
pub struct Sandbox {
    services: Services,
    state: Mutex<State>,
    /// Serialises what must not interleave with a container's creation: its checks and its effects are one step.
    pub(crate) files: tokio::sync::RwLock<()>,
    pid_namespace: tokio::sync::Mutex<Option<Created>>,
}

#[derive(Debug, Default)]
struct State {
    created: bool,
    clock_set: bool,
    /// Why no further container may be created.
    inconsistent: Option<String>,
    containers: HashMap<String, Slot>,
}

#[derive(Debug, Clone)]
enum Slot {
    /// The name is taken by a creation in progress.
    Creating,
    Present(Arc<Container>),
}

impl Sandbox {
    /// The guest before its pod is created.
    #[must_use]
    pub fn new(services: Services) -> Self {
        Self {
            services,
            state: Mutex::default(),
            files: tokio::sync::RwLock::new(()),
            pid_namespace: tokio::sync::Mutex::new(None),
        }
    }

    /// What containers use.
    #[must_use]
    pub fn services(&self) -> &Services {
        &self.services
    }

    /// Creates the pod: host name, resolver settings, shared memory, scratch space.
    ///
    /// # Errors
    /// If it exists, or the request asks for what pods here do not have.
    pub async fn create(&self, request: &CreateSandboxRequest) -> Result<()> {
        if !request.sandbox_id.is_empty() {
            id::check(&request.sandbox_id)?;
        }
        let refuse =
            |what: &str| Err(AgentError::Unsupported(format!("CreateSandbox with {what}: not supported")));
        if !request.guest_hook_path.is_empty() {
            return refuse("guest_hook_path");
        }
        if !request.kernel_modules.is_empty() {
            return refuse("kernel_modules");
        }
        let name = host_name(&request.hostname)?;
        let dns = request.dns.join("\n");
        if dns.len() > MAX_DNS || dns.contains('\0') {
            return Err(AgentError::Invalid(format!(
                "resolver settings of {} bytes: expected at most {MAX_DNS}",
                dns.len()
            )));
        }
        let storages = Storages::parse(&request.storages)?;
        // A container that is asked for meanwhile waits until the pod is whole.
        let _files = self.files.write().await;
        if std::mem::replace(&mut self.state().created, true) {
            return Err(AgentError::Exists("the sandbox exists already".to_owned()));
        }
        if let Some(name) = name {
            rustix::system::sethostname(name.as_bytes()).doing(|| "set the host name".to_owned())?;
        }
        fs::create_dir_all(paths::SANDBOX_SHM).doing(|| format!("make {}", paths::SANDBOX_SHM))?;
        let options = [("mode", "1777".to_owned()), ("size", storages.shared_memory.to_string())];
        mount::tmpfs(Path::new(paths::SANDBOX_SHM), &options)?;
        if let Some(storage) = storages.scratch {
            scratch::open(storage).await?;
            let space = WritableSpace::Directory(PathBuf::from(paths::SCRATCH));
            self.services.storage.use_space(space).await?;
        }
        let resolver = Path::new(paths::SANDBOX).join("resolv.conf");
        fs::write(&resolver, dns).doing(|| format!("write {}", resolver.display()))
    }

    /// Creates a container.
    ///
    /// # Errors
    /// If the sandbox does not exist or is inconsistent, the name is taken, or the container cannot be created.
    pub async fn create_container(&self, request: CreateContainerRequest) -> Result<()> {
        let id = request.container_id.clone();
        id::check(&id)?;
        if !request.exec_id.is_empty() && request.exec_id != id {
            return Err(AgentError::Invalid(format!(
                "exec_id {:?}: expected the container's id",
                request.exec_id
            )));
        }
        self.reserve(&id)?;
        let _files = self.files.write().await;
        let result = match self.pid_namespace(request.sandbox_pidns).await {
            Ok(namespace) => Container::create(self.services.clone(), request, namespace).await,
            Err(error) => Err(crate::container::CreateFailure { error, left_behind: None }),
        };
        let mut state = self.state();
        match result {
            Ok(container) => {
                state.containers.insert(id, Slot::Present(container));
                Ok(())
            }
            Err(failure) => {
                state.containers.remove(&id);
                if let Some(left) = failure.left_behind {
                    note!("container {id} could not be undone: {left}");
                    state
                        .inconsistent
                        .get_or_insert(format!("what was done for container {id} remains: {left}"));
                }
                Err(failure.error)
            }
        }
    }

    /// Takes the name, so that two creations cannot share it.
    fn reserve(&self, id: &str) -> Result<()> {
        let mut state = self.state();
        if !state.created {
            return Err(AgentError::State("the sandbox has not been created".to_owned()));
        }
        if let Some(reason) = &state.inconsistent {
            return Err(AgentError::State(format!("no further containers: {reason}")));
        }
        if state.containers.contains_key(id) {
            return Err(AgentError::Exists(format!("container {id} exists already")));
        }
        state.containers.insert(id.to_owned(), Slot::Creating);
        Ok(())
    }

    /// The namespace that containers share, made when the first one asks for it.
    async fn pid_namespace(&self, shared: bool) -> Result<Option<PathBuf>> {
        if !shared {
            return Ok(None);
        }
        let mut namespace = self.pid_namespace.lock().await;
        let created = match namespace.as_ref() {
            Some(created) => created,
            None => namespace.insert(self.services.runtime.create(&Task::PidNamespace, None).await?),
        };
        match created.exit.now() {
            None => Ok(Some(PathBuf::from(format!("/proc/{}/ns/pid", created.pid.as_raw_nonzero())))),
            Some(status) => {
                Err(AgentError::State(format!("the pod's PID namespace has ended with {status}")))
            }
        }
    }

    /// Finds a container.
    ///
    /// # Errors
    /// If there is none of that name, or it is still being created.
    pub fn container(&self, id: &str) -> Result<Arc<Container>> {
        match self.state().containers.get(id) {
            Some(Slot::Present(container)) => Ok(container.clone()),
            Some(Slot::Creating) => Err(AgentError::State(format!("container {id} is being created"))),
            None => Err(AgentError::NotFound(format!("no container {id:?}"))),
        }
    }

    /// Ends and removes a container.
    ///
    /// # Errors
    /// If its processes do not end in time (try again), or something cannot be undone (the sandbox is then
    /// inconsistent).
    pub async fn remove_container(&self, id: &str, limit: Option<Duration>) -> Result<()> {
        let container = self.container(id)?;
        let result = container.remove(limit, &self.files).await;
        let mut state = self.state();
        match &result {
            Ok(()) => {
                state.containers.remove(id);
            }
            Err(AgentError::State(_)) => {}
            Err(error) => {
                note!("container {id} could not be removed: {error}");
                state
                    .inconsistent
                    .get_or_insert(format!("what was done for container {id} remains: {error}"));
            }
        }
        result
    }

    /// Sets the clock, once and before the first container: it is good for logs, nothing else.
    ///
    /// # Errors
    /// If it is too late for that, or the time is none.
    pub fn set_clock(&self, request: &SetGuestDateTimeRequest) -> Result<()> {
        let mut state = self.state();
        if state.clock_set || !state.containers.is_empty() {
            return Err(AgentError::State("the clock is set once, before the first container".to_owned()));
        }
        if request.Sec < 0 || !(0..1_000_000).contains(&request.Usec) {
            return Err(AgentError::Invalid(format!(
                "time {} s {} µs: expected a time since 1970",
                request.Sec, request.Usec
            )));
        }
        let time = Timespec { tv_sec: request.Sec, tv_nsec: request.Usec * 1000 };
        clock_settime(ClockId::Realtime, time).doing(|| "set the clock".to_owned())?;
        state.clock_set = true;
        Ok(())
    }

    /// Ends every process of every container; the guest is about to end.
    pub fn kill_all(&self) {
        for slot in self.state().containers.values() {
            if let Slot::Present(container) = slot
                && let Err(error) = container.group().kill()
            {
                note!("{error}");
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn host_name(name: &str) -> Result<Option<&str>> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    match name {
        "" => Ok(None),
        _ if name.len() <= MAX_HOSTNAME && name.bytes().all(allowed) => Ok(Some(name)),
        _ => Err(AgentError::Invalid(format!(
            "host name of {} bytes: expected at most {MAX_HOSTNAME} letters, digits, '-', '.'",
            name.len()
        ))),
    }
}

/// The storages of a CreateSandbox request.
#[derive(Debug, PartialEq, Eq)]
struct Storages {
    /// Bytes of the pod's shared memory.
    shared_memory: u64,
    scratch: Option<ScratchStorage>,
}

impl Storages {
    /// A request may carry Kata's storage for shared memory, and one for scratch space, and no other.
    fn parse(storages: &[Storage]) -> Result<Self> {
        let (mut memory, mut scratch) = (None, None);
        for storage in storages {
            let again = match storage.driver.as_str() {
                storage::DRIVER_EPHEMERAL => memory.replace(shared_memory(storage)?).is_some(),
                storage::DRIVER_BLOCK => scratch.replace(ScratchStorage::parse(storage)?).is_some(),
                other => {
                    let message = format!(
                        "CreateSandbox with a storage of driver {other:?} at {:?}: only shared memory and \
                        scratch space",
                        storage.mount_point
                    );
                    return Err(AgentError::Unsupported(message));
                }
            };
            if again {
                let message =
                    format!("CreateSandbox with two storages of driver {}: expected one", storage.driver);
                return Err(AgentError::Invalid(message));
            }
        }
        Ok(Self { shared_memory: memory.unwrap_or(SHM_SIZE), scratch })
    }
}

/// The size that Kata's storage for the pod's shared memory asks for.
fn shared_memory(storage: &Storage) -> Result<u64> {
    let expected = storage.source == "shm"
        && storage.fstype == "tmpfs"
        && storage.mount_point == paths::SANDBOX_SHM
        && storage.driver_options.is_empty()
        && storage.fs_group.is_none();
    if !expected {
        return Err(AgentError::Unsupported(format!(
            "CreateSandbox with a tmpfs at {:?}: only shared memory",
            storage.mount_point
        )));
    }
    let mut size = SHM_SIZE;
    for option in &storage.options {
        match option.split_once('=') {
            None if matches!(option.as_str(), "noexec" | "nosuid" | "nodev") => {}
            Some(("mode", "1777")) => {}
            Some(("size", value)) if value.bytes().all(|byte| byte.is_ascii_digit()) => {
                size = value
                    .parse()
                    .map_err(|_| AgentError::Invalid(format!("shared memory of {value} bytes")))?;
            }
            _ => return Err(AgentError::Unsupported(format!("shared memory option {option:?}"))),
        }
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names() {
        assert_eq!(host_name("").unwrap(), None);
        assert_eq!(host_name("pod-1.x").unwrap(), Some("pod-1.x"));
        assert!(host_name("a b").is_err() && host_name(&"a".repeat(65)).is_err());
    }

    #[test]
    fn shared_memory_and_scratch_space_are_the_sandboxs_storages() {
        let shm = Storage {
            driver: "ephemeral".to_owned(),
            source: "shm".to_owned(),
            fstype: "tmpfs".to_owned(),
            options: ["noexec", "nosuid", "nodev", "mode=1777", "size=1000"].map(str::to_owned).to_vec(),
            mount_point: paths::SANDBOX_SHM.to_owned(),
            ..Storage::default()
        };
        let scratch = ScratchStorage { bytes: 64 << 20 };
        let disk = scratch.to_message().unwrap();
        let parse = |storages: &[&Storage]| {
            Storages::parse(&storages.iter().map(|storage| (*storage).clone()).collect::<Vec<_>>())
        };
        assert_eq!(parse(&[]).unwrap(), Storages { shared_memory: SHM_SIZE, scratch: None });
        let both = Storages { shared_memory: 1000, scratch: Some(scratch) };
        assert_eq!(parse(&[&shm, &disk]).unwrap(), both);
        assert_eq!(parse(&[&disk, &shm]).unwrap(), both);
        assert!(parse(&[&shm, &shm]).is_err() && parse(&[&disk, &disk]).is_err());
        let elsewhere = Storage { mount_point: "/run".to_owned(), ..shm.clone() };
        assert!(parse(&[&elsewhere]).is_err());
        let option = Storage { options: vec!["size=1,uid=0".to_owned()], ..shm.clone() };
        assert!(parse(&[&option]).is_err());
        let foreign = Storage { driver: "virtio-fs".to_owned(), ..shm };
        assert!(parse(&[&foreign]).is_err());
    }
}
