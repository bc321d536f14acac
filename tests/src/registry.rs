//! A registry of images on this machine: Debian's `docker-registry`, in memory, without authentication.

use std::fs::File;
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::command::eventually;
use crate::ctr::{ctr, transfer};
use crate::layered_image::LayeredImage;

/// What names of its images start with. containerd speaks plain HTTP with this host.
pub const REGISTRY: &str = "localhost:5000/";
const ADDRESS: ([u8; 4], u16) = ([127, 0, 0, 1], 5000);

/// A running registry; dropping it ends it.
#[derive(Debug)]
pub struct Registry {
    process: Child,
    folder: TempDir,
}

impl Registry {
    /// Starts it, empty.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("config.yml"), configuration(&path("images").display().to_string()))?;
        let log = File::create(path("log"))?;
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(path("config.yml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start docker-registry")?;
        let registry = Self { process, folder };
        eventually("the registry answers", Duration::from_secs(60), || {
            Ok(TcpStream::connect(SocketAddr::from(ADDRESS)).ok())
        })
        .with_context(|| registry.log())?;
        Ok(registry)
    }

    /// Puts an image into it, by way of containerd's content store, which forgets the image again.
    ///
    /// # Errors
    /// When containerd or the registry refuses it.
    pub fn put(&self, image: &LayeredImage) -> Result<()> {
        transfer(&["images", "import", "--no-unpack", &image.archive])?.expect_status(0)?;
        let pushed = transfer(&["images", "push", "--plain-http", &image.name])?.expect_status(0);
        ctr(&["images", "rm", "--sync", &image.name])?.expect_status(0)?;
        pushed.with_context(|| self.log())?;
        Ok(())
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Ended already is as good.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn configuration(storage: &str) -> String {
    let [a, b, c, d] = ADDRESS.0;
    format!(
        "version: 0.1\nlog: {{ level: error, accesslog: {{ disabled: true }} }}\nstorage: {{ filesystem: {{ rootdirectory: {storage} }} }}\n\
         http: {{ addr: \"{a}.{b}.{c}.{d}:{}\" }}\n",
        ADDRESS.1
    )
}
