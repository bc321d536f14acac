//! Progress of long work, on standard error: a spinner on a terminal, a few plain lines elsewhere.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Least time between two plain lines.
const PLAIN_INTERVAL: Duration = Duration::from_secs(15);

/// One piece of work that a person waits for.
pub struct Progress {
    name: String,
    bar: ProgressBar,
    started: Instant,
    last_line: Instant,
}

impl Progress {
    /// Announces the work.
    #[must_use]
    pub fn start(name: impl Into<String>) -> Self {
        let name = name.into();
        let bar = ProgressBar::new_spinner();
        if bar.is_hidden() {
            eprintln!("{name} …");
        } else {
            if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} {elapsed} {wide_msg:.dim}") {
                bar.set_style(style);
            }
            bar.set_prefix(name.clone());
            bar.enable_steady_tick(Duration::from_millis(120));
        }
        let now = Instant::now();
        Self { name, bar, started: now, last_line: now }
    }

    /// Says what the work is at.
    pub fn note(&mut self, message: &str) {
        if !self.bar.is_hidden() {
            self.bar.set_message(message.to_owned());
        } else if self.last_line.elapsed() >= PLAIN_INTERVAL {
            self.last_line = Instant::now();
            eprintln!("{} … {:.0} s: {message}", self.name, self.started.elapsed().as_secs_f64());
        }
    }

    /// Ends the work with one line.
    pub fn finish(self, result: &str) {
        self.bar.finish_and_clear();
        eprintln!("{}: {result} ({:.1} s)", self.name, self.started.elapsed().as_secs_f64());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
