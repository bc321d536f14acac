//! Pods through the Task API, as containerd drives it, over a machine that is none.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]

mod guest;
mod harness;
mod storage;

use std::io::Write;
use std::time::{Duration, Instant};

use containerd_shim::protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, ExecProcessRequest, KillRequest,
    PauseRequest, PidsRequest, ResizePtyRequest, ResumeRequest, ShutdownRequest, StatsRequest, Status,
    UpdateTaskRequest,
};
use containerd_shim::protos::cgroups_v2::metrics::Metrics;
use containerd_shim::protos::protobuf::Message;
use containerd_shim::protos::protobuf::well_known_types::any::Any;
use serde_json::json;
use ttrpc::Code;

use guest::FakeDriver;
use harness::{Harness, LIMIT, code, reader};

fn kill(id: &str, exec: &str, signal: u32, all: bool) -> KillRequest {
    KillRequest { id: id.into(), exec_id: exec.into(), signal, all, ..KillRequest::default() }
}

fn exec(id: &str, exec: &str, args: &[&str]) -> ExecProcessRequest {
    let process = json!({
        "user": { "uid": 0, "gid": 0 }, "args": args, "cwd": "/", "apparmorProfile": "host"
    });
    ExecProcessRequest {
        id: id.into(),
        exec_id: exec.into(),
        spec: Some(any("Process", &process)).into(),
        ..ExecProcessRequest::default()
    }
}

fn any(kind: &str, value: &serde_json::Value) -> Any {
    let type_url = format!("types.containerd.io/opencontainers/runtime-spec/1/{kind}");
    Any { type_url, value: value.to_string().into_bytes(), ..Any::default() }
}

#[tokio::test]
async fn a_plain_container_is_a_pod_of_one() {
    let harness = Harness::new("c1", FakeDriver::default()).await;
    let mut request = harness.request("c1", &["print", "hello"], json!({}));
    request.stdout = harness.fifo("out");
    let output = reader(&request.stdout);
    harness.run(&request).await;
    assert_eq!(harness.wait("c1", "").await, 0);
    assert_eq!(output.await.unwrap(), "hello");
    assert_eq!(harness.status("c1", "").await, Status::STOPPED);
    assert_eq!(harness.delete("c1", "").await.unwrap().exit_status, 0);
    assert_eq!(harness.events().await, ["create c1", "start c1", "exit c1 0", "delete c1"]);
    let expected = ["launch 1 512", "sandbox c1 name", "copy 127.0.0.1 localhost"];
    let journal = harness.driver.journal.entries();
    assert_eq!(journal[..3], expected);
    assert!(journal[3].starts_with("attach 1@0 "), "{journal:?}");
    assert_eq!(journal[4], "create c1 mmioblk+overlayfs");
    assert!(journal.contains(&"stop".to_owned()), "the machine ends with its only container: {journal:?}");
    assert!(harness.state_is_gone());

    let shut_down = harness.shut_down.clone();
    let ended = tokio::spawn(async move { shut_down.notified().await });
    harness.client.shutdown(Harness::context(), &ShutdownRequest::default()).await.unwrap();
    tokio::time::timeout(LIMIT, ended).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_shim_with_tasks_does_not_shut_down() {
    let harness = Harness::new("c1", FakeDriver::default()).await;
    harness.run(&harness.request("c1", &["sleep"], json!({}))).await;
    harness.client.shutdown(Harness::context(), &ShutdownRequest::default()).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_millis(200), harness.shut_down.notified()).await;
    assert!(ended.is_err());
    assert_eq!(harness.status("c1", "").await, Status::RUNNING);
}

#[tokio::test]
async fn two_containers_share_one_machine_and_the_sandbox_has_no_process() {
    let harness = Harness::new("p", FakeDriver::default()).await;
    harness.run(&harness.sandbox("p")).await;
    assert_eq!(harness.status("p", "").await, Status::RUNNING);
    harness.run(&harness.member("a", "p", &["exit", "42"])).await;
    harness.run(&harness.member("b", "p", &["sleep"])).await;
    assert_eq!(harness.wait("a", "").await, 42);
    harness.delete("a", "").await.unwrap();
    assert_eq!(
        code(harness.client.kill(Harness::context(), &kill("a", "", 9, false)).await),
        Code::NOT_FOUND
    );

    harness.client.kill(Harness::context(), &kill("b", "", 15, true)).await.unwrap();
    assert_eq!(harness.wait("b", "").await, 143);
    harness.delete("b", "").await.unwrap();
    harness.client.kill(Harness::context(), &kill("p", "", 9, false)).await.unwrap();
    assert_eq!(harness.wait("p", "").await, 137);
    harness.delete("p", "").await.unwrap();

    let journal = harness.driver.journal.entries();
    assert_eq!(journal.iter().filter(|entry| entry.starts_with("launch")).count(), 1);
    assert_eq!(journal.iter().filter(|entry| entry.starts_with("copy")).count(), 1, "one copy for both");
    assert_eq!(journal.iter().filter(|entry| entry.starts_with("attach")).count(), 1, "one layer for both");
    let at = |entry: &str| journal.iter().position(|found| found == entry);
    assert!(at("remove a") < at("signal b \"\" 15") && at("remove b") < at("detach 1@0"), "{journal:?}");
    assert!(at("remove a").is_some() && at("remove b").is_some(), "{journal:?}");
    assert!(!journal.iter().any(|entry| entry.starts_with("create p")), "{journal:?}");
    assert!(harness.state_is_gone());
    let events = harness.events().await;
    assert_eq!(events.last().unwrap(), "delete p");
    assert!(events.contains(&"exit a 42".to_owned()) && events.contains(&"exit p 137".to_owned()));
}

#[tokio::test]
async fn the_end_of_the_machine_ends_everything_within_a_second() {
    let harness = Harness::new("p", FakeDriver::default()).await;
    harness.run(&harness.sandbox("p")).await;
    harness.run(&harness.member("a", "p", &["sleep"])).await;
    harness.create(&harness.member("never", "p", &["sleep"])).await;
    let begun = Instant::now();
    let (_, sandbox, member, never) = tokio::join!(
        harness.driver.crash(),
        harness.wait("p", ""),
        harness.wait("a", ""),
        harness.wait("never", "")
    );
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!((sandbox, member, never), (255, 255, 255));
    let refused = harness.client.create(Harness::context(), &harness.member("b", "p", &["sleep"])).await;
    assert!(format!("{:?}", refused.unwrap_err()).contains("guest kernel panicked"));
    for id in ["a", "never", "p"] {
        harness.delete(id, "").await.unwrap();
    }
    assert!(harness.state_is_gone());
    let events = harness.events().await;
    let position = |entry: &str| events.iter().position(|found| found == entry);
    assert!(position("exit a 255").unwrap() < position("exit p 255").unwrap(), "{events:?}");
    assert!(position("exit never 255").is_none(), "no exit without a start: {events:?}");
}

#[tokio::test]
async fn additional_processes() {
    let harness = Harness::new("c1", FakeDriver::default()).await;
    harness.run(&harness.request("c1", &["sleep"], json!({}))).await;
    let mut request = exec("c1", "e1", &["print", "from exec"]);
    request.stdout = harness.fifo("out");
    let output = reader(&request.stdout);
    harness.client.exec(Harness::context(), &request).await.unwrap();
    assert_eq!(code(harness.client.exec(Harness::context(), &request).await), Code::ALREADY_EXISTS);
    assert_eq!(harness.status("c1", "e1").await, Status::CREATED);
    harness.start("c1", "e1").await.unwrap();
    assert_eq!(harness.wait("c1", "e1").await, 0);
    assert_eq!(output.await.unwrap(), "from exec");
    harness.delete("c1", "e1").await.unwrap();

    harness.client.exec(Harness::context(), &exec("c1", "e2", &["sleep"])).await.unwrap();
    harness.start("c1", "e2").await.unwrap();
    let pids = PidsRequest { id: "c1".into(), ..PidsRequest::default() };
    assert_eq!(harness.client.pids(Harness::context(), &pids).await.unwrap().processes.len(), 2);
    harness.client.kill(Harness::context(), &kill("c1", "e2", 9, false)).await.unwrap();
    assert_eq!(harness.wait("c1", "e2").await, 137);
    assert_eq!(harness.status("c1", "").await, Status::RUNNING);
    let expected = [
        "create c1",
        "start c1",
        "exec-added e1",
        "exec-started e1",
        "exit e1 0",
        "exec-added e2",
        "exec-started e2",
        "exit e2 137",
    ];
    assert_eq!(harness.events().await, expected);
}

#[tokio::test]
async fn input_reaches_the_process_and_ends() {
    let harness = Harness::new("c1", FakeDriver::default()).await;
    let mut request = harness.request("c1", &["cat"], json!({}));
    (request.stdin, request.stdout) = (harness.fifo("in"), harness.fifo("out"));
    let output = reader(&request.stdout);
    // A writer that stays, as containerd does for a client: only the request ends the input.
    let mut input = std::fs::File::options().read(true).write(true).open(&request.stdin).unwrap();
    harness.run(&request).await;
    input.write_all(b"some input").unwrap();
    let close = CloseIORequest { id: "c1".into(), stdin: true, ..CloseIORequest::default() };
    harness.client.close_io(Harness::context(), &close).await.unwrap();
    assert_eq!(harness.wait("c1", "").await, 0);
    assert_eq!(output.await.unwrap(), "some input");
}

#[tokio::test]
async fn the_last_writers_close_ends_the_input() {
    let harness = Harness::new("c1", FakeDriver::default()).await;
    let mut request = harness.request("c1", &["cat"], json!({}));
    (request.stdin, request.stdout) = (harness.fifo("in"), harness.fifo("out"));
    let output = reader(&request.stdout);
    harness.run(&request).await;
    let stdin = request.stdin.clone();
    let write = move || std::fs::write(stdin, "some input").unwrap();
    tokio::task::spawn_blocking(write).await.unwrap();
    assert_eq!(harness.wait("c1", "").await, 0);
    assert_eq!(output.await.unwrap(), "some input");
}

#[tokio::test]
async fn a_command_that_does_not_exist_is_named_and_never_exits() {
    let harness = Harness::new("c1", FakeDriver::default()).await;
    harness.create(&harness.request("c1", &["absent"], json!({}))).await;
    let error = harness.start("c1", "").await.unwrap_err();
    assert!(format!("{error:?}").contains("command not found: absent"), "{error:?}");
    assert_eq!(harness.status("c1", "").await, Status::STOPPED);
    harness.delete("c1", "").await.unwrap();
    assert_eq!(harness.events().await, ["create c1", "delete c1"]);
    assert!(harness.state_is_gone());
}

#[tokio::test]
async fn a_launch_that_fails_leaves_nothing_and_says_why() {
    let harness = Harness::new("c1", FakeDriver { broken: true, ..FakeDriver::default() }).await;
    let request = harness.request("c1", &["sleep"], json!({}));
    let error = harness.client.create(Harness::context(), &request).await.unwrap_err();
    assert!(format!("{error:?}").contains("/dev/kvm is missing"), "{error:?}");
    assert!(harness.state_is_gone());
    assert_eq!(code(harness.delete("c1", "").await), Code::NOT_FOUND);
    assert!(harness.events().await.is_empty());
}

#[tokio::test]
async fn the_launch_binds_the_policy_of_the_pod() {
    let harness = Harness::new("c1", FakeDriver::default()).await;
    let policy = "io.katacontainers.config.agent.policy";
    let refused = harness.request("c1", &["sleep"], json!({ policy: "not base64" }));
    assert_eq!(code(harness.client.create(Harness::context(), &refused).await), Code::INVALID_ARGUMENT);
    assert!(harness.driver.journal.entries().is_empty() && harness.state_is_gone());
    harness.create(&harness.request("c1", &["sleep"], json!({ policy: "YWJj" }))).await;
    // SHA-256 of "abc" (FIPS 180-2, appendix B.1).
    let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(
        harness.driver.journal.entries()[..2],
        ["launch 1 512".to_owned(), format!("host data {digest}")]
    );
}

#[tokio::test]
async fn questions_are_answered_while_the_guest_hangs() {
    let harness = Harness::new("p", FakeDriver::default()).await;
    harness.run(&harness.sandbox("p")).await;
    let request = harness.member("a", "p", &["hang"]);
    let client = harness.client.clone();
    let hanging = tokio::spawn(async move { client.create(Harness::context(), &request).await });
    while !harness.driver.journal.entries().iter().any(|entry| entry.starts_with("create a")) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(harness.status("a", "").await, Status::UNKNOWN);
    assert_eq!(harness.status("p", "").await, Status::RUNNING);
    harness.client.kill(Harness::context(), &kill("p", "", 9, false)).await.unwrap();
    assert_eq!(harness.wait("p", "").await, 137);
    let failed = tokio::time::timeout(LIMIT, hanging).await.unwrap().unwrap();
    assert!(failed.is_err(), "a creation ends with its machine");
}

#[tokio::test]
async fn pause_resume_resize_update_and_statistics() {
    let harness = Harness::new("c1", FakeDriver::default()).await;
    harness.run(&harness.request("c1", &["sleep"], json!({}))).await;
    let context = Harness::context;
    let resume = ResumeRequest { id: "c1".into(), ..ResumeRequest::default() };
    assert_eq!(code(harness.client.resume(context(), &resume).await), Code::FAILED_PRECONDITION);
    let pause = PauseRequest { id: "c1".into(), ..PauseRequest::default() };
    harness.client.pause(context(), &pause).await.unwrap();
    assert_eq!(harness.status("c1", "").await, Status::PAUSED);
    harness.client.resume(context(), &resume).await.unwrap();
    assert_eq!(harness.status("c1", "").await, Status::RUNNING);
    let resize = ResizePtyRequest { id: "c1".into(), height: 24, width: 80, ..ResizePtyRequest::default() };
    harness.client.resize_pty(context(), &resize).await.unwrap();
    let resources = any("LinuxResources", &json!({ "memory": { "limit": 4096 } }));
    let update = UpdateTaskRequest {
        id: "c1".into(),
        resources: Some(resources).into(),
        ..UpdateTaskRequest::default()
    };
    harness.client.update(context(), &update).await.unwrap();
    let stats = StatsRequest { id: "c1".into(), ..StatsRequest::default() };
    let stats = harness.client.stats(context(), &stats).await.unwrap().stats.unwrap();
    assert_eq!(stats.type_url, "io.containerd.cgroups.v2.Metrics");
    assert_eq!(Metrics::parse_from_bytes(&stats.value).unwrap().memory.usage, 12345);
    let journal = harness.driver.journal.entries();
    for entry in ["pause c1", "resume c1", "resize c1 24x80", "update c1 4096"] {
        assert!(journal.iter().any(|found| found == entry), "{entry}: {journal:?}");
    }
    assert_eq!(harness.events().await[2..], ["paused c1", "resumed c1"]);
}

#[tokio::test]
async fn refusals() {
    let harness = Harness::new("p", FakeDriver::default()).await;
    let context = Harness::context;
    let member = harness.member("a", "p", &["sleep"]);
    assert_eq!(code(harness.client.create(context(), &member).await), Code::NOT_FOUND);
    harness.run(&harness.sandbox("p")).await;
    assert_eq!(code(harness.client.create(context(), &harness.sandbox("p")).await), Code::ALREADY_EXISTS);
    let foreign = harness.member("a", "q", &["sleep"]);
    assert_eq!(code(harness.client.create(context(), &foreign).await), Code::INVALID_ARGUMENT);
    let mut logger = harness.member("a", "p", &["sleep"]);
    logger.stdout = "binary:///bin/logger".into();
    assert_eq!(code(harness.client.create(context(), &logger).await), Code::INVALID_ARGUMENT);
    assert_eq!(code(harness.start("nobody", "").await), Code::NOT_FOUND);
    assert_eq!(code(harness.start("p", "").await), Code::FAILED_PRECONDITION);
    assert_eq!(code(harness.delete("p", "").await), Code::FAILED_PRECONDITION);
    assert_eq!(code(harness.client.kill(context(), &kill("p", "", 10, false)).await), Code::UNIMPLEMENTED);
    assert_eq!(code(harness.client.kill(context(), &kill("p", "", 65, false)).await), Code::INVALID_ARGUMENT);
    let bad_id = exec("p", "../x", &["sleep"]);
    assert_eq!(code(harness.client.exec(context(), &bad_id).await), Code::INVALID_ARGUMENT);
    assert_eq!(code(harness.client.exec(context(), &exec("p", "e", &["sleep"])).await), Code::UNIMPLEMENTED);
    let checkpoint = CheckpointTaskRequest { id: "p".into(), ..CheckpointTaskRequest::default() };
    assert_eq!(code(harness.client.checkpoint(context(), &checkpoint).await), Code::UNIMPLEMENTED);
}

/// containerd before 2.0 calls the same service by its older name.
#[tokio::test]
async fn the_service_has_both_names() {
    let harness = Harness::new("c1", FakeDriver::default()).await;
    harness.create(&harness.request("c1", &["sleep"], json!({}))).await;
    let connect = ConnectRequest { id: "c1".into(), ..ConnectRequest::default() };
    for service in ["containerd.task.v2.Task", "containerd.task.v3.Task"] {
        let request = ttrpc::Request {
            service: service.into(),
            method: "Connect".into(),
            payload: connect.write_to_bytes().unwrap(),
            ..ttrpc::Request::default()
        };
        let response = harness.raw.request(request).await.unwrap();
        let response = ConnectResponse::parse_from_bytes(&response.payload).unwrap();
        assert_eq!((response.shim_pid, response.task_pid), (std::process::id(), std::process::id()));
    }
}
