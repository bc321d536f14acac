//! Programs run to their end, with a time limit: a hanging program is a failed case, not a hanging suite.

use std::ffi::OsStr;
use std::io::{Read, Write as _};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

/// How long a program may take if nothing else is said. The node is emulated.
const LIMIT: Duration = Duration::from_secs(120);

/// What a program did.
#[derive(Debug)]
pub struct Outcome {
    /// Exit status; 128 and the signal where it was killed.
    pub status: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Outcome {
    /// Fails unless the status is `status`.
    ///
    /// # Errors
    /// With all that the program printed.
    pub fn expect_status(self, status: i32) -> Result<Self> {
        ensure!(self.status == status, "expected exit status {status}, found {self:?}");
        Ok(self)
    }

    /// Fails unless the program failed and said `words`, in whatever case, on standard error.
    ///
    /// # Errors
    /// With all that the program printed.
    pub fn expect_refusal(self, words: &str) -> Result<Self> {
        ensure!(self.status != 0, "expected a failure, found {self:?}");
        let said = self.err.to_lowercase().contains(&words.to_lowercase());
        ensure!(said, "expected {words:?} on standard error, found {self:?}");
        Ok(self)
    }
}

/// Runs `program` with nothing on its standard input.
///
/// # Errors
/// When it cannot be started or does not end in time.
pub fn run<A: AsRef<OsStr>>(program: impl AsRef<OsStr>, arguments: &[A]) -> Result<Outcome> {
    run_with_input(program, arguments, b"")
}

/// Runs `program` with nothing on its standard input, for as long as `limit`.
///
/// # Errors
/// When it cannot be started or does not end in time.
pub fn run_within<A: AsRef<OsStr>>(
    limit: Duration,
    program: impl AsRef<OsStr>,
    arguments: &[A],
) -> Result<Outcome> {
    converse(limit, program, arguments, b"")
}

/// Runs `program` with `input` on its standard input, which is then closed.
///
/// # Errors
/// When it cannot be started or does not end in time.
pub fn run_with_input<A: AsRef<OsStr>>(
    program: impl AsRef<OsStr>,
    arguments: &[A],
    input: &[u8],
) -> Result<Outcome> {
    converse(LIMIT, program, arguments, input)
}

fn converse<A: AsRef<OsStr>>(
    limit: Duration,
    program: impl AsRef<OsStr>,
    arguments: &[A],
    input: &[u8],
) -> Result<Outcome> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
    let (out, err) = (drain(child.stdout.take()), drain(child.stderr.take()));
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read its input is none of our business.
        let _ = stdin.write_all(input);
    }
    let status = wait(&mut child, limit).with_context(|| format!("{command:?}"));
    let text = |reader: thread::JoinHandle<Vec<u8>>| {
        String::from_utf8_lossy(&reader.join().unwrap_or_default()).into_owned()
    };
    let (out, err) = (text(out), text(err));
    match status {
        Ok(status) => Ok(Outcome { status, out, err }),
        Err(error) => Err(error.context(format!("standard output {out:?}, standard error {err:?}"))),
    }
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read before an error still counts.
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}

fn wait(child: &mut Child, limit: Duration) -> Result<i32> {
    use std::os::unix::process::ExitStatusExt as _;
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)));
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            bail!("did not end within {} s", limit.as_secs());
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until `ready` gives a value.
///
/// # Errors
/// When it does not within `limit`; names `what`.
pub fn eventually<T>(what: &str, limit: Duration, mut ready: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = ready()? {
            return Ok(value);
        }
        ensure!(Instant::now() < deadline, "{what}: not within {} s", limit.as_secs());
        thread::sleep(Duration::from_millis(50));
    }
}
