//! A machine monitor whose host is hostile: it changes the kernel in the shared window while the boot stub
//! works on it.
//!
//! `hostile-vmm IMAGE ROOTFS MARK OFFSET`: at MARK (`stub`: before the kernel is copied; `copied`: between copy
//! and hash) one bit at OFFSET of the window is flipped. What the machine reaches is printed, a line each; the
//! end is the kernel's entry or the machine's end.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::channel;

use anyhow::{Context as _, Result, bail};
use launch::control::Mark;
use launch::layout::WINDOW_BASE;
use launch::plan::{HostData, Hypervisor, LaunchPlan, Tee};
use vm_memory::{Bytes as _, GuestAddress};
use vmm::machine::{Defined, MachineNotice};

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [image, rootfs, mark, offset] = &arguments[..] else {
        bail!("expected IMAGE ROOTFS MARK OFFSET, found {} arguments", arguments.len());
    };
    let when = match mark.as_str() {
        "stub" => Mark::Stub,
        "copied" => Mark::Copied,
        other => bail!("MARK: expected stub or copied, found {other}"),
    };
    let offset: u64 = offset.parse().context("OFFSET")?;
    let folder = tempfile::tempdir()?;
    let plan = LaunchPlan {
        image: PathBuf::from(image),
        rootfs: PathBuf::from(rootfs),
        vcpus: 1,
        memory_mib: 256,
        tee: Tee::Sim,
        host_data: HostData::default(),
        hypervisor: Hypervisor::Auto,
        vsock: folder.path().join("vsock"),
        console: None,
    };
    let populated = Defined::new(plan)?.populate()?;
    let window = populated.window().context("an image whose kernel is in shared pages")?.clone();
    let at = GuestAddress(WINDOW_BASE + offset);
    let (sender, notices) = channel();
    let _running = populated.measure()?.start(move |notice| {
        if notice == MachineNotice::Reached(when) {
            let byte: u8 = window.read_obj(at).unwrap_or(0);
            if window.write_obj(byte ^ 1, at).is_ok() {
                println!("flipped");
            }
        }
        // Nobody listens any more once the end is known.
        let _ = sender.send(notice);
    })?;
    while let Ok(notice) = notices.recv() {
        match notice {
            MachineNotice::Reached(mark) => {
                println!("{mark:?}");
                if mark == Mark::KernelEntry {
                    break;
                }
            }
            MachineNotice::Ended(exit) => {
                println!("{exit}");
                return Ok(ExitCode::from(exit.status()));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
