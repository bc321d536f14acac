//! Receiving the master side of a process's pseudo-terminal.
//!
//! `libcontainer` makes the terminal inside the container and sends its master over a Unix socket, the way
//! runc's `--console-socket` works. The socket exists only while one process is created.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::io::Interest;
use tokio::net::UnixListener;
use tokio::time::timeout;

use crate::error::{AgentError, Context, Result};

/// Short, because a socket's path holds 107 bytes at most.
const DIRECTORY: &str = "/run/uvm/console";
/// The terminal is sent before the process is reported, so it is there already.
const LIMIT: Duration = Duration::from_secs(5);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A socket that waits for one terminal.
#[derive(Debug)]
pub struct Console {
    listener: UnixListener,
    path: PathBuf,
}

impl Console {
    pub fn listen() -> Result<Self> {
        std::fs::create_dir_all(DIRECTORY).doing(|| format!("make {DIRECTORY}"))?;
        let path = Path::new(DIRECTORY).join(NEXT.fetch_add(1, Ordering::Relaxed).to_string());
        let listener = UnixListener::bind(&path).doing(|| format!("listen on {}", path.display()))?;
        Ok(Self { listener, path })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub async fn receive(self) -> Result<OwnedFd> {
        let received = timeout(LIMIT, async {
            let (socket, _) = self.listener.accept().await?;
            socket.async_io(Interest::READABLE, || receive_descriptor(&socket)).await
        });
        match received.await {
            Ok(result) => result.doing(|| "receive the terminal".to_owned()),
            Err(_) => Err(AgentError::Runtime("the runtime sent no terminal".to_owned())),
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn receive_descriptor(socket: &tokio::net::UnixStream) -> std::io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    // The text beside the descriptor is the terminal's path, which nobody needs.
    let mut text = [0; 64];
    recvmsg(socket, &mut [IoSliceMut::new(&mut text)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    descriptors
        .flatten()
        .next()
        .ok_or_else(|| std::io::Error::other("the runtime's message has no descriptor"))
}
