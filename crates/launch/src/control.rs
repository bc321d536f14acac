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
/// Most files, and so most segments, that one request carries (the system's own limit is 253, unix(7)).
pub const MAX_SEGMENTS: usize = 200;
/// Most segments that one disk shows at a time.
pub const MAX_ATTACHED: usize = 32 * 1024;
/// What positions on a disk and in files, and lengths, are multiples of, in bytes.
pub const SEGMENT_ALIGNMENT: u64 = 4096;

/// What the parent asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Shows parts of files, one after another, on a disk from byte `at` on. What is attached never overlaps;
    /// between attached parts there may be gaps, in which requests fail. The disk ends with what is attached
    /// last on it.
    Attach {
        /// The disk: [`SLOT_LAYERS`](crate::layout::SLOT_LAYERS), whose files must be open for reading only, or
        /// [`SLOT_SCRATCH`](crate::layout::SLOT_SCRATCH), whose files must be open for both.
        slot: u32,
        /// Position on the disk, a multiple of [`SEGMENT_ALIGNMENT`].
        at: u64,
        /// What is attached; segment `n` is backed by the `n`th file that came along.
        segments: Vec<Segment>,
    },
    /// Takes away again all that one request attached.
    Detach {
        /// The disk.
        slot: u32,
        /// The position that the request named.
        at: u64,
    },
    /// Ends the machine now.
    Stop,
}

/// A part of a file, in bytes; both are multiples of [`SEGMENT_ALIGNMENT`].
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
