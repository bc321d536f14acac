//! Commands in the node, one at a time: their input, output and end, over pipes or a terminal.
//!
//! All that a command wrote before it ended is sent before its status. What processes that it left behind write
//! afterwards is dropped: its streams end with it, as they do for a remote shell.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, OwnedFd},
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use anyhow::Result;
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    io::Errno,
    pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt},
    termios::{Winsize, tcsetwinsize},
};

use super::reaper::Reaper;
use crate::node::{
    BEAT,
    wire::{self, CHUNK, JobSpec, Reply},
};

/// What a shell answers for a command that does not exist, and for one that cannot be started.
const NOT_FOUND: u8 = 127;
const NOT_STARTED: u8 = 126;
/// End of input as typed on a terminal (control-D).
const END_OF_TRANSMISSION: u8 = 4;

/// Sends replies of several threads, one at a time.
type Replies = Arc<Mutex<Arc<File>>>;
type Wrap = fn(Vec<u8>) -> Reply;

fn reply(replies: &Replies, message: &Reply) -> io::Result<()> {
    let port = replies.lock().unwrap_or_else(PoisonError::into_inner);
    wire::send(&**port, message)
}

/// The command that runs at present, if any.
pub struct Jobs {
    replies: Replies,
    reaper: Reaper,
    input: Option<Input>,
}

/// Where input goes: a pipe, or a terminal's master side.
struct Input {
    stream: OwnedFd,
    terminal: bool,
    /// Readable once the command has ended.
    ended: Arc<OwnedFd>,
}

/// Streams of a command about to start.
struct Plumbing {
    input: OwnedFd,
    outputs: Vec<(OwnedFd, Wrap)>,
}

impl Jobs {
    /// No command yet.
    #[must_use]
    pub fn new(port: Arc<File>, reaper: Reaper) -> Self {
        Self { replies: Arc::new(Mutex::new(port)), reaper, input: None }
    }

    /// Tells the other side from now on that this kernel still runs programs, until the port closes.
    pub fn show_life(&self) {
        let replies = Arc::clone(&self.replies);
        thread::spawn(move || {
            while reply(&replies, &Reply::Alive).is_ok() {
                thread::sleep(BEAT);
            }
        });
    }

    /// Starts a command. What is wrong with it is its own error output and status, not an error.
    ///
    /// # Errors
    /// When the port or the node's own means fail.
    pub fn run(&mut self, job: &JobSpec) -> Result<()> {
        let Some((program, arguments)) = job.argv.split_first() else {
            return self.refuse(NOT_FOUND, "expected a command, found nothing");
        };
        if !job.directory.is_dir() {
            return self.refuse(NOT_STARTED, &format!("no folder {}", job.directory.display()));
        }
        let mut command = match job.terminal {
            // `setsid --ctty` makes the standard input the controlling terminal of a new session.
            Some(_) => {
                let mut command = Command::new("/usr/bin/setsid");
                command.args(["--ctty", "--wait"]).arg(program);
                command
            }
            None => Command::new(program),
        };
        command.args(arguments).env_clear().current_dir(&job.directory);
        command.envs(job.environment.iter().map(|(name, value)| (name, value)));
        let plumbing = match job.terminal {
            Some(size) => terminal(&mut command, size)?,
            None => pipes(&mut command)?,
        };
        let started = self.reaper.spawn(&mut command);
        // The command keeps the child's ends of the pipes, which would hide their end.
        drop(command);
        let (_, exit) = match started {
            Ok(started) => started,
            Err(error) => {
                let status = if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_STARTED };
                return self.refuse(status, &format!("{}: {error}", program.to_string_lossy()));
            }
        };
        let ended = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let relays: Vec<_> = plumbing
            .outputs
            .into_iter()
            .map(|(source, wrap)| {
                let (ended, replies) = (Arc::clone(&ended), Arc::clone(&self.replies));
                thread::spawn(move || relay(&source, &ended, &replies, wrap))
            })
            .collect();
        self.input = Some(Input {
            stream: plumbing.input,
            terminal: job.terminal.is_some(),
            ended: Arc::clone(&ended),
        });
        let replies = Arc::clone(&self.replies);
        thread::spawn(move || {
            let status = exit.recv().unwrap_or(u8::MAX);
            // An eventfd accepts a one; the port's failure is seen by its reader, which ends the node.
            let _ = rustix::io::write(&*ended, &1_u64.to_ne_bytes());
            relays.into_iter().for_each(|relay| drop(relay.join()));
            let _ = reply(&replies, &Reply::Exited(status));
        });
        Ok(())
    }

    fn refuse(&mut self, status: u8, reason: &str) -> Result<()> {
        self.input = None;
        reply(&self.replies, &Reply::Errors(format!("node: {reason}\n").into_bytes()))?;
        Ok(reply(&self.replies, &Reply::Exited(status))?)
    }

    /// Passes input on; nothing means its end. Input that the command does not want is dropped.
    pub fn input(&mut self, bytes: &[u8]) {
        let Some(input) = &self.input else { return };
        let bytes = match bytes {
            [] if input.terminal => &[END_OF_TRANSMISSION],
            bytes => bytes,
        };
        if bytes.is_empty() || input.write(bytes).is_err() {
            self.input = None;
        }
    }

    /// Sets the size of the command's terminal, if it has one.
    pub fn resize(&self, rows: u16, columns: u16) {
        if let Some(input) = self.input.as_ref().filter(|input| input.terminal) {
            // A terminal that has just closed has no size.
            let _ = tcsetwinsize(&input.stream, window(rows, columns));
        }
    }
}

impl Input {
    /// Writes all, or as much as the command takes before it ends.
    fn write(&self, mut bytes: &[u8]) -> Result<(), Errno> {
        while !bytes.is_empty() {
            let mut wait = [
                PollFd::new(&self.stream, PollFlags::OUT),
                PollFd::from_borrowed_fd(self.ended.as_fd(), PollFlags::IN),
            ];
            poll(&mut wait, None)?;
            if wait[1].revents().contains(PollFlags::IN) {
                return Err(Errno::PIPE);
            }
            match rustix::io::write(&self.stream, bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Sends what `source` yields until its end, or until it is empty after the command's end.
fn relay(source: &OwnedFd, ended: &OwnedFd, replies: &Replies, wrap: Wrap) {
    let Ok(copy) = source.try_clone() else { return };
    let mut reader = File::from(copy);
    let mut buffer = vec![0; CHUNK];
    loop {
        let mut wait = [PollFd::new(source, PollFlags::IN), PollFd::new(ended, PollFlags::IN)];
        match poll(&mut wait, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(_) => return,
        }
        if wait[0].revents().is_empty() {
            return;
        }
        match reader.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => {
                if reply(replies, &wrap(buffer[..count].to_vec())).is_err() {
                    return;
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            // A terminal's master side fails when the last user of the other side has closed it.
            Err(_) => return,
        }
    }
}

fn pipes(command: &mut Command) -> io::Result<Plumbing> {
    let (input, writer) = io::pipe()?;
    let (out, stdout) = io::pipe()?;
    let (err, stderr) = io::pipe()?;
    command.stdin(input).stdout(stdout).stderr(stderr);
    let input = OwnedFd::from(writer);
    let outputs: Vec<(OwnedFd, Wrap)> = vec![(out.into(), Reply::Output), (err.into(), Reply::Errors)];
    [&input, &outputs[0].0, &outputs[1].0].into_iter().try_for_each(unblock)?;
    Ok(Plumbing { input, outputs })
}

fn terminal(command: &mut Command, (rows, columns): (u16, u16)) -> io::Result<Plumbing> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    tcsetwinsize(&master, window(rows, columns))?;
    let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    command.stdin(Stdio::from(slave.try_clone()?)).stdout(Stdio::from(slave.try_clone()?)).stderr(slave);
    unblock(&master)?;
    Ok(Plumbing { input: master.try_clone()?, outputs: vec![(master, Reply::Output)] })
}

fn window(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

fn unblock(descriptor: &OwnedFd) -> io::Result<()> {
    Ok(fcntl_setfl(descriptor, fcntl_getfl(descriptor)? | OFlags::NONBLOCK)?)
}
