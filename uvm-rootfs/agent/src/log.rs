//! Where the agent's own messages go: the kernel's ring buffer.
//!
//! Nothing leaves the guest by default. A debug image (`uvm.debug` on the measured command line) shows the ring
//! buffer on its console; then messages are written to standard error as well.

use std::fmt::Arguments;
use std::fs::File;
use std::io::Write;
use std::sync::OnceLock;

struct Sink {
    kernel: Option<File>,
    console: bool,
}

static SINK: OnceLock<Sink> = OnceLock::new();

/// Opens the ring buffer; `console` adds standard error. Only the first call has an effect.
pub fn open(console: bool) {
    let kernel = File::options().write(true).open("/dev/kmsg").ok();
    let _ = SINK.set(Sink { kernel, console });
}

/// Writes one message. Messages name things, never contents: no environment, no file data, no secrets.
pub fn write(message: Arguments<'_>) {
    let Some(sink) = SINK.get() else { return };
    // One write is one record in /dev/kmsg; <6> is the priority "info".
    let record = format!("<6>uvm-agent: {message}\n");
    if let Some(mut kernel) = sink.kernel.as_ref() {
        let _ = kernel.write_all(record.as_bytes());
    }
    if sink.console {
        eprintln!("uvm-agent: {message}");
    }
}

/// Logs like `format!`.
#[macro_export]
macro_rules! note {
    ($($argument:tt)*) => { $crate::log::write(format_args!($($argument)*)) };
}
