//! Pods, as a kubelet has them.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::case::{Bed, Case};
use crate::command::eventually;
use crate::cri::{Cri, Pod, logged};
use crate::ctr::import_busybox;
use crate::exec_stream;
use crate::ledger::{Ledger, processes};

pub const CASES: &[Case] = &[
    Case { name: "pod::containers_share_one_machine", run: one_machine },
    Case { name: "pod::exec_logs_and_stats", run: exec_logs_stats },
    Case { name: "pod::ten_pods_leave_nothing", run: ten_pods },
];

/// Serves a file on the pod's loopback.
const SERVE: &str = "echo from-the-first > /tmp/file; exec httpd -f -p 127.0.0.1:8080 -h /tmp";

/// An init container, then two containers that share the machine and its loopback.
fn one_machine(bed: &Bed) -> Result<()> {
    import_busybox(bed)?;
    let logs = tempfile::tempdir()?;
    let mut cri = Cri::connect()?;
    let machines = processes("uvm-vmm")?.len();
    let pod = cri.run_pod("shared", logs.path())?;
    let outcome = in_one_machine(&mut cri, &pod, machines);
    cri.remove_pod(&pod)?;
    outcome
}

fn in_one_machine(cri: &mut Cri, pod: &Pod, machines: usize) -> Result<()> {
    let init = cri.run(pod, "init", &["sh", "-c", "hostname; echo prepared"])?;
    ensure!(cri.wait(&init)?.0 == 0);
    ensure!(logged(pod, "init", "stdout")? == ["shared", "prepared"], "{:?}", logged(pod, "init", "stdout"));
    let first = cri.run(pod, "first", &["sh", "-c", SERVE])?;
    let second = cri.run(pod, "second", &["sleep", "1000"])?;
    ensure!(processes("uvm-vmm")?.len() == machines + 1, "expected one machine for the pod");
    eventually("the first container answers the second", Duration::from_secs(30), || {
        let answer = cri.exec_sync(&second, &["wget", "-q", "-O", "-", "http://127.0.0.1:8080/file"])?;
        Ok((answer.stdout == b"from-the-first\n").then_some(()))
    })?;
    let hosts = cri.exec_sync(&second, &["cat", "/etc/resolv.conf"])?;
    ensure!(String::from_utf8_lossy(&hosts.stdout).contains("192.0.2.1"), "{hosts:?}");
    for container in [&first, &second] {
        cri.stop_container(container)?;
        cri.remove_container(container)?;
    }
    Ok(())
}

fn exec_logs_stats(bed: &Bed) -> Result<()> {
    import_busybox(bed)?;
    let logs = tempfile::tempdir()?;
    let mut cri = Cri::connect()?;
    let pod = cri.run_pod("exec", logs.path())?;
    let outcome = exec_in(&mut cri, &pod);
    cri.remove_pod(&pod)?;
    outcome
}

fn exec_in(cri: &mut Cri, pod: &Pod) -> Result<()> {
    let container = cri.run(pod, "main", &["sh", "-c", "echo hello; echo oops >&2; exec sleep 1000"])?;
    let answer = cri.exec_sync(&container, &["sh", "-c", "echo out; echo err >&2; exit 3"])?;
    ensure!(answer.stdout == b"out\n" && answer.stderr == b"err\n" && answer.exit_code == 3, "{answer:?}");

    let url = cri.exec_url(&container, &["sh", "-c", "read line; echo heard $line; echo and >&2; exit 4"])?;
    let streams = exec_stream::converse(&url, b"this\n")?;
    ensure!(streams.out == b"heard this\n" && streams.err == b"and\n", "{streams:?}");
    let status = String::from_utf8_lossy(&streams.status).into_owned();
    ensure!(status.contains("\"4\""), "exit code in the status: {status}");

    ensure!(logged(pod, "main", "stdout")? == ["hello"]);
    ensure!(logged(pod, "main", "stderr")? == ["oops"]);
    let stats = cri.stats(&container)?;
    let memory = stats.memory.as_ref().and_then(|memory| memory.working_set_bytes.as_ref());
    ensure!(memory.is_some_and(|bytes| bytes.value > 0), "{stats:?}");
    let cpu = stats.cpu.as_ref().and_then(|cpu| cpu.usage_core_nano_seconds.as_ref());
    ensure!(cpu.is_some_and(|time| time.value > 0), "{stats:?}");
    cri.stop_container(&container)?;
    let (code, _) = cri.wait(&container)?;
    ensure!(code == 137 || code == 143, "exit code {code}");
    cri.remove_container(&container)
}

fn ten_pods(bed: &Bed) -> Result<()> {
    import_busybox(bed)?;
    let logs = tempfile::tempdir()?;
    let mut cri = Cri::connect()?;
    let before = Ledger::take()?;
    for number in 0..10 {
        let name = format!("pod-{number}");
        let pod = cri.run_pod(&name, logs.path())?;
        let container = cri.run(&pod, &name, &["true"])?;
        ensure!(cri.wait(&container)?.0 == 0, "pod {number}");
        cri.remove_container(&container)?;
        cri.remove_pod(&pod)?;
    }
    before.expect_nothing_new()
}
