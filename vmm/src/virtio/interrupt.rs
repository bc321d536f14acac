//! A device's interrupt: why it was raised, and the line that it is raised on.
//!
//! Shared by the transport (which shows the reasons to the driver), the worker (used buffers, a broken ring)
//! and whoever changes the configuration. Before DRIVER_OK and after a reset the line stays silent, as
//! section 2.1.2 asks, but the configuration generation always counts; and a driver that may have read the
//! configuration before a change is told of it as soon as it is ready.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};

/// An edge-triggered interrupt line.
pub trait InterruptLine: Send + Sync {
    /// Sends one edge.
    fn raise(&self);
}

struct Shared {
    reasons: AtomicU32,
    generation: AtomicU32,
    live: AtomicBool,
    /// The configuration has changed since the last reset, and the driver has not been told.
    changed: AtomicBool,
    needs_reset: AtomicBool,
    line: Arc<dyn InterruptLine>,
}

/// A handle on one device's interrupt; clones are the same interrupt.
#[derive(Clone)]
pub struct Interrupt(Arc<Shared>);

impl std::fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Interrupt")
            .field("reasons", &self.reasons())
            .field("needs_reset", &self.is_reset_needed())
            .finish_non_exhaustive()
    }
}

impl Interrupt {
    /// An interrupt that is raised on `line`.
    #[must_use]
    pub fn new(line: Arc<dyn InterruptLine>) -> Self {
        Self(Arc::new(Shared {
            reasons: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            live: AtomicBool::new(false),
            changed: AtomicBool::new(false),
            needs_reset: AtomicBool::new(false),
            line,
        }))
    }

    /// Tells the driver that buffers were used.
    pub fn queue_used(&self) {
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    /// Tells the driver that the configuration changed. To be called while nobody can read the configuration
    /// (under the lock that guards it), so that the generation never lags behind what is read.
    pub fn config_changed(&self) {
        self.0.generation.fetch_add(1, Ordering::SeqCst);
        self.0.changed.store(true, Ordering::SeqCst);
        self.tell_of_changes();
    }

    /// The change is noted before the driver is looked at, and the driver is live before it looks for changes: in
    /// whichever order the two come, one of them tells.
    fn tell_of_changes(&self) {
        if self.0.live.load(Ordering::SeqCst) && self.0.changed.swap(false, Ordering::SeqCst) {
            self.raise(VIRTIO_MMIO_INT_CONFIG);
        }
    }

    /// Tells the driver that the device stands still until it is reset, and logs `why`.
    pub fn require_reset(&self, why: &dyn std::fmt::Display) {
        if !self.0.needs_reset.swap(true, Ordering::SeqCst) {
            log::warn!("virtio: device needs a reset: {why}");
            self.raise(VIRTIO_MMIO_INT_CONFIG);
        }
    }

    fn raise(&self, reason: u32) {
        if self.0.live.load(Ordering::SeqCst) {
            self.0.reasons.fetch_or(reason, Ordering::SeqCst);
            self.0.line.raise();
        }
    }

    pub(super) fn reasons(&self) -> u32 {
        self.0.reasons.load(Ordering::SeqCst)
    }

    pub(super) fn acknowledge(&self, reasons: u32) {
        self.0.reasons.fetch_and(!reasons, Ordering::SeqCst);
    }

    pub(super) fn generation(&self) -> u32 {
        self.0.generation.load(Ordering::SeqCst)
    }

    pub(super) fn is_reset_needed(&self) -> bool {
        self.0.needs_reset.load(Ordering::SeqCst)
    }

    pub(super) fn go_live(&self) {
        self.0.live.store(true, Ordering::SeqCst);
        self.tell_of_changes();
    }

    pub(super) fn reset(&self) {
        self.0.live.store(false, Ordering::SeqCst);
        // Whatever was changed, the driver is yet to read.
        self.0.changed.store(false, Ordering::SeqCst);
        self.0.needs_reset.store(false, Ordering::SeqCst);
        self.0.reasons.store(0, Ordering::SeqCst);
    }
}
