//! The shim itself: serves the Task API on the socket that it got as standard input.

use std::collections::HashMap;
use std::env;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use containerd_shim::Flags;
use containerd_shim::protos::shim_async::create_task;
use tokio::sync::Notify;
use tracing::{Level, info};
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, Service};

use super::{BootstrapError, TTRPC_ADDRESS, bundle, remove_if_there, socket, system};
use crate::events::Publisher;
use crate::identity::Identity;
use crate::sandbox::vm::UvmVmm;
use crate::sandbox::{Pod, Settings};
use crate::state_dir::{self, StateDir};
use crate::task::TaskService;

/// How long containerd may take for the last events.
const FLUSH: Duration = Duration::from_secs(3);
/// Threads for what blocks: packing layers, requests to the VMM. They end when they have nothing to do.
const BLOCKING_THREADS: usize = 4;
const BLOCKING_STACK_BYTES: usize = 512 * 1024;
const IDLE_THREAD: Duration = Duration::from_secs(1);

/// The service as the API's version 3 names it, and the name it had in version 2: the messages are the same.
const SERVICE_V3: &str = "containerd.task.v3.Task";
const SERVICE_V2: &str = "containerd.task.v2.Task";

/// Serves until containerd says that it needs this shim no more.
///
/// # Errors
/// When it cannot begin.
pub fn serve(flags: &Flags) -> Result<(), BootstrapError> {
    let level = if flags.debug { Level::DEBUG } else { Level::INFO };
    tracing_subscriber::fmt().with_max_level(level).with_ansi(false).with_writer(io::stderr).init();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_stack_size(BLOCKING_STACK_BYTES)
        .thread_keep_alive(IDLE_THREAD)
        .build()
        .map_err(system("start the event loop"))?;
    runtime.block_on(serve_pod(flags))
}

async fn serve_pod(flags: &Flags) -> Result<(), BootstrapError> {
    let ttrpc_address = env::var(TTRPC_ADDRESS).map_err(|_| BootstrapError::Environment(TTRPC_ADDRESS))?;
    let Identity { pod: id, .. } = Identity::from_bundle(&flags.id, &bundle()?)?;
    let socket = socket(flags, &id);
    let listener = inherited_listener().map_err(system("take the socket from standard input"))?;
    let log =
        io::stderr().as_fd().try_clone_to_owned().map(File::from).map_err(system("duplicate the log"))?;

    let publisher = Publisher::new(&flags.namespace, &ttrpc_address);
    let pod = Pod::start(Settings {
        driver: Arc::new(UvmVmm { log: Some(log) }),
        publisher: publisher.clone(),
        state: StateDir::new(Path::new(state_dir::ROOT), &flags.namespace, &id),
        id,
    });
    let shut_down = Arc::new(Notify::new());
    let service = Arc::new(TaskService::new(pod, Arc::clone(&shut_down)));
    let mut server = Server::new().add_listener(listener).register_service(services(service));
    server.start().await.map_err(|error| system("serve the task API")(io::Error::other(error)))?;
    info!(socket = %socket.display(), "serving");

    shut_down.notified().await;
    publisher.flush(FLUSH).await;
    // A server that does not shut down in order ends with this process anyway.
    let _ = server.shutdown().await;
    remove_if_there(&socket).map_err(system(format!("remove {}", socket.display())))
}

fn inherited_listener() -> io::Result<Listener> {
    let listener = UnixListener::from(io::stdin().as_fd().try_clone_to_owned()?);
    // Fails if standard input is something else.
    listener.local_addr()?;
    Listener::try_from(listener)
}

/// The service under both of its names.
#[must_use]
pub fn services(task: Arc<TaskService>) -> HashMap<String, Service> {
    let mut services = create_task(Arc::clone(&task) as _);
    services.extend(create_task(task).remove(SERVICE_V3).map(|service| (SERVICE_V2.to_owned(), service)));
    services
}
