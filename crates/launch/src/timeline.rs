//! A boot's timeline: when each step was reached, counted from the moment the VMM was asked for.

use serde::{Deserialize, Serialize};

use crate::control::Mark;

/// A step of a boot, from the first process on the host to the serving agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The VMM's process runs.
    VmmStart,
    /// The image is in memory, the devices wait.
    Launched,
    /// The first virtual CPU is entered.
    FirstEntry,
    /// The boot stub runs.
    Stub,
    /// The kernel is in private memory. Missing where it was launched there.
    Copied,
    /// The kernel is verified and entered.
    KernelEntry,
    /// PID 1 of the guest runs.
    Init,
    /// The agent serves.
    AgentReady,
}

impl From<Mark> for Step {
    fn from(mark: Mark) -> Self {
        match mark {
            Mark::VmmStart => Self::VmmStart,
            Mark::Launched => Self::Launched,
            Mark::FirstEntry => Self::FirstEntry,
            Mark::Stub => Self::Stub,
            Mark::Copied => Self::Copied,
            Mark::KernelEntry => Self::KernelEntry,
        }
    }
}

impl Step {
    fn words(self) -> &'static str {
        match self {
            Self::VmmStart => "VMM start",
            Self::Launched => "image launched",
            Self::FirstEntry => "first vCPU entry",
            Self::Stub => "boot stub",
            Self::Copied => "kernel copied",
            Self::KernelEntry => "kernel entry",
            Self::Init => "init (PID 1)",
            Self::AgentReady => "agent ready",
        }
    }
}

/// A step and its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reached {
    /// Which.
    pub step: Step,
    /// Microseconds since the VMM was asked for.
    pub at_us: u64,
}

/// The steps of one boot.
#[derive(Debug, Clone)]
pub struct Timeline {
    origin_us: u64,
    steps: Vec<Reached>,
}

impl Timeline {
    /// A timeline that counts from `origin_us` of `CLOCK_MONOTONIC`.
    #[must_use]
    pub fn new(origin_us: u64) -> Self {
        Self { origin_us, steps: Vec::new() }
    }

    /// Notes a step at `monotonic_us`. Only the first time counts, so that a timeline never grows past its
    /// steps, whatever a guest or its VMM says.
    pub fn reach(&mut self, step: Step, monotonic_us: u64) {
        if self.steps.iter().any(|reached| reached.step == step) {
            return;
        }
        self.steps.push(Reached { step, at_us: monotonic_us.saturating_sub(self.origin_us) });
    }

    /// Notes that the agent's ready line came in at `monotonic_us`, `init_to_ready_us` after PID 1 began.
    pub fn ready(&mut self, monotonic_us: u64, init_to_ready_us: u64) {
        self.reach(Step::Init, monotonic_us.saturating_sub(init_to_ready_us));
        self.reach(Step::AgentReady, monotonic_us);
    }

    /// The steps in order.
    #[must_use]
    pub fn steps(mut self) -> Vec<Reached> {
        self.steps.sort_by_key(|reached| reached.step);
        self.steps
    }
}

/// The timeline for people: each step, its time, and what it took.
#[must_use]
pub fn table(steps: &[Reached]) -> String {
    let millis = |us: u64| format!("{}.{:03} ms", us / 1000, us % 1000);
    let mut text = String::new();
    let mut before = 0;
    for reached in steps {
        let took = reached.at_us.saturating_sub(before);
        let line = format!(
            "{:<18}{:>14}{:>16}\n",
            reached.step.words(),
            millis(reached.at_us),
            format!("+{}", millis(took))
        );
        text.push_str(&line);
        before = reached.at_us;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_time_counts() {
        let mut timeline = Timeline::new(0);
        timeline.reach(Step::Stub, 1);
        timeline.reach(Step::Stub, 2);
        assert_eq!(timeline.steps(), [Reached { step: Step::Stub, at_us: 1 }]);
    }

    #[test]
    fn steps_come_out_in_order_and_relative() {
        let mut timeline = Timeline::new(1_000_000);
        timeline.reach(Step::AgentReady, 3_500_000);
        timeline.reach(Step::VmmStart, 1_002_500);
        let steps = timeline.steps();
        assert_eq!(steps[0].at_us, 2500);
        assert_eq!(
            table(&steps),
            "VMM start               2.500 ms       +2.500 ms\nagent ready          2500.000 ms    +2497.500 ms\n"
        );
    }
}
