//! The product as it is shipped: its own image without a console, and its agent, which says when it serves.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent_protocol::HANDSHAKE_PORT;
use agent_protocol::handshake::{Host, MAX_LEN, Ready};
use agent_protocol::tee::Tee as GuestTee;
use anyhow::{Context as _, Result, bail, ensure};
use launch::plan::{HostData, Hypervisor, LaunchPlan, Tee};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_client::monotonic_us;

use super::program::word;
use super::uvm::{said, start};
use super::{Booted, INIT, Monitor, READY, Size};

/// Longest time until the guest calls, and between its words. The node is emulated.
const LIMIT: Duration = Duration::from_secs(120);

/// `uvm-vmm` with an image of the product.
pub struct Product {
    /// What `cargo xtask image` built.
    pub folder: PathBuf,
    /// Isolation.
    pub tee: Tee,
    /// The machine's size.
    pub size: Size,
}

impl Product {
    fn plan(&self, folder: &Path) -> Result<LaunchPlan> {
        let image = match self.tee {
            Tee::None => "uvm.igvm",
            Tee::Sim => "uvm-sim.igvm",
            tee => bail!("isolation {tee}: expected one that needs no special processor"),
        };
        Ok(LaunchPlan {
            image: self.folder.join(image),
            rootfs: self.folder.join("rootfs.img"),
            vcpus: self.size.vcpus,
            memory_mib: self.size.memory_mib,
            tee: self.tee,
            host_data: HostData::default(),
            hypervisor: Hypervisor::Auto,
            vsock: folder.join("vsock"),
            console: None,
        })
    }
}

impl Monitor for Product {
    fn name(&self) -> String {
        format!("uvm {} with agent", self.tee)
    }

    fn command(&self) -> Vec<String> {
        let plan = self.plan(Path::new("FOLDER")).and_then(|plan| Ok(plan.to_json()?));
        let plan =
            plan.map_or_else(|error| error.to_string(), |json| String::from_utf8_lossy(&json).into_owned());
        vec![word(&self.folder.join("bin/uvm-vmm")), "<<<".into(), plan]
    }

    fn boot(&self, folder: &Path) -> Result<Booted> {
        let plan = self.plan(folder)?;
        let guest = if self.tee == Tee::Sim { GuestTee::Sim } else { GuestTee::None };
        let listener = UnixListener::bind(folder.join(format!("vsock_{HANDSHAKE_PORT}")))?;
        let (began, vmm, marks) = start(&self.folder.join("bin/uvm-vmm"), &plan, folder)?;
        let host = Host::new(guest, HostData::default().0);
        let (ready, at) = agree(&listener, host).with_context(|| said(folder))?;
        let mut steps = marks.since(began);
        // The guest says how long it took from its init to this moment.
        steps.push((INIT, at.saturating_sub(ready.init_to_ready_us).saturating_sub(began)));
        steps.push((READY, at - began));
        Ok(Booted { machine: Box::new(vmm), steps })
    }
}

/// The host's end of the handshake; what the guest said, and when it was ready.
fn agree(listener: &UnixListener, host: Host) -> Result<(Ready, u64)> {
    let mut called = [PollFd::new(listener, PollFlags::IN)];
    let calls = poll(&mut called, Some(&Timespec::try_from(LIMIT)?))?;
    ensure!(calls == 1, "the guest did not call within {LIMIT:?}");
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(LIMIT))?;
    let mut lines = BufReader::new(stream.try_clone()?);
    let answer = host.answer(&line(&mut lines)?)?;
    stream.write_all(answer.as_bytes())?;
    let last = line(&mut lines)?;
    let at = monotonic_us();
    Ok((Host::verdict(&last)?, at))
}

fn line(from: &mut BufReader<UnixStream>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(u64::try_from(MAX_LEN)? + 1).read_until(b'\n', &mut bytes)?;
    Ok(bytes)
}
