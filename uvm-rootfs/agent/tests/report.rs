//! The Evidence service over ttrpc, with a provider that is none.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use agent_protocol::rpc::evidence::{ReportRequest, ReportResponse};
use agent_protocol::rpc::evidence_ttrpc::EvidenceClient;
use agent_protocol::tee::Tee;
use ttrpc::r#async::transport::{Listener, Socket};
use ttrpc::r#async::{Client, Server};
use ttrpc::context::with_duration;
use ttrpc::{Code, Error};
use uvm_agent::attestation::{Attester, Evidence, EvidenceError, attester};
use uvm_agent::container::Services;
use uvm_agent::expectation::OnCorruption;
use uvm_agent::oom::OomWatch;
use uvm_agent::reaper::Reaper;
use uvm_agent::runtime::Runtime;
use uvm_agent::sandbox::Sandbox;
use uvm_agent::service::{Ending, serve};
use uvm_agent::storage::PodStorage;

/// Shows what it was asked for.
struct Mirror;

impl Attester for Mirror {
    fn evidence(&self, report_data: &[u8; 64]) -> Result<Evidence, EvidenceError> {
        Ok(Evidence { provider: "sim", report: report_data.to_vec(), certificates: b"table".to_vec() })
    }
}

async fn agent(name: &str, attester: Arc<dyn Attester>) -> (Server, EvidenceClient, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let address = format!("unix://{}", folder.path().join(name).display());
    let runtime = Runtime::new(PathBuf::from("/nonexistent"), Reaper::start().unwrap());
    let storage = PodStorage::start(OnCorruption::Fail).unwrap();
    let sandbox = Arc::new(Sandbox::new(Services { runtime, oom: OomWatch::start().unwrap(), storage }));
    let listener = Listener::bind(&address).unwrap();
    let server = serve(listener, sandbox, attester, Ending::Stay).await.unwrap();
    let client = EvidenceClient::new(Client::new(Socket::connect(&address).await.unwrap()));
    (server, client, folder)
}

async fn report(client: &EvidenceClient, nonce: &[u8]) -> Result<ReportResponse, Error> {
    let request = ReportRequest { nonce: nonce.to_vec(), ..Default::default() };
    client.report(with_duration(Duration::from_secs(20)), &request).await
}

fn code(result: Result<ReportResponse, Error>) -> Code {
    match result.unwrap_err() {
        Error::RpcStatus(status) => status.code(),
        other => panic!("expected a status, found {other}"),
    }
}

#[tokio::test]
async fn a_report_is_over_the_nonce_and_over_nothing_that_a_host_could_choose() {
    let (_server, client, _folder) = agent("mirror", Arc::new(Mirror)).await;
    for nonce in [&b""[..], b"n", &[0xa5; 64]] {
        let answer = report(&client, nonce).await.unwrap();
        assert_eq!(answer.provider, "sim");
        assert_eq!(answer.certificates, b"table");
        assert_eq!(answer.report, evidence::report_data(nonce));
        assert_ne!(answer.report, nonce);
    }
    assert_eq!(code(report(&client, &[0; 65]).await), Code::INVALID_ARGUMENT);
    let mut request = ReportRequest::new();
    request.special_fields.mut_unknown_fields().add_varint(2, 1);
    let refused = client.report(with_duration(Duration::from_secs(20)), &request).await;
    assert_eq!(code(refused), Code::INVALID_ARGUMENT);
}

/// Is asked by one thread at a time, or fails.
#[derive(Default)]
struct OneAtATime(AtomicBool);

impl Attester for OneAtATime {
    fn evidence(&self, report_data: &[u8; 64]) -> Result<Evidence, EvidenceError> {
        assert!(!self.0.swap(true, Ordering::SeqCst), "two requests at once");
        std::thread::sleep(Duration::from_millis(20));
        self.0.store(false, Ordering::SeqCst);
        Mirror.evidence(report_data)
    }
}

#[tokio::test]
async fn the_provider_is_asked_one_question_at_a_time() {
    let (_server, client, _folder) = agent("turns", Arc::new(OneAtATime::default())).await;
    let reports = tokio::join!(report(&client, b"a"), report(&client, b"b"), report(&client, b"c"));
    assert_eq!(reports.0.unwrap().report, evidence::report_data(b"a"));
    assert_eq!(reports.1.unwrap().report, evidence::report_data(b"b"));
    assert_eq!(reports.2.unwrap().report, evidence::report_data(b"c"));
}

#[tokio::test]
async fn without_isolation_there_is_nothing_to_show() {
    let (_server, client, _folder) = agent("none", attester(Tee::None)).await;
    assert_eq!(code(report(&client, b"n").await), Code::FAILED_PRECONDITION);
}
