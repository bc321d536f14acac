//! Answering containerd at a Unix socket.

use std::future::Future;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::api::diff_server::DiffServer;
use crate::api::snapshots_server::SnapshotsServer;
use crate::service::Service;

/// Makes the socket, which only root may use. One that a program has left behind is replaced.
///
/// # Errors
/// When a program answers at the socket, or it cannot be made.
pub async fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    if UnixStream::connect(path).await.is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another program answers at the socket"));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers requests until `end`, then ends those that are under way.
///
/// # Errors
/// When the transport fails.
pub async fn serve(
    listener: UnixListener,
    service: Service,
    end: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    Server::builder()
        .add_service(SnapshotsServer::new(service.clone()))
        .add_service(DiffServer::new(service))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), end)
        .await
}
