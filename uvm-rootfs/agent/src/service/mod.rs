//! The ttrpc services: each method passes the gate, then acts on the sandbox.
//!
//! A request that changes something runs as a task of its own: the host may set a deadline on a call or drop its
//! connection, and neither must stop a change half way. Such a task's panic is its caller's error and nothing
//! more. Requests that only wait (for an end, for output) stop when their caller does, so that no output is
//! fetched for somebody who has gone.

mod handlers;

use std::future::Future;
use std::sync::Arc;

use agent_protocol::PROTOCOL_VERSION;
use agent_protocol::rpc::agent::*;
use agent_protocol::rpc::agent_ttrpc::{AgentService, create_agent_service};
use agent_protocol::rpc::events::{Corruption, NextCorruptionRequest};
use agent_protocol::rpc::events_ttrpc::{Events, create_events};
use agent_protocol::rpc::evidence::{ReportRequest, ReportResponse};
use agent_protocol::rpc::evidence_ttrpc::{Evidence, create_evidence};
use agent_protocol::rpc::health::health_check_response::ServingStatus;
use agent_protocol::rpc::health::{CheckRequest, HealthCheckResponse, VersionCheckResponse};
use agent_protocol::rpc::health_ttrpc::{Health, create_health};
use agent_protocol::rpc::types;
use async_trait::async_trait;
use protobuf::well_known_types::empty::Empty;
use ttrpc::r#async::transport::Listener;
use ttrpc::r#async::{Server, TtrpcContext};

use crate::attestation::Attester;
use crate::error::{AgentError, Result};
use crate::gate::{self, Permit, Request};
use crate::note;
use crate::sandbox::Sandbox;

/// What DestroySandbox does at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The guest powers off.
    PowerOff,
    /// Nothing: the agent runs as an ordinary process.
    Stay,
}

/// The handlers' shared state.
#[derive(Clone)]
pub struct Agent {
    sandbox: Arc<Sandbox>,
    attester: Arc<dyn Attester>,
    /// Held while a report is made: a device answers one question at a time, and callers that go away must not
    /// leave threads behind without number.
    report_turn: Arc<tokio::sync::Mutex<()>>,
    ending: Ending,
}

/// Serves `sandbox`, and the evidence of `attester`, on `listener` until the process ends.
///
/// # Errors
/// If the server cannot start.
pub async fn serve(
    listener: Listener,
    sandbox: Arc<Sandbox>,
    attester: Arc<dyn Attester>,
    ending: Ending,
) -> ttrpc::Result<Server> {
    let agent = Arc::new(Agent { sandbox, attester, report_turn: Arc::default(), ending });
    let mut server = Server::new()
        .add_listener(listener)
        .register_service(create_agent_service(agent.clone()))
        .register_service(create_health(agent.clone()))
        .register_service(create_evidence(agent.clone()))
        .register_service(create_events(agent));
    server.start().await?;
    Ok(server)
}

impl Agent {
    /// Runs a handler that changes something.
    async fn change<R, A, F>(&self, request: R, handler: impl FnOnce(Self, R) -> F) -> ttrpc::Result<A>
    where
        R: Request,
        A: Send + 'static,
        F: Future<Output = Result<A>> + Send + 'static,
    {
        let permit: Permit<R> = gate::authorize(request)?;
        let task = tokio::spawn(handler(self.clone(), permit.into_request()));
        match task.await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                note!("{}: {error}", R::METHOD);
                Err(error.into())
            }
            Err(panic) => {
                note!("{} failed: {panic}", R::METHOD);
                Err(AgentError::Runtime(format!("{} failed inside the agent", R::METHOD)).into())
            }
        }
    }

    /// Runs a handler that only waits.
    async fn wait<R, A, F>(&self, request: R, handler: impl FnOnce(Self, R) -> F) -> ttrpc::Result<A>
    where
        R: Request,
        F: Future<Output = Result<A>>,
    {
        let permit = gate::authorize(request)?;
        Ok(handler(self.clone(), permit.into_request()).await?)
    }
}

/// The answer to a request that is never served: the gate's reason.
fn refused<R: Request, A>(request: R) -> ttrpc::Result<A> {
    match gate::authorize(request) {
        Err(denied) => Err(denied.into()),
        Ok(_) => Err(gate::Denied::Unimplemented(R::METHOD).into()),
    }
}

macro_rules! agent_service {
    (
        serves { $($mode:ident $method:ident($request:ty) -> $answer:ty = $handler:path;)* }
        refuses { $($refused:ident($refused_request:ty) -> $refused_answer:ty;)* }
    ) => {
        #[async_trait]
        impl AgentService for Agent {
            $(async fn $method(&self, _: &TtrpcContext, request: $request) -> ttrpc::Result<$answer> {
                self.$mode(request, $handler).await
            })*
            $(async fn $refused(&self, _: &TtrpcContext, request: $refused_request) -> ttrpc::Result<$refused_answer> {
                refused(request)
            })*
        }
    };
}

agent_service! {
    serves {
    change create_sandbox(CreateSandboxRequest) -> Empty = handlers::create_sandbox;
    change destroy_sandbox(DestroySandboxRequest) -> Empty = handlers::destroy_sandbox;
    change create_container(CreateContainerRequest) -> Empty = handlers::create_container;
    change start_container(StartContainerRequest) -> Empty = handlers::start_container;
    change remove_container(RemoveContainerRequest) -> Empty = handlers::remove_container;
    change exec_process(ExecProcessRequest) -> Empty = handlers::exec_process;
    change signal_process(SignalProcessRequest) -> Empty = handlers::signal_process;
    wait wait_process(WaitProcessRequest) -> WaitProcessResponse = handlers::wait_process;
    change update_container(UpdateContainerRequest) -> Empty = handlers::update_container;
    change stats_container(StatsContainerRequest) -> StatsContainerResponse = handlers::stats_container;
    change pause_container(PauseContainerRequest) -> Empty = handlers::pause_container;
    change resume_container(ResumeContainerRequest) -> Empty = handlers::resume_container;
    wait write_stdin(WriteStreamRequest) -> WriteStreamResponse = handlers::write_stdin;
    wait read_stdout(ReadStreamRequest) -> ReadStreamResponse = handlers::read_stdout;
    wait read_stderr(ReadStreamRequest) -> ReadStreamResponse = handlers::read_stderr;
    change close_stdin(CloseStdinRequest) -> Empty = handlers::close_stdin;
    change tty_win_resize(TtyWinResizeRequest) -> Empty = handlers::resize_terminal;
    change get_guest_details(GuestDetailsRequest) -> GuestDetailsResponse = handlers::guest_details;
    wait get_oom_event(GetOOMEventRequest) -> OOMEvent = handlers::next_oom;
    change copy_file(CopyFileRequest) -> Empty = handlers::copy_file;
    change set_guest_date_time(SetGuestDateTimeRequest) -> Empty = handlers::set_clock;
    }
    refuses {
    get_metrics(GetMetricsRequest) -> Metrics;
    reseed_random_dev(ReseedRandomDevRequest) -> Empty;
    set_policy(SetPolicyRequest) -> Empty;
    update_ephemeral_mounts(UpdateEphemeralMountsRequest) -> Empty;
    remove_stale_virtiofs_share_mounts(RemoveStaleVirtiofsShareMountsRequest) -> Empty;
    update_interface(UpdateInterfaceRequest) -> types::Interface;
    update_routes(UpdateRoutesRequest) -> Routes;
    list_interfaces(ListInterfacesRequest) -> Interfaces;
    list_routes(ListRoutesRequest) -> Routes;
    add_arp_neighbors(AddARPNeighborsRequest) -> Empty;
    get_ip_tables(GetIPTablesRequest) -> GetIPTablesResponse;
    set_ip_tables(SetIPTablesRequest) -> SetIPTablesResponse;
    online_cpu_mem(OnlineCPUMemRequest) -> Empty;
    mem_hotplug_by_probe(MemHotplugByProbeRequest) -> Empty;
    add_swap(AddSwapRequest) -> Empty;
    get_volume_stats(VolumeStatsRequest) -> VolumeStatsResponse;
    resize_volume(ResizeVolumeRequest) -> Empty;
    }
}

#[async_trait]
impl Health for Agent {
    async fn check(&self, _: &TtrpcContext, request: CheckRequest) -> ttrpc::Result<HealthCheckResponse> {
        gate::authorize(request)?;
        Ok(HealthCheckResponse { status: ServingStatus::SERVING.into(), ..Default::default() })
    }

    async fn version(&self, _: &TtrpcContext, request: CheckRequest) -> ttrpc::Result<VersionCheckResponse> {
        gate::authorize(request)?;
        Ok(VersionCheckResponse {
            grpc_version: PROTOCOL_VERSION.to_owned(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        })
    }
}

#[async_trait]
impl Evidence for Agent {
    async fn report(&self, _: &TtrpcContext, request: ReportRequest) -> ttrpc::Result<ReportResponse> {
        self.wait(request, handlers::report).await
    }
}

#[async_trait]
impl Events for Agent {
    async fn next_corruption(
        &self,
        _: &TtrpcContext,
        request: NextCorruptionRequest,
    ) -> ttrpc::Result<Corruption> {
        self.wait(request, handlers::next_corruption).await
    }
}
