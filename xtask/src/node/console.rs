//! This process's own terminal and standard input, passed to the node.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::AsFd,
    thread,
};

use anyhow::{Context, Result};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM, SIGWINCH},
    iterator::Signals,
};

use super::{
    Requests,
    wire::{CHUNK, Request},
};

/// Sends standard input to the node until its end, in a thread that lasts as long as the process.
pub fn pump_input(requests: Requests) {
    thread::spawn(move || {
        // Not `io::stdin()`: its buffer would hold back what a terminal sends byte by byte.
        let Ok(input) = io::stdin().as_fd().try_clone_to_owned() else { return };
        let mut input = File::from(input);
        let mut buffer = vec![0; CHUNK];
        loop {
            let count = match input.read(&mut buffer) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => 0,
            };
            // The node ends before this thread in an orderly run: nobody is left to be told.
            if requests.send(&Request::Input(buffer[..count].to_vec())).is_err() || count == 0 {
                return;
            }
        }
    });
}

/// The terminal in raw mode, its size followed; left as it was found when dropped or when a signal ends us.
pub struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Switches standard input's terminal to raw mode; tells the node when its size changes.
    ///
    /// # Errors
    /// When standard input is no terminal.
    pub fn enter(requests: Requests) -> Result<Self> {
        let before = tcgetattr(io::stdin()).context("cannot read the terminal's mode")?;
        let mut raw = before.clone();
        raw.make_raw();
        let mut signals = Signals::new([SIGWINCH, SIGTERM, SIGHUP, SIGINT])?;
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)
            .context("cannot switch the terminal to raw mode")?;
        let restore = before.clone();
        thread::spawn(move || {
            for signal in signals.forever() {
                if signal != SIGWINCH {
                    // Failing to restore must not keep the process alive.
                    let _ = tcsetattr(io::stdin(), OptionalActions::Now, &restore);
                    std::process::exit(128 + signal);
                }
                if let Ok(size) = tcgetwinsize(io::stdin()) {
                    // A node that has ended needs no size.
                    let _ = requests.send(&Request::Resize(size.ws_row, size.ws_col));
                }
            }
        });
        Ok(Self { before })
    }

    /// Rows and columns.
    ///
    /// # Errors
    /// When the terminal has gone.
    pub fn size(&self) -> Result<(u16, u16)> {
        let size = tcgetwinsize(io::stdin()).context("cannot read the terminal's size")?;
        Ok((size.ws_row, size.ws_col))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // Nothing can be done for a terminal that has gone.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}
