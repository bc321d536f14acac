//! The life of one process of a pod, as a pure transition function.
//!
//! A process is a container's first one or an additional one (exec). Phases whose name ends in "ing" wait for
//! the guest: they belong to exactly one request in flight, so no two requests change a process at once.

use std::time::SystemTime;

/// Where a process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The guest is asked to create it.
    Creating,
    /// It exists and has not run.
    Created,
    /// The guest is asked to start it.
    Starting,
    /// It runs.
    Running,
    /// The guest is asked to freeze it.
    Pausing,
    /// It is frozen.
    Paused,
    /// The guest is asked to thaw it.
    Resuming,
    /// It has ended, or can never run.
    Stopped,
    /// The guest is asked to remove what is left of it.
    Deleting,
}

/// What happens to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The guest created it.
    Created,
    /// containerd asks to start it.
    Start,
    /// The guest started it.
    Started,
    /// The guest could not start it.
    StartFailed,
    /// containerd asks to freeze it.
    Pause,
    /// The guest froze it.
    Paused,
    /// The guest could not freeze it.
    PauseFailed,
    /// containerd asks to thaw it.
    Resume,
    /// The guest thawed it.
    Resumed,
    /// The guest could not thaw it.
    ResumeFailed,
    /// It ended, or its machine did.
    Exit,
    /// containerd asks to delete it.
    Delete,
}

/// A step that a process in this phase cannot take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{} a process that is {}", verb(*.step), word(*.phase))]
pub struct Refused {
    /// Where the process is.
    pub phase: Phase,
    /// What was asked.
    pub step: Step,
}

/// The phase after `step`.
///
/// # Errors
/// When a process in `phase` cannot take that step; the phase is then unchanged.
pub const fn next(phase: Phase, step: Step) -> Result<Phase, Refused> {
    Ok(match (phase, step) {
        (Phase::Creating, Step::Created) => Phase::Created,
        (Phase::Created, Step::Start) => Phase::Starting,
        (Phase::Starting, Step::Started)
        | (Phase::Pausing, Step::PauseFailed)
        | (Phase::Resuming, Step::Resumed) => Phase::Running,
        (Phase::Running, Step::Pause) => Phase::Pausing,
        (Phase::Pausing, Step::Paused) | (Phase::Resuming, Step::ResumeFailed) => Phase::Paused,
        (Phase::Paused, Step::Resume) => Phase::Resuming,
        (Phase::Starting, Step::StartFailed)
        | (
            Phase::Created
            | Phase::Starting
            | Phase::Running
            | Phase::Pausing
            | Phase::Paused
            | Phase::Resuming
            | Phase::Stopped,
            Step::Exit,
        ) => Phase::Stopped,
        (Phase::Created | Phase::Stopped, Step::Delete) => Phase::Deleting,
        _ => return Err(Refused { phase, step }),
    })
}

impl Phase {
    /// Whether a process in this phase may get a signal.
    #[must_use]
    pub const fn takes_signals(self) -> bool {
        matches!(self, Self::Running | Self::Pausing | Self::Paused | Self::Resuming)
    }

    /// Whether a process in this phase will never run again.
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Stopped | Self::Deleting)
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Exit code, or 128 + the signal.
    pub status: u32,
    /// When the shim learned of it.
    pub at: SystemTime,
}

impl Exit {
    /// An exit with `status`, now.
    #[must_use]
    pub fn now(status: u32) -> Self {
        Self { status, at: SystemTime::now() }
    }
}

const fn verb(step: Step) -> &'static str {
    match step {
        Step::Created => "cannot finish the creation of",
        Step::Start => "cannot start",
        Step::Started | Step::StartFailed => "cannot finish the start of",
        Step::Pause => "cannot pause",
        Step::Paused | Step::PauseFailed => "cannot finish the pause of",
        Step::Resume => "cannot resume",
        Step::Resumed | Step::ResumeFailed => "cannot finish the resumption of",
        Step::Exit => "cannot end",
        Step::Delete => "cannot delete",
    }
}

const fn word(phase: Phase) -> &'static str {
    match phase {
        Phase::Creating => "being created",
        Phase::Created => "created but not started",
        Phase::Starting => "being started",
        Phase::Running => "running",
        Phase::Pausing => "being paused",
        Phase::Paused => "paused",
        Phase::Resuming => "being resumed",
        Phase::Stopped => "stopped",
        Phase::Deleting => "being deleted",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PHASES: [Phase; 9] = [
        Phase::Creating,
        Phase::Created,
        Phase::Starting,
        Phase::Running,
        Phase::Pausing,
        Phase::Paused,
        Phase::Resuming,
        Phase::Stopped,
        Phase::Deleting,
    ];

    #[test]
    fn an_ordinary_life() {
        let steps = [Step::Created, Step::Start, Step::Started, Step::Pause, Step::Paused, Step::Resume];
        let mut phase = Phase::Creating;
        for step in steps.into_iter().chain([Step::Resumed, Step::Exit, Step::Delete]) {
            phase = next(phase, step).unwrap();
        }
        assert_eq!(phase, Phase::Deleting);
    }

    /// For each step, the phases that may take it and where each leads; all others must refuse.
    #[test]
    fn every_other_step_is_refused() {
        let table: [(Step, &[(Phase, Phase)]); 12] = [
            (Step::Created, &[(Phase::Creating, Phase::Created)]),
            (Step::Start, &[(Phase::Created, Phase::Starting)]),
            (Step::Started, &[(Phase::Starting, Phase::Running)]),
            (Step::StartFailed, &[(Phase::Starting, Phase::Stopped)]),
            (Step::Pause, &[(Phase::Running, Phase::Pausing)]),
            (Step::Paused, &[(Phase::Pausing, Phase::Paused)]),
            (Step::PauseFailed, &[(Phase::Pausing, Phase::Running)]),
            (Step::Resume, &[(Phase::Paused, Phase::Resuming)]),
            (Step::Resumed, &[(Phase::Resuming, Phase::Running)]),
            (Step::ResumeFailed, &[(Phase::Resuming, Phase::Paused)]),
            (
                Step::Exit,
                &[
                    (Phase::Created, Phase::Stopped),
                    (Phase::Starting, Phase::Stopped),
                    (Phase::Running, Phase::Stopped),
                    (Phase::Pausing, Phase::Stopped),
                    (Phase::Paused, Phase::Stopped),
                    (Phase::Resuming, Phase::Stopped),
                    (Phase::Stopped, Phase::Stopped),
                ],
            ),
            (Step::Delete, &[(Phase::Created, Phase::Deleting), (Phase::Stopped, Phase::Deleting)]),
        ];
        for (step, allowed) in table {
            for phase in PHASES {
                let expected = allowed.iter().find(|(from, _)| *from == phase).map(|(_, to)| *to);
                assert_eq!(next(phase, step).ok(), expected, "{phase:?} {step:?}");
            }
        }
    }

    #[test]
    fn refusals_read_well() {
        let error = next(Phase::Running, Step::Start).unwrap_err();
        assert_eq!(error.to_string(), "cannot start a process that is running");
    }
}
