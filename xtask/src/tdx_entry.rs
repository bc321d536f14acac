//! The boot stub's first instructions in a trust domain, run by an emulated processor.
//!
//! A trust domain's virtual CPUs start at the reset vector in 32-bit mode with long mode enabled, all at once; no
//! ordinary machine does that. Here a firmware of a few instructions brings a processor of QEMU's into that state
//! and jumps where the image's reset page jumps. The first one must get to the module call that only a real trust
//! domain has; the others must wait until the mailbox wakes them, and only them.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use boot_abi::{MAILBOX_GPA, RESET_PAGE_GPA, STUB_END, STUB_GPA};
use launch::image::{Image, PageKind, Platform};

use crate::tally::Tally;
use crate::{image, places};

/// How long a processor that waits is watched.
const PATIENCE: Duration = Duration::from_secs(3);
/// Where a woken processor is sent: an undefined instruction behind the mailbox's fields.
const WAKE_VECTOR: u64 = MAILBOX_GPA + 0x100;
const UNDEFINED: [u8; 2] = [0x0F, 0x0B];
const TDCALL: [u8; 4] = [0x66, 0x0F, 0x01, 0xCC];
/// Width of guest-physical addresses that EBX tells.
const ADDRESS_WIDTH: u32 = 52;

/// What the image puts into memory.
struct Loaded {
    /// From [`STUB_GPA`] to [`STUB_END`].
    low: Vec<u8>,
    /// Where the reset page jumps.
    entry: u32,
}

/// A processor and what it finds, and where it must fault; `None`: it must not.
struct Case {
    name: &'static str,
    index: u32,
    /// The APIC id in the mailbox's wake-up, if the mailbox may be read.
    wake: Option<u32>,
    faults_at: Option<fn(u64, &Loaded) -> bool>,
}

const CASES: &[Case] = &[
    Case {
        name: "the first gets to its first module call",
        index: 0,
        wake: None,
        faults_at: Some(is_module_call),
    },
    Case { name: "another waits for the mailbox", index: 1, wake: None, faults_at: None },
    Case { name: "another is woken by its own number", index: 1, wake: Some(1), faults_at: Some(is_vector) },
    Case { name: "another is not woken by a stranger's", index: 1, wake: Some(2), faults_at: None },
];

fn is_module_call(at: u64, loaded: &Loaded) -> bool {
    let offset = at.checked_sub(STUB_GPA).and_then(|offset| usize::try_from(offset).ok());
    offset.and_then(|offset| loaded.low.get(offset..)).is_some_and(|code| code.starts_with(&TDCALL))
}

fn is_vector(at: u64, _: &Loaded) -> bool {
    at == WAKE_VECTOR
}

/// Runs every case on the product's image.
///
/// # Errors
/// When the product does not build, or QEMU cannot be run.
pub fn run() -> Result<Tally> {
    let product = image::build()?;
    let loaded = Loaded::read(&product.join("uvm.igvm"))?;
    let folder = places::target().join("tmp");
    fs::create_dir_all(&folder)?;
    let mut total = Tally::default();
    for case in CASES {
        let outcome = case.run(&loaded, &folder);
        match &outcome {
            Ok(()) => eprintln!("ok: {}", case.name),
            Err(error) => eprintln!("FAILED: {}: {error:#}", case.name),
        }
        total.add(Tally::of_check(outcome.is_ok()));
    }
    Ok(total)
}

impl Loaded {
    fn read(path: &Path) -> Result<Self> {
        let image = Image::decode(&fs::read(path)?, Platform::Tdx)?;
        let mut low = vec![0; usize::try_from(STUB_END - STUB_GPA)?];
        let mut entry = None;
        for page in image.pages.iter().filter(|page| page.kind == PageKind::Measured) {
            if page.gpa == RESET_PAGE_GPA {
                // mov eax, imm32; jmp eax
                let vector = page.data.get(4096 - 16..4096 - 9).context("a whole reset page")?;
                ensure!(vector[0] == 0xB8 && vector[5..] == [0xFF, 0xE0], "reset vector: found {vector:x?}");
                entry = Some(u32::from_le_bytes(vector[1..5].try_into()?));
            } else if let Some(offset) = page.gpa.checked_sub(STUB_GPA) {
                let room = low.get_mut(usize::try_from(offset)?..).context("a page of the stub's")?;
                room[..page.data.len()].copy_from_slice(&page.data);
            }
        }
        Ok(Self { low, entry: entry.context("a reset page")? })
    }

    /// The memory that a processor finds; with a wake-up, the mailbox is open and has it.
    fn memory(&self, wake: Option<u32>) -> Result<Vec<u8>> {
        let mut memory = self.low.clone();
        let Some(apic_id) = wake else { return Ok(memory) };
        let flag = self.ready_flag()?;
        memory[flag..flag + 4].copy_from_slice(&1u32.to_le_bytes());
        let mailbox = usize::try_from(MAILBOX_GPA - STUB_GPA)?;
        memory[mailbox..mailbox + 2].copy_from_slice(&1u16.to_le_bytes());
        memory[mailbox + 4..mailbox + 8].copy_from_slice(&apic_id.to_le_bytes());
        memory[mailbox + 8..mailbox + 16].copy_from_slice(&WAKE_VECTOR.to_le_bytes());
        memory[mailbox + 0x100..mailbox + 0x102].copy_from_slice(&UNDEFINED);
        Ok(memory)
    }

    /// The offset of the flag that waiting processors read: pause; cmp dword ptr [rip + offset], 0.
    fn ready_flag(&self) -> Result<usize> {
        let at = self.low.windows(4).position(|code| code == [0xF3, 0x90, 0x83, 0x3D]);
        let at = at.context("the loop of waiting processors")?;
        let distance = i32::from_le_bytes(self.low[at + 4..at + 8].try_into()?);
        (at + 9).checked_add_signed(isize::try_from(distance)?).context("the loop's flag")
    }
}

impl Case {
    fn run(&self, loaded: &Loaded, folder: &Path) -> Result<()> {
        let [firmware, memory, log] =
            ["firmware", "memory", "log"].map(|name| folder.join(format!("tdx-{name}")));
        fs::write(&firmware, firmware_for(loaded.entry, self.index))?;
        fs::write(&memory, loaded.memory(self.wake)?)?;
        fs::write(&log, "")?;
        watch(&firmware, &memory, &log)?;
        let said = fs::read_to_string(&log)?;
        let fault = said.lines().find(|line| line.contains(": v="));
        match (self.faults_at, fault) {
            (None, None) => Ok(()),
            (Some(right), Some(line)) => {
                // Vector 6 is the undefined instruction; selector 0x10 is the stub's 64-bit code.
                ensure!(line.contains("v=06"), "expected an undefined instruction, found {line}");
                let at = line.split("IP=0010:").nth(1).and_then(|rest| rest.split(' ').next());
                let at = u64::from_str_radix(at.with_context(|| format!("64-bit code in {line}"))?, 16)?;
                ensure!(right(at, loaded), "stopped at {at:#x}");
                Ok(())
            }
            (None, Some(line)) => anyhow::bail!("expected it to wait, found {line}"),
            (Some(_), None) => anyhow::bail!("expected it to stop, but it ran for {PATIENCE:?}"),
        }
    }
}

/// Runs one processor until it faults for good, or for [`PATIENCE`].
fn watch(firmware: &Path, memory: &Path, log: &Path) -> Result<()> {
    let loader = format!("loader,file={},addr={STUB_GPA:#x},force-raw=on", memory.display());
    let mut qemu = Command::new("qemu-system-x86_64")
        .args(["-machine", "pc,accel=tcg", "-cpu", "max", "-m", "256", "-nodefaults", "-display", "none"])
        .args(["-no-reboot", "-device", &loader, "-d", "int", "-bios"])
        .arg(firmware)
        .arg("-D")
        .arg(log)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start qemu-system-x86_64")?;
    let deadline = Instant::now() + PATIENCE;
    while qemu.try_wait()?.is_none() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
    // It has ended by itself if it faulted.
    let _ = qemu.kill();
    qemu.wait()?;
    Ok(())
}

/// 64 KiB that end below 4 GiB: from the reset vector in 16-bit mode to `entry` as a trust domain's processor
/// would be there: flat 32-bit segments, EFER.LME, CR4.MCE, EBX and ESI set.
fn firmware_for(entry: u32, index: u32) -> Vec<u8> {
    let mut code = vec![
        0xFA, // cli
        0x2E, 0x66, 0x0F, 0x01, 0x16, 0x68, 0x00, // lgdt cs:[0x68]
        0x0F, 0x20, 0xC0, 0x66, 0x83, 0xC8, 0x01, 0x0F, 0x22, 0xC0, // cr0 |= 1
        0x66, 0xEA, 0x1A, 0x00, 0xFF, 0xFF, 0x08, 0x00, // far jump to 8:0xFFFF001A, in 32-bit mode
        0xB8, 0x10, 0x00, 0x00, 0x00, 0x8E, 0xD8, 0x8E, 0xC0, 0x8E, 0xD0, // ds, es, ss = 0x10
        0xB9, 0x80, 0x00, 0x00, 0xC0, 0xB8, 0x00, 0x01, 0x00, 0x00, // ecx = EFER, eax = LME
        0x31, 0xD2, 0x0F, 0x30, // edx = 0; wrmsr
        0x0F, 0x20, 0xE0, 0x83, 0xC8, 0x40, 0x0F, 0x22, 0xE0, // cr4 |= MCE
    ];
    let mut load = |opcode: u8, value: u32| {
        code.push(opcode);
        code.extend_from_slice(&value.to_le_bytes());
    };
    load(0xBE, index); // mov esi
    load(0xBB, ADDRESS_WIDTH); // mov ebx
    load(0xB8, entry); // mov eax
    code.extend_from_slice(&[0xFF, 0xE0]); // jmp eax
    code.resize(0x50, 0);
    // Segments: none, code, data; then the table's limit and address.
    for word in [0u64, 0x00CF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF] {
        code.extend_from_slice(&word.to_le_bytes());
    }
    code.extend_from_slice(&23u16.to_le_bytes());
    code.extend_from_slice(&0xFFFF_0050u32.to_le_bytes());
    code.resize(0x1_0000, 0);
    code[0xFFF0..0xFFF5].copy_from_slice(&[0xEA, 0x00, 0x00, 0x00, 0xF0]); // far jump to F000:0000
    code
}
