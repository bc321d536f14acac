//! Warnings of the device code, on standard error.
//!
//! A guest can cause them at will, so their number is bounded: after the last one the log stays silent.

use std::sync::atomic::{AtomicU32, Ordering};

use log::{LevelFilter, Log, Metadata, Record};

/// Most lines that a machine may cause.
const MOST_LINES: u32 = 1000;

struct Bounded(AtomicU32);

impl Log for Bounded {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= LevelFilter::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) && self.0.fetch_add(1, Ordering::Relaxed) < MOST_LINES {
            eprintln!("uvm-vmm: {}", record.args());
        }
    }

    fn flush(&self) {}
}

static LOG: Bounded = Bounded(AtomicU32::new(0));

/// Installs the log.
pub fn start() {
    // It fails only if there is a log already, and this is the one place that installs one.
    if log::set_logger(&LOG).is_ok() {
        log::set_max_level(LevelFilter::Warn);
    }
}
