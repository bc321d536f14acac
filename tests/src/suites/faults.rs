//! Things that die: what is left has to know, and to go.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::case::{Bed, Case};
use crate::command::{eventually, run};
use crate::cri::Cri;
use crate::ctr::{Detached, ctr, import_busybox};
use crate::ledger::{Ledger, processes};

pub const CASES: &[Case] = &[
    Case { name: "fault::killed_vmm_ends_its_containers", run: killed_vmm },
    Case { name: "fault::killed_shim_leaves_nothing", run: killed_shim },
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
