//! A machine monitor whose host is hostile.
//!
//! - `hostile-vmm IMAGE ROOTFS flip MARK OFFSET`: at MARK (`stub`: before the kernel is copied; `copied`: between
//!   copy and hash) one bit at OFFSET of the shared window is flipped. The end is the kernel's entry, or the
//!   machine's end.
//! - `hostile-vmm IMAGE ROOTFS tell LAUNCHED TOLD`: launches with one host data and tells the guest another. The
//!   end is the guest's verdict.
//!
//! What happens is printed, a line each.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::channel;

use agent_protocol::HANDSHAKE_PORT;
use agent_protocol::handshake::MAX_LEN;
use anyhow::{Context as _, Result, bail};
use launch::control::Mark;
use launch::layout::WINDOW_BASE;
use launch::plan::{HostData, Hypervisor, LaunchPlan, Tee};
use vm_memory::{Bytes as _, GuestAddress};
use vmm::machine::{Defined, MachineNotice};

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let folder = tempfile::tempdir()?;
    match arguments[..] {
        [image, rootfs, "flip", mark, offset] => {
            let when = match mark {
                "stub" => Mark::Stub,
                "copied" => Mark::Copied,
                other => bail!("MARK: expected stub or copied, found {other}"),
            };
            flip(
                plan(image, rootfs, HostData::default(), folder.path()),
                when,
                offset.parse().context("OFFSET")?,
            )
        }
        [image, rootfs, "tell", launched, told] => {
            tell(plan(image, rootfs, launched.parse()?, folder.path()), told.parse()?)
        }
        _ => bail!("expected IMAGE ROOTFS flip MARK OFFSET, or IMAGE ROOTFS tell LAUNCHED TOLD"),
    }
}

fn plan(image: &str, rootfs: &str, host_data: HostData, folder: &Path) -> LaunchPlan {
    LaunchPlan {
        image: PathBuf::from(image),
        rootfs: PathBuf::from(rootfs),
        vcpus: 1,
        memory_mib: 256,
        tee: Tee::Sim,
        host_data,
        hypervisor: Hypervisor::Auto,
        vsock: folder.join("vsock"),
        console: None,
    }
}

fn flip(plan: LaunchPlan, when: Mark, offset: u64) -> Result<ExitCode> {
    let populated = Defined::new(plan)?.populate()?;
    let window = populated.window().context("an image whose kernel is in shared pages")?.clone();
    let at = GuestAddress(WINDOW_BASE + offset);
    let (sender, notices) = channel();
    // The virtual CPU stands still while its notice is told: the change is made exactly then.
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

fn tell(plan: LaunchPlan, told: HostData) -> Result<ExitCode> {
    let mut path = plan.vsock.clone().into_os_string();
    path.push(format!("_{HANDSHAKE_PORT}"));
    let listener = UnixListener::bind(&path)?;
    let _running = Defined::new(plan)?.populate()?.measure()?.start(|_| {})?;
    let (mut stream, _) = listener.accept()?;
    let mut lines = BufReader::new(stream.try_clone()?.take(2 * MAX_LEN as u64));
    let mut line = String::new();
    lines.read_line(&mut line)?;
    writeln!(stream, "{{\"host_data\":\"{told}\"}}")?;
    lines.read_line(&mut line)?;
    print!("{line}");
    Ok(ExitCode::SUCCESS)
}
