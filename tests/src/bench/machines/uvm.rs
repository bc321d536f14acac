//! The product's own monitor, with the guest that every other one gets.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use launch::control::{Event, Mark};
use launch::plan::{HostData, Hypervisor, LaunchPlan, Tee};
use vmm_client::{Vmm, monotonic_us};

use super::program::word;
use super::{Booted, INIT, Machine, Monitor, Size, Step};
use crate::bench::marker::{MarkerGuest, SerialPort};

/// `uvm-vmm`, started as the shim starts it.
pub struct Uvm {
    /// The program.
    pub program: PathBuf,
    /// What it boots.
    pub guest: Rc<MarkerGuest>,
    /// Isolation.
    pub tee: Tee,
    /// The machine's size.
    pub size: Size,
}

impl Machine for Vmm {
    fn pid(&self) -> u32 {
        Vmm::pid(self)
    }
}

impl Monitor for Uvm {
    fn name(&self) -> String {
        format!("uvm {}", self.tee)
    }

    fn command(&self) -> Vec<String> {
        let plan = self.plan(Path::new("FOLDER")).to_json();
        let plan =
            plan.map_or_else(|error| error.to_string(), |json| String::from_utf8_lossy(&json).into_owned());
        vec![word(&self.program), "<<<".into(), plan]
    }

    fn boot(&self, folder: &Path) -> Result<Booted> {
        let mut serial = SerialPort::create(folder)?;
        let (began, vmm, marks) = start(&self.program, &self.plan(folder), folder)?;
        let at = serial.wait().with_context(|| said(folder))?;
        let mut steps = marks.since(began);
        steps.push((INIT, at - began));
        Ok(Booted { machine: Box::new(vmm), steps })
    }
}

impl Uvm {
    fn plan(&self, folder: &Path) -> LaunchPlan {
        LaunchPlan {
            image: self.guest.image_path(&self.tee.to_string()),
            rootfs: self.guest.rootfs.clone(),
            vcpus: self.size.vcpus,
            memory_mib: self.size.memory_mib,
            tee: self.tee,
            host_data: HostData::default(),
            hypervisor: Hypervisor::Auto,
            vsock: folder.join("vsock"),
            console: Some(folder.join("serial")),
        }
    }
}

/// Marks of a boot as the monitor sends them.
#[derive(Debug, Clone, Default)]
pub struct Marks(Arc<Mutex<Vec<(Mark, u64)>>>);

impl Marks {
    /// The steps so far.
    pub fn since(&self, began: u64) -> Vec<Step> {
        let marks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        marks.iter().map(|(mark, at)| (name(*mark), at.saturating_sub(began))).collect()
    }
}

const fn name(mark: Mark) -> &'static str {
    match mark {
        Mark::VmmStart => "start to main",
        Mark::Launched => "start to launched",
        Mark::FirstEntry => "start to first entry",
        Mark::Stub => "start to stub",
        Mark::Copied => "start to kernel copied",
        Mark::KernelEntry => "start to kernel entry",
    }
}

/// Starts the monitor: when that began, in microseconds of `CLOCK_MONOTONIC`, the monitor, and its marks.
pub fn start(program: &Path, plan: &LaunchPlan, folder: &Path) -> Result<(u64, Vmm, Marks)> {
    let log = File::create(folder.join("log"))?;
    let marks = Marks::default();
    let sink = marks.clone();
    let began = monotonic_us();
    let vmm = Vmm::spawn(program, plan, Some(log), move |event| {
        if let Event::Mark { mark, monotonic_us } = event {
            sink.0.lock().unwrap_or_else(PoisonError::into_inner).push((mark, monotonic_us));
        }
    })?;
    Ok((began, vmm, marks))
}

/// What the monitor wrote to standard error, for an error's context.
pub fn said(folder: &Path) -> String {
    format!("uvm-vmm said {:?}", std::fs::read_to_string(folder.join("log")).unwrap_or_default())
}
