//! Things that die: what is left has to know, and to go.

use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::case::{Bed, Case};
use crate::command::{eventually, run};
use crate::cri::Cri;
use crate::ctr::{Detached, ctr, import_busybox};
use crate::ledger::{Ledger, processes};
use crate::snapshots::{SOCKET, list, stored_layers};

pub const CASES: &[Case] = &[
    Case { name: "fault::killed_vmm_ends_its_containers", run: killed_vmm },
    Case { name: "fault::killed_shim_leaves_nothing", run: killed_shim },
    Case { name: "fault::killed_snapshotter_loses_nothing", run: killed_snapshotter },
];

fn newest(name: &str) -> Result<String> {
    let pid = processes(name)?.into_iter().max().with_context(|| format!("no process {name}"))?;
    Ok(pid.to_string())
}

fn killed_vmm(bed: &Bed) -> Result<()> {
    import_busybox(bed)?;
    let logs = tempfile::tempdir()?;
    let mut cri = Cri::connect()?;
    let before = Ledger::take()?;
    let pod = cri.run_pod("doomed", logs.path())?;
    let container = cri.run(&pod, "main", &["sleep", "1000"])?;
    run("kill", &["-9", &newest("uvm-vmm")?])?.expect_status(0)?;
    let (code, _) = cri.wait(&container)?;
    ensure!(code != 0, "a container whose machine died did not succeed");
    eventually("the sandbox is no longer ready", Duration::from_secs(10), || {
        Ok((!cri.pod_ready(&pod)?).then_some(()))
    })?;
    cri.remove_container(&container)?;
    cri.remove_pod(&pod)?;
    before.expect_nothing_new()
}

fn killed_shim(bed: &Bed) -> Result<()> {
    import_busybox(bed)?;
    let before = Ledger::take()?;
    // `ctr` keeps its own FIFOs when a task is gone before it could delete it: there are none here.
    let container = Detached::start(&["--null-io"], "orphan", &["sleep", "1000"])?;
    run("kill", &["-9", &newest("containerd-shim-uvm-v2")?])?.expect_status(0)?;
    eventually("containerd notices", Duration::from_secs(20), || {
        let status = container.status()?;
        Ok((status.is_none() || status.as_deref() == Some("STOPPED")).then_some(()))
    })?;
    eventually("the machine is gone", Duration::from_secs(10), || {
        Ok(processes("uvm-vmm")?.is_empty().then_some(()))
    })?;
    // containerd has cleaned up the task; what is left is the record that a user removes.
    let _ = ctr(&["task", "delete", "--force", "orphan"])?;
    ctr(&["container", "delete", "orphan"])?.expect_status(0)?;
    before.expect_nothing_new()
}

/// Containers do not notice that it is gone; once it is back, everything that it had kept is there.
fn killed_snapshotter(bed: &Bed) -> Result<()> {
    import_busybox(bed)?;
    let (logs, mut cri) = (tempfile::tempdir()?, Cri::connect()?);
    let before = Ledger::take()?;
    let pod = cri.run_pod("outliving", logs.path())?;
    let first = cri.run(&pod, "first", &["sleep", "1000"])?;
    let kept = (stored_layers()?, list("k8s.io")?);
    run("kill", &["-9", &newest("uvm-snapshotter")?])?.expect_status(0)?;
    let outcome = cri.succeed(&first, &["ls", "/bin"]);
    // The cases that follow need it, whatever came of this one.
    restart_snapshotter(bed)?;
    outcome?;
    // containerd tries again after a few seconds only.
    let listed = eventually("containerd finds it", Duration::from_secs(30), || Ok(list("k8s.io").ok()))?;
    ensure!((stored_layers()?, listed) == kept, "expected {kept:?}, found {:?}", stored_layers());
    let second = cri.run(&pod, "second", &["sh", "-c", "echo x > /file; cat /file"])?;
    ensure!(cri.wait(&second)?.0 == 0, "the second container failed");
    cri.remove_pod(&pod)?;
    before.expect_nothing_new()
}

/// Starts the snapshotter as the node did, and leaves it running.
fn restart_snapshotter(bed: &Bed) -> Result<()> {
    let mut command = Command::new(bed.program("uvm-snapshotter"));
    command.arg("serve").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    eventually("the snapshotter answers", Duration::from_secs(60), || Ok(UnixStream::connect(SOCKET).ok()))?;
    Ok(())
}
