//! A guest that every monitor can run and whose first process says that it runs: one byte on the first serial port.
//!
//! The init is a file of two hundred bytes that touches nothing else, so that what is measured is the way to it. The
//! byte is written with a port instruction of its own: no console driver has to be awake, and it costs every monitor
//! one exit.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use serde_json::Value;
use vmm_client::monotonic_us;

use crate::case::Bed;
use crate::command::run;

/// What the init writes.
const MARK: u8 = 0x06;
/// The first serial port of a PC.
const SERIAL: u16 = 0x3F8;
/// Longest time from a monitor's start to the byte. The node is emulated.
const LIMIT: Duration = Duration::from_secs(120);

/// A root file system with this init, and images that launch it.
#[derive(Debug)]
pub struct MarkerGuest {
    folder: PathBuf,
    /// The product's kernel.
    pub kernel: PathBuf,
    /// The root file system's image.
    pub rootfs: PathBuf,
    /// The kernel's command line in the image without isolation: the one that other monitors pass.
    pub command_line: String,
}

impl MarkerGuest {
    /// Packs the root file system and builds both images in `folder`, with the product's own tools, kernel and
    /// command line.
    ///
    /// # Errors
    /// When one of the tools fails.
    pub fn build(bed: &Bed, folder: &Path) -> Result<Self> {
        let (init, rootfs, info) =
            (folder.join("init"), folder.join("rootfs.img"), folder.join("rootfs.json"));
        fs::write(&init, executable(&code()))?;
        let pack = ["pack", "--agent", text(&init)?, "--out", text(&rootfs)?, "--info", text(&info)?];
        run(bed.program("uvm-rootfs"), &pack)?.expect_status(0)?;
        let own = root_arguments(&bed.product.join("rootfs.json"))?;
        let recipe = fs::read_to_string(bed.product.join("uvm.recipe.toml"))?;
        let (_, rest) =
            recipe.split_once("command_line = '''").context("a command line in uvm.recipe.toml")?;
        let (line, _) = rest.split_once("'''").context("the end of the command line in uvm.recipe.toml")?;
        let line = line.replace(&own, &root_arguments(&info)?);
        let mut guest =
            Self { folder: folder.into(), kernel: bed.product.join("bzImage"), rootfs, command_line: line };
        for tee in ["none", "sim"] {
            guest.image(bed, tee)?;
        }
        let sidecar: Value =
            serde_json::from_slice(&fs::read(guest.image_path("none").with_extension("json"))?)?;
        let full = sidecar["platforms"][0]["command_line"].as_str().context("the image's command line")?;
        full.clone_into(&mut guest.command_line);
        Ok(guest)
    }

    /// The image for this isolation.
    #[must_use]
    pub fn image_path(&self, tee: &str) -> PathBuf {
        self.folder.join(format!("marker-{tee}.igvm"))
    }

    /// Images have a console, because only those may write to a serial port.
    fn image(&self, bed: &Bed, tee: &str) -> Result<()> {
        let recipe = self.folder.join(format!("marker-{tee}.toml"));
        let line = &self.command_line;
        fs::write(&recipe, format!("command_line = '''{line}'''\ntees = ['{tee}']\ndebug = true\n"))?;
        let (stub, out) = (bed.product.join("boot-stub"), self.image_path(tee));
        let build = [
            "build",
            text(&recipe)?,
            "--kernel",
            text(&self.kernel)?,
            "--stub",
            text(&stub)?,
            "--out",
            text(&out)?,
        ];
        run(bed.program("uvm-launch"), &build)?.expect_status(0)?;
        Ok(())
    }
}

fn root_arguments(info: &Path) -> Result<String> {
    let info: Value = serde_json::from_slice(&fs::read(info)?)?;
    Ok(info["kernel_arguments"].as_str().context("kernel_arguments")?.to_owned())
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{}: expected a path in UTF-8", path.display()))
}

/// Where a serial port leads: a named pipe on which the byte is awaited.
#[derive(Debug)]
pub struct SerialPort {
    /// The pipe, for the monitor to open.
    pub path: PathBuf,
    pipe: File,
}

impl SerialPort {
    /// Makes the pipe in `folder`.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(folder: &Path) -> Result<Self> {
        let path = folder.join("serial");
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).context("make a named pipe")?;
        // Open in both directions, so that neither end waits for the other to be opened.
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let pipe = rustix::fs::open(&path, flags, Mode::empty()).context("open the named pipe")?;
        Ok(Self { path, pipe: pipe.into() })
    }

    /// Waits for the init's byte; gives when it came, in microseconds of `CLOCK_MONOTONIC`.
    ///
    /// # Errors
    /// When it does not come in time: with what came instead.
    pub fn wait(&mut self) -> Result<u64> {
        let (began, mut seen) = (monotonic_us(), Vec::new());
        let limit = u64::try_from(LIMIT.as_micros())?;
        loop {
            let left = (began + limit).saturating_sub(monotonic_us());
            ensure!(
                left > 0,
                "no init within {LIMIT:?}; the serial port said {:?}",
                String::from_utf8_lossy(&seen)
            );
            let timeout = Timespec::try_from(Duration::from_micros(left))?;
            let mut ready = [PollFd::new(&self.pipe, PollFlags::IN)];
            poll(&mut ready, Some(&timeout))?;
            let at = monotonic_us();
            let mut bytes = [0; 4096];
            match self.pipe.read(&mut bytes) {
                Ok(count) if bytes[..count].contains(&MARK) => return Ok(at),
                Ok(count) => seen.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => bail!("cannot read the serial port: {error}"),
            }
        }
    }
}

/// `ioperm(0x3F8, 1, 1); outb(MARK, 0x3F8); for (;;) pause();`
fn code() -> Vec<u8> {
    const IOPERM: u8 = 173;
    const PAUSE: u8 = 34;
    let [low, high] = SERIAL.to_le_bytes();
    vec![
        0xB8, IOPERM, 0, 0, 0, // mov eax, ioperm
        0xBF, low, high, 0, 0, // mov edi, port
        0xBE, 1, 0, 0, 0, // mov esi, 1
        0xBA, 1, 0, 0, 0, // mov edx, 1
        0x0F, 0x05, // syscall
        0x66, 0xBA, low, high, // mov dx, port
        0xB0, MARK, // mov al, mark
        0xEE, // out dx, al
        0xB8, PAUSE, 0, 0, 0, // mov eax, pause
        0x0F, 0x05, // syscall
        0xEB, 0xF7, // back to the mov before
    ]
}

/// A static ELF executable (System V ABI, gABI chapters 4 and 5) of one segment that holds `code`.
fn executable(code: &[u8]) -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    const READ_EXECUTE: u32 = 5;
    let length = HEADERS + code.len() as u64;
    let mut elf = b"\x7FELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    let half = |elf: &mut Vec<u8>, value: u16| elf.extend(value.to_le_bytes());
    let word = |elf: &mut Vec<u8>, value: u32| elf.extend(value.to_le_bytes());
    let long = |elf: &mut Vec<u8>, value: u64| elf.extend(value.to_le_bytes());
    // Type: executable; machine: x86-64; version; entry; program headers behind this one; no sections; flags.
    half(&mut elf, 2);
    half(&mut elf, 62);
    word(&mut elf, 1);
    long(&mut elf, BASE + HEADERS);
    long(&mut elf, 64);
    long(&mut elf, 0);
    word(&mut elf, 0);
    // Sizes: this header; a program header, one; a section header, none.
    for value in [64, 56, 1, 64, 0, 0] {
        half(&mut elf, value);
    }
    // The segment: loaded, from the file's begin, all of it.
    word(&mut elf, 1);
    word(&mut elf, READ_EXECUTE);
    for value in [0, BASE, BASE, length, length, 0x1000] {
        long(&mut elf, value);
    }
    elf.extend(code);
    elf
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::{Command, Stdio};

    use super::*;

    /// The executable loads and runs here as it does in a guest; the code then ends instead of touching a port.
    #[test]
    fn the_executable_is_one() {
        // mov edi, 42; mov eax, exit; syscall
        let ends = [0xBF, 42, 0, 0, 0, 0xB8, 60, 0, 0, 0, 0x0F, 0x05];
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("init");
        fs::write(&path, executable(&ends)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let status = Command::new(&path).stdin(Stdio::null()).status().unwrap();
        assert_eq!(status.code(), Some(42));
    }

    #[test]
    fn the_loop_goes_back_to_the_last_system_call() {
        let code = code();
        let after = isize::try_from(code.len()).unwrap();
        let jump = isize::from(i8::from_ne_bytes([code[code.len() - 1]]));
        assert_eq!(code[usize::try_from(after + jump).unwrap()], 0xB8);
    }

    #[test]
    fn the_mark_is_found_among_other_output() {
        use std::io::Write as _;
        let folder = tempfile::tempdir().unwrap();
        let mut port = SerialPort::create(folder.path()).unwrap();
        let mut writer = File::options().append(true).open(&port.path).unwrap();
        writer.write_all(b"booting\n").unwrap();
        writer.write_all(&[MARK]).unwrap();
        assert!(port.wait().unwrap() <= monotonic_us());
    }
}
