//! Where a run took place: figures of different places are not compared without saying so.

use std::fs;
use std::process::Command;

use serde::{Deserialize, Serialize};

/// The machine and the programs on it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Environment {
    /// Revision of the sources, if whoever started the run said.
    pub revision: Option<String>,
    /// Seconds since 1970 when the run began.
    pub began: u64,
    /// Kernel of the machine that runs the virtual machines.
    pub kernel: String,
    /// What the firmware calls the machine: tells emulated ones.
    pub machine: String,
    /// The processor's name.
    pub processor: String,
    /// How many processors.
    pub processors: usize,
    /// Memory in KiB.
    pub memory_kib: u64,
    /// Contenders and what else is used, with their versions.
    pub programs: Vec<String>,
}

/// Programs whose version matters, with the argument that makes them tell.
const PROGRAMS: [(&str, &str); 6] = [
    ("qemu-system-x86_64", "--version"),
    ("containerd", "--version"),
    ("runc", "--version"),
    ("crun", "--version"),
    ("fio", "--version"),
    ("mkfs.erofs", "--version"),
];

impl Environment {
    /// This machine.
    #[must_use]
    pub fn here(revision: Option<String>) -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self {
            revision,
            began: now.map_or(0, |now| now.as_secs()),
            kernel: line("/proc/sys/kernel/osrelease"),
            machine: line("/sys/class/dmi/id/product_name"),
            processor: field(&cpuinfo, "model name").unwrap_or_default(),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            memory_kib: field(&meminfo, "MemTotal")
                .and_then(|total| total.split(' ').next()?.parse().ok())
                .unwrap_or(0),
            programs: PROGRAMS.iter().filter_map(|(program, argument)| version(program, argument)).collect(),
        }
    }

    /// Whether the processor is emulated: times there are ratios at best.
    #[must_use]
    pub fn is_emulated(&self) -> bool {
        self.processor.contains("QEMU TCG")
    }
}

fn line(path: &str) -> String {
    fs::read_to_string(path).map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

fn field(text: &str, name: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// First line that `program` says about itself; nothing where it is not installed.
fn version(program: &str, argument: &str) -> Option<String> {
    let output = Command::new(program).arg(argument).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    Some(text.lines().next().unwrap_or(program).trim().to_owned())
}
