//! `uvm-agent`: PID 1 of the utility VM. Under other names the same program is a runtime process (see
//! `uvm_agent::runtime`).

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use agent_protocol::{AGENT_PORT, HOST_CID};
use anyhow::Context;
use futures_util::stream;
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener};
use ttrpc::r#async::Server;
use ttrpc::r#async::transport::Listener;
use uvm_agent::attestation;
use uvm_agent::container::Services;
use uvm_agent::expectation::{Expectation, OnCorruption};
use uvm_agent::handshake::{self, Host};
use uvm_agent::oom::OomWatch;
use uvm_agent::reaper::Reaper;
use uvm_agent::runtime::{self, Runtime};
use uvm_agent::sandbox::Sandbox;
use uvm_agent::service::{Ending, serve};
use uvm_agent::storage::PodStorage;
use uvm_agent::{init, log, note};

fn main() -> ExitCode {
    let name = std::env::args().next().unwrap_or_default();
    match name.as_str() {
        runtime::NAME => return runtime::main(),
        runtime::PAUSE_NAME => return runtime::pause(),
        _ => {}
    }
    if std::process::id() != 1 {
        eprintln!("uvm-agent is the first process of a utility VM and does nothing elsewhere");
        return ExitCode::FAILURE;
    }
    let init_us = handshake::now_us();
    let set_up = init::set_up();
    log::open(init::command_line_has("uvm.debug"));
    if let Err(error) = run(set_up.map_err(anyhow::Error::from), init_us) {
        note!("the agent does not serve: {}", words(&error));
    }
    // Without an agent there is nothing that this guest could be good for.
    init::power_off();
    ExitCode::FAILURE
}

fn run(set_up: anyhow::Result<()>, init_us: u64) -> anyhow::Result<()> {
    // One thread: nothing here computes, and the reaper relies on it.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start tokio")?;
    runtime.block_on(async {
        let mut host = Host::connect().await?;
        let served = match set_up {
            Ok(()) => start(&mut host).await,
            Err(error) => Err(error),
        };
        let _server = match served {
            Ok(server) => server,
            Err(error) => {
                host.refuse(&words(&error)).await?;
                return Err(error);
            }
        };
        host.ready(init_us).await?;
        std::future::pending::<()>().await;
        Ok(())
    })
}

/// Serves, if this guest is what it was measured to be and was launched with the host data that the host names.
async fn start(host: &mut Host) -> anyhow::Result<Server> {
    let command_line = init::command_line()?;
    let expectation = Expectation::from_command_line(&command_line)?;
    let on_corruption = OnCorruption::from_command_line(&command_line)?;
    if matches!(expectation, Expectation::Snp(_) | Expectation::Tdx) {
        attestation::tsm::mount_configfs()?;
    }
    let host_data = host.host_data(expectation.tee()).await?;
    let attester = attestation::admit(expectation, &host_data)?;
    let reaper = Reaper::start()?;
    let runtime = Runtime::new(PathBuf::from("/proc/self/exe"), reaper);
    let storage = PodStorage::start(on_corruption)?;
    let sandbox = Sandbox::new(Services { runtime, oom: OomWatch::start()?, storage });
    serve(listen()?, Arc::new(sandbox), attester, Ending::PowerOff).await.context("start the server")
}

/// An error with its causes, each said once: some errors name their cause themselves.
fn words(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Accepts connections from the host alone: a container could otherwise dial its own guest.
fn listen() -> anyhow::Result<Listener> {
    let address = VsockAddr::new(VMADDR_CID_ANY, AGENT_PORT);
    let listener = VsockListener::bind(address).context("listen on vsock")?;
    Ok(Listener::new(stream::unfold(listener, |listener| async {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) if peer.cid() == HOST_CID => return Some((Ok(stream), listener)),
                Ok((_, peer)) => note!("refused a connection from vsock CID {}", peer.cid()),
                Err(error) => return Some((Err(error), listener)),
            }
        }
    })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("mount x: {0}")]
    struct Mount(#[from] std::io::Error);

    #[test]
    fn a_cause_is_said_once() {
        let cause = || std::io::Error::other("no such device");
        assert_eq!(words(&Mount(cause()).into()), "mount x: no such device");
        let error = anyhow::Error::from(cause()).context("start the server");
        assert_eq!(words(&error), "start the server: no such device");
    }
}
