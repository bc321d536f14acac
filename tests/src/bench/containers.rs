//! `containers`, `pods` and `layers-attached`: what a user of containerd waits for, and what a node pays per pod.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use vmm_client::monotonic_us;

use super::resident::{Guest, Resident};
use super::rounds::Contender;
use super::sample::{Unit, Value};
use crate::command::Outcome;
use crate::cri::{Container, Cri, Pod};
use crate::ctr::{BUSYBOX, ctr, transfer};
use crate::layered_image::LayeredImage;
use crate::ledger::processes;
use crate::snapshots::SNAPSHOTTER;

/// The shim's process name.
const SHIM: &str = "containerd-shim-uvm-v2";
/// The monitor's.
const MONITOR: &str = "uvm-vmm";
/// The container of a bench.
const ID: &str = "bench";

/// A container by `ctr`, under one of containerd's runtimes.
#[derive(Debug)]
pub struct ByRuntime {
    /// What it is called in the table.
    pub name: &'static str,
    /// The runtime, and flags for it.
    pub flags: &'static [&'static str],
}

impl ByRuntime {
    fn start(&self) -> Result<Outcome> {
        let sleep = [BUSYBOX, ID, "sleep", "1000"];
        ctr(&[&["run", "--detach"], self.flags, &sleep].concat())?.expect_status(0)
    }
}

impl Contender for ByRuntime {
    fn name(&self) -> String {
        self.name.into()
    }

    fn command(&self) -> Vec<String> {
        let words = [&["ctr", "run", "--detach"], self.flags, &[BUSYBOX, ID, "sleep", "1000"]].concat();
        words.into_iter().map(str::to_owned).collect()
    }

    fn measure(&mut self) -> Result<Vec<Value>> {
        let _removed = Removed;
        let began = monotonic_us();
        self.start()?;
        let running = monotonic_us();
        ctr(&["task", "kill", "--signal", "KILL", ID])?.expect_status(0)?;
        ctr(&["task", "delete", "--force", ID])?.expect_status(0)?;
        let deleted = monotonic_us();
        Ok(vec![
            Value::milliseconds("create to running", running - began),
            Value::milliseconds("kill to deleted", deleted - running),
        ])
    }
}

/// Removes what a measurement left, however it ended.
struct Removed;

impl Drop for Removed {
    fn drop(&mut self) {
        // Each fails when there is nothing left to do.
        let _ = ctr(&["task", "kill", "--signal", "KILL", ID]);
        let _ = ctr(&["task", "delete", "--force", ID]);
        let _ = ctr(&["container", "delete", ID]);
    }
}

/// Idle pods, more and more of them: how long each takes, and what each costs where there are so many.
pub struct Pods {
    /// Numbers of pods at which memory is looked at, in order.
    pub at: Vec<usize>,
    /// Folder for the containers' logs.
    pub logs: std::path::PathBuf,
}

impl Contender for Pods {
    fn name(&self) -> String {
        "uvm pods".into()
    }

    fn command(&self) -> Vec<String> {
        vec![format!("CRI RunPodSandbox under the handler uvm, {:?} pods", self.at)]
    }

    fn measure(&mut self) -> Result<Vec<Value>> {
        let mut cri = Cri::connect()?;
        let mut pods = Vec::new();
        let outcome = self.fill(&mut cri, &mut pods);
        for pod in &pods {
            let began = monotonic_us();
            cri.remove_pod(pod)?;
            if let Some(last) = pods.last().filter(|last| last.id == pod.id) {
                eprintln!("    {} removed in {} ms", last.id, (monotonic_us() - began) / 1000);
            }
        }
        outcome
    }
}

impl Pods {
    fn fill(&self, cri: &mut Cri, pods: &mut Vec<Pod>) -> Result<Vec<Value>> {
        let (mut values, free) = (Vec::new(), available_kib()?);
        for number in 1..=self.at.last().copied().unwrap_or_default() {
            let began = monotonic_us();
            pods.push(cri.run_pod(&format!("bench-{number}"), &self.logs)?);
            values.push(Value::milliseconds("pod create", monotonic_us() - began));
            if self.at.contains(&number) {
                values.extend(per_pod(number, free)?);
            }
        }
        Ok(values)
    }
}

/// Memory for each of `pods` pods, which are all pods there are; `free` was available before the first one.
fn per_pod(pods: usize, free: u64) -> Result<Vec<Value>> {
    let count = u64::try_from(pods)?;
    let (mut shims, mut monitors) = (Resident::default(), Resident::default());
    for pid in processes(SHIM)? {
        shims.add(Resident::of(pid, Guest::None)?);
    }
    for pid in processes(MONITOR)? {
        monitors.add(Resident::of(pid, Guest::Largest)?);
    }
    let value =
        |what: &str, kib: u64| Value::count(format!("{pods} pods: {what}"), Unit::Kibibytes, kib / count);
    Ok(vec![
        value("shim PSS", shims.beside_guest),
        value("shim PSS of files", shims.of_files),
        value("monitor PSS", monitors.beside_guest),
        value("guest memory touched", monitors.guest),
        value("memory less available", free.saturating_sub(available_kib()?)),
    ])
}

fn available_kib() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("MemAvailable")?;
    line.trim().trim_end_matches(" kB").parse().context("MemAvailable")
}

/// A container on an image of many layers, in a pod that runs already: what the layers cost.
pub struct Layers {
    image: LayeredImage,
    logs: std::path::PathBuf,
}

impl Layers {
    /// Makes an image of `layers` layers in `folder` and imports it where pods look for images.
    ///
    /// # Errors
    /// When containerd does not take it.
    pub fn import(folder: &Path, layers: usize) -> Result<Self> {
        let place = folder.join(format!("layers-{layers}"));
        fs::create_dir_all(&place)?;
        let image = LayeredImage::write(&place, "docker.io/library/", layers)?;
        let import = ["-n", "k8s.io", "images", "import", "--snapshotter", SNAPSHOTTER, &image.archive];
        transfer(&import)?.expect_status(0)?;
        Ok(Self { image, logs: place })
    }
}

impl Contender for Layers {
    fn name(&self) -> String {
        format!("{} layers", self.image.layers())
    }

    fn command(&self) -> Vec<String> {
        vec![format!("CRI CreateContainer and StartContainer of {}", self.image.name)]
    }

    fn measure(&mut self) -> Result<Vec<Value>> {
        let mut cri = Cri::connect()?;
        let pod = cri.run_pod("bench-layers", &self.logs)?;
        let outcome = self.in_pod(&mut cri, &pod);
        cri.remove_pod(&pod)?;
        outcome
    }
}

impl Layers {
    fn in_pod(&self, cri: &mut Cri, pod: &Pod) -> Result<Vec<Value>> {
        let command = ["sh", "-c", "sleep 1000"];
        let container = Container { name: ID, image: &self.image.name, command: &command, mounts: &[] };
        let began = monotonic_us();
        let id = cri.create_container(pod, &container)?;
        let created = monotonic_us();
        cri.start(&id)?;
        let started = monotonic_us();
        Ok(vec![
            Value::milliseconds("container create", created - began),
            Value::milliseconds("container start", started - created),
        ])
    }
}
