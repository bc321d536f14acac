//! Messages between a VMM and whoever started it, over one `SOCK_SEQPACKET` socket: one JSON value a packet.
//!
//! The parent sends [`Request`]s, each answered by one [`Message::Reply`] in order. The VMM sends
//! [`Message::Event`]s whenever something happens. Files travel beside a request as `SCM_RIGHTS`, in the
//! order of the segments that they back.

use serde::{Deserialize, Serialize};

use crate::digest::LaunchDigest;
use crate::plan::{HostData, Tee};

/// Longest message in bytes.
pub const MAX_MESSAGE_BYTES: usize = 16 * 1024;
/// Most files, and so most segments, that one request carries.
pub const MAX_SEGMENTS: usize = 200;

/// What the parent asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Shows files, one after another, as one read-only disk in an empty slot.
    Attach {
        /// Block slot, 1 to `BLOCK_SLOTS - 1`.
        slot: u32,
        /// What the disk consists of; segment `n` is backed by the `n`th file that came along.
        segments: Vec<Segment>,
    },
    /// Empties a slot.
    Detach {
        /// Block slot.
        slot: u32,
    },
    /// Ends the machine now.
    Stop,
}

/// A part of a composite disk, in bytes; both are multiples of 4096.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// Where it begins in its file.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
}

/// What the VMM sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Message {
    /// The answer to the oldest unanswered request: `None`, or why it was refused.
    Reply(Option<String>),
    /// Something happened.
    Event(Event),
}

/// Steps of a boot, in order, as the VMM sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mark {
    /// The process started.
    VmmStart,
    /// The image is loaded and the launch is finished.
    Launched,
    /// The first virtual CPU is entered for the first time.
    FirstEntry,
    /// The boot stub runs.
    Stub,
    /// The stub has the kernel in private memory and has not hashed it yet. Images whose kernel is launched in
    /// private memory have no such step.
    Copied,
    /// The stub has verified the kernel and jumps to it.
    KernelEntry,
}

/// What a launch is measured as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measurement {
    /// How the guest is isolated.
    pub tee: Tee,
    /// The launch digest that the guest's reports are to have: SEV-SNP's measurement or TDX's MRTD.
    pub digest: LaunchDigest,
    /// What the launch binds to the guest beside it.
    pub host_data: HostData,
}

/// Why a machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "reason", content = "detail", deny_unknown_fields)]
pub enum Exit {
    /// The guest powered itself off.
    PowerOff,
    /// The parent asked for it, or went away.
    Stopped,
    /// The boot stub refused to go on, and said why.
    StubRefused(String),
    /// The guest's kernel panicked.
    Panic,
    /// The guest reset itself.
    Reset,
    /// A virtual CPU triple-faulted.
    TripleFault,
    /// The guest asked for its own end through its isolation's protocol, for this reason.
    Terminated(String),
    /// The VMM or the hypervisor could not go on.
    Internal(String),
}

impl Exit {
    /// Exit status of the VMM process for this end.
    #[must_use]
    pub const fn status(&self) -> u8 {
        match self {
            Self::PowerOff | Self::Stopped => 0,
            Self::Internal(_) => 1,
            Self::StubRefused(_) => 10,
            Self::Panic => 11,
            Self::Reset => 12,
            Self::TripleFault => 13,
            Self::Terminated(_) => 14,
        }
    }
}

/// Exit status of the VMM process when the launch itself was refused: a bad plan, image or host.
pub const STATUS_LAUNCH_REFUSED: u8 = 2;

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::PowerOff => f.write_str("guest powered off"),
            Self::Stopped => f.write_str("stopped on request"),
            Self::StubRefused(why) => write!(f, "boot stub refused to start the kernel: {why}"),
            Self::Panic => f.write_str("guest kernel panicked"),
            Self::Reset => f.write_str("guest reset itself"),
            Self::TripleFault => f.write_str("guest triple-faulted"),
            Self::Terminated(why) => write!(f, "guest terminated itself: {why}"),
            Self::Internal(why) => write!(f, "virtual machine monitor failed: {why}"),
        }
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// A step of the boot was reached.
    Mark {
        /// Which.
        mark: Mark,
        /// When, in microseconds of `CLOCK_MONOTONIC`.
        monotonic_us: u64,
    },
    /// The launch is measured; the guest runs next. Where nothing isolates the guest, nothing is measured.
    Measured(Measurement),
    /// The launch was refused; the process ends with [`STATUS_LAUNCH_REFUSED`].
    Refused(String),
    /// The machine ended; the process ends with [`Exit::status`].
    Ended(Exit),
}
