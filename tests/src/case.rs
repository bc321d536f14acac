//! Cases, and the loop that runs them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use crate::command::run_within;
use crate::progress::Progress;

/// How long a case may take: several times what the longest takes in an emulated node.
const LIMIT: Duration = Duration::from_secs(480);
/// How long the list of processes may take when a case is stuck.
const LAST_LOOK: Duration = Duration::from_secs(20);

/// What every case may use.
#[derive(Debug)]
pub struct Bed {
    /// The folder that `cargo xtask image` fills: `bin/`, `uvm.igvm`, `rootfs.img`, images.
    pub product: PathBuf,
}

impl Bed {
    /// A program of the product.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.product.join("bin").join(name)
    }
}

/// One thing that must be so.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// `suite::name`.
    pub name: &'static str,
    /// Fails when it is not so.
    pub run: fn(&Bed) -> Result<()>,
}

/// Runs the cases whose name contains `filter` and which are not yet in `progress`, in order, and reports each. True
/// when all passed, those in `progress` included.
///
/// A case that does not end in time has failed and ends this process: whatever it waits for is not left behind for
/// the next one.
///
/// # Errors
/// When the progress cannot be kept.
pub fn run(bed: &Bed, cases: &[Case], filter: Option<&str>, progress: &mut Progress) -> Result<bool> {
    for case in cases.iter().filter(|case| filter.is_none_or(|text| case.name.contains(text))) {
        if progress.knows(case.name) {
            continue;
        }
        let started = Instant::now();
        progress.begin(case.name)?;
        let ended = watch(case.name, progress.clone());
        let outcome = catch_unwind(AssertUnwindSafe(|| (case.run)(bed)));
        drop(ended);
        let outcome = outcome.unwrap_or_else(|_| Err(anyhow!("the case panicked; its message is above")));
        progress.end(case.name, outcome.is_ok())?;
        let seconds = started.elapsed().as_secs_f32();
        match outcome {
            Ok(()) => println!("ok    {:<44} {seconds:6.1} s", case.name),
            Err(error) => println!("FAIL  {:<44} {seconds:6.1} s\n      {error:#}", case.name),
        }
    }
    let (passed, failed) = progress.count();
    println!("{passed} passed, {failed} failed");
    Ok(failed == 0 && passed > 0)
}

/// Ends the process, with the case counted as failed, unless what is given is dropped in time.
fn watch(case: &'static str, mut progress: Progress) -> Sender<()> {
    let (ended, end) = channel::<()>();
    thread::spawn(move || {
        if end.recv_timeout(LIMIT) != Err(RecvTimeoutError::Timeout) {
            return;
        }
        println!("FAIL  {case:<44} did not end within {} s", LIMIT.as_secs());
        if let Err(error) = progress.end(case, false) {
            println!("      {error:#}");
        }
        match run_within(LAST_LOOK, "ps", &["-eo", "pid,ppid,stat,wchan:24,etimes,args", "--width", "160"]) {
            Ok(list) => println!("{}", list.out),
            Err(error) => println!("      no list of processes: {error:#}"),
        }
        std::process::exit(STUCK);
    });
    ended
}

/// Exit status when a case does not end.
const STUCK: i32 = 3;
