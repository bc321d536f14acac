//! What each served method does, after the gate.

use std::time::Duration;

use agent_protocol::rpc::agent::*;
use agent_protocol::rpc::events::{Corruption, NextCorruptionRequest};
use agent_protocol::rpc::evidence::{ReportRequest, ReportResponse};
use agent_protocol::{MAX_NONCE, MAX_STREAM_CHUNK, oci, storage};
use protobuf::MessageField;
use protobuf::well_known_types::empty::Empty;

use super::{Agent, Ending};
use crate::error::{AgentError, Result};
use crate::stdio::Output;
use crate::{files, init, stats};

/// How long the answer to DestroySandbox gets to leave the guest before it powers off.
const LAST_ANSWER: Duration = Duration::from_millis(100);

pub async fn create_sandbox(agent: Agent, request: CreateSandboxRequest) -> Result<Empty> {
    agent.sandbox.create(&request).await.map(done)
}

pub async fn destroy_sandbox(agent: Agent, _: DestroySandboxRequest) -> Result<Empty> {
    agent.sandbox.kill_all();
    if agent.ending == Ending::PowerOff {
        tokio::spawn(async {
            tokio::time::sleep(LAST_ANSWER).await;
            init::power_off();
        });
    }
    Ok(Empty::new())
}

pub async fn create_container(agent: Agent, request: CreateContainerRequest) -> Result<Empty> {
    agent.sandbox.create_container(request).await.map(done)
}

pub async fn start_container(agent: Agent, request: StartContainerRequest) -> Result<Empty> {
    agent.sandbox.container(&request.container_id)?.start().await.map(done)
}

pub async fn remove_container(agent: Agent, request: RemoveContainerRequest) -> Result<Empty> {
    let limit = (request.timeout > 0).then(|| Duration::from_secs(u64::from(request.timeout)));
    agent.sandbox.remove_container(&request.container_id, limit).await.map(done)
}

pub async fn exec_process(agent: Agent, request: ExecProcessRequest) -> Result<Empty> {
    agent.sandbox.container(&request.container_id)?.exec(request).await.map(done)
}

pub async fn signal_process(agent: Agent, request: SignalProcessRequest) -> Result<Empty> {
    agent.sandbox.container(&request.container_id)?.signal(&request.exec_id, request.signal).map(done)
}

pub async fn wait_process(agent: Agent, request: WaitProcessRequest) -> Result<WaitProcessResponse> {
    let container = agent.sandbox.container(&request.container_id)?;
    let status = container.wait(&request.exec_id).await?;
    Ok(WaitProcessResponse { status, ..Default::default() })
}

pub async fn update_container(agent: Agent, request: UpdateContainerRequest) -> Result<Empty> {
    let resources = request.resources.as_ref();
    let resources =
        resources.ok_or_else(|| AgentError::Invalid("UpdateContainer has no resources".to_owned()))?;
    agent.sandbox.container(&request.container_id)?.update(&oci::decode_resources(resources)?).map(done)
}

pub async fn stats_container(agent: Agent, request: StatsContainerRequest) -> Result<StatsContainerResponse> {
    stats::read(agent.sandbox.container(&request.container_id)?.group())
}

pub async fn pause_container(agent: Agent, request: PauseContainerRequest) -> Result<Empty> {
    agent.sandbox.container(&request.container_id)?.freeze(true).await.map(done)
}

pub async fn resume_container(agent: Agent, request: ResumeContainerRequest) -> Result<Empty> {
    agent.sandbox.container(&request.container_id)?.freeze(false).await.map(done)
}

pub async fn write_stdin(agent: Agent, request: WriteStreamRequest) -> Result<WriteStreamResponse> {
    let process = agent.sandbox.container(&request.container_id)?.process(&request.exec_id)?;
    let piece = request.data.get(..MAX_STREAM_CHUNK).unwrap_or(&request.data);
    let written = process.stdio.write(piece).await?;
    // A piece is at most MAX_STREAM_CHUNK.
    Ok(WriteStreamResponse { len: u32::try_from(written).unwrap_or(u32::MAX), ..Default::default() })
}

pub async fn read_stdout(agent: Agent, request: ReadStreamRequest) -> Result<ReadStreamResponse> {
    read(agent, request, Output::Stdout).await
}

pub async fn read_stderr(agent: Agent, request: ReadStreamRequest) -> Result<ReadStreamResponse> {
    read(agent, request, Output::Stderr).await
}

async fn read(agent: Agent, request: ReadStreamRequest, output: Output) -> Result<ReadStreamResponse> {
    let process = agent.sandbox.container(&request.container_id)?.process(&request.exec_id)?;
    let limit = usize::try_from(request.len).unwrap_or(MAX_STREAM_CHUNK);
    Ok(ReadStreamResponse { data: process.stdio.read(output, limit).await?, ..Default::default() })
}

pub async fn close_stdin(agent: Agent, request: CloseStdinRequest) -> Result<Empty> {
    agent.sandbox.container(&request.container_id)?.process(&request.exec_id)?.stdio.close_stdin();
    Ok(Empty::new())
}

pub async fn resize_terminal(agent: Agent, request: TtyWinResizeRequest) -> Result<Empty> {
    let process = agent.sandbox.container(&request.container_id)?.process(&request.exec_id)?;
    process.stdio.resize(request.row, request.column).map(done)
}

pub async fn guest_details(agent: Agent, _: GuestDetailsRequest) -> Result<GuestDetailsResponse> {
    let details = AgentDetails {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        init_daemon: agent.ending == Ending::PowerOff,
        storage_handlers: [
            storage::DRIVER_BLOCK,
            storage::DRIVER_OVERLAY,
            storage::DRIVER_LOCAL,
            storage::DRIVER_EPHEMERAL,
        ]
        .map(str::to_owned)
        .to_vec(),
        supports_seccomp: std::path::Path::new("/proc/sys/kernel/seccomp").exists(),
        ..Default::default()
    };
    // Memory is never plugged in, so there is no block size to tell.
    Ok(GuestDetailsResponse { agent_details: MessageField::some(details), ..Default::default() })
}

pub async fn next_oom(agent: Agent, _: GetOOMEventRequest) -> Result<OOMEvent> {
    let container_id = agent.sandbox.services().oom.next().await;
    Ok(OOMEvent { container_id, ..Default::default() })
}

pub async fn next_corruption(agent: Agent, _: NextCorruptionRequest) -> Result<Corruption> {
    let (found, containers) = agent.sandbox.services().storage.next_corruption().await;
    Ok(Corruption {
        root_hash: found.root_hash,
        block: found.block,
        in_tree: found.in_tree,
        containers,
        ..Default::default()
    })
}

pub async fn copy_file(agent: Agent, request: CopyFileRequest) -> Result<Empty> {
    let _files = agent.sandbox.files.read().await;
    files::copy(&request).map(done)
}

pub async fn set_clock(agent: Agent, request: SetGuestDateTimeRequest) -> Result<Empty> {
    agent.sandbox.set_clock(&request).map(done)
}

pub async fn report(agent: Agent, request: ReportRequest) -> Result<ReportResponse> {
    let found = request.nonce.len();
    if found > MAX_NONCE {
        return Err(AgentError::Invalid(format!("nonce of {found} bytes: expected at most {MAX_NONCE}")));
    }
    let report_data = evidence::report_data(&request.nonce);
    let turn = agent.report_turn.lock_owned().await;
    // A provider may take seconds, in system calls: the other requests go on meanwhile. The turn ends with the
    // provider's answer, even if nobody waits for it any more.
    let asked = tokio::task::spawn_blocking(move || {
        let evidence = agent.attester.evidence(&report_data);
        drop(turn);
        evidence
    });
    let asked = asked.await;
    let evidence =
        asked.map_err(|error| AgentError::Runtime(format!("the provider of reports: {error}")))??;
    Ok(ReportResponse {
        provider: evidence.provider.to_owned(),
        report: evidence.report,
        certificates: evidence.certificates,
        ..Default::default()
    })
}

fn done((): ()) -> Empty {
    Empty::new()
}
