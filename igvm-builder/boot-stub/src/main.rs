//! The measured firmware: verifies the kernel, describes the machine to it, and jumps.
//!
//! Runs on the first virtual CPU, in 64-bit mode, with the page tables, stack and configuration that the
//! image measures, interrupts off and no interrupt table: any fault ends the machine. It believes nothing
//! that is not measured, except what [`boot_abi::ram`] has checked.
#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "firmware: physical memory, I/O ports and the entry are its work")]

mod arch;

use core::fmt::Write as _;

use boot_abi::ram::Ram;
use boot_abi::{
    ACPI_GPA, ACPI_LIMIT, BOOT_PARAMS_GPA, COMMAND_LINE_GPA, COMMAND_LINE_MAX, CONFIG_GPA, Config, DSDT_GPA,
    DSDT_MAX, KERNEL_GPA, MEMORY_MAP_ENTRIES, MemoryMapEntry, PARAMS_GPA, PARAMS_MEMORY_MAP, PARAMS_VP_COUNT,
    StubPort,
};
use boot_stub::linux::{self, Kernel};
use boot_stub::{Refusal, acpi};
use sha2::{Digest, Sha256};
use zerocopy::FromBytes;

use arch::{Port, memory, memory_mut};

/// Called by the entry code (`arch`) with a stack and SSE.
extern "C" fn start() -> ! {
    // SAFETY: the configuration page is measured, mapped, and never written.
    let page = unsafe { memory(CONFIG_GPA, size_of::<Config>()) };
    let Ok(config) = Config::ref_from_bytes(page) else { arch::halt() };
    let mut port = Port(config.stub_port);
    port.write(StubPort::Started as u8);
    match prepare(config) {
        Ok(()) => {
            port.write(StubPort::KernelEntry as u8);
            arch::enter_kernel(KERNEL_GPA + linux::ENTRY_64, BOOT_PARAMS_GPA)
        }
        Err(refusal) => refuse(&mut port, refusal),
    }
}

fn refuse(port: &mut Port, refusal: Refusal) -> ! {
    port.write(StubPort::Refused as u8);
    // Writing to the port cannot fail.
    let _ = write!(port, "{refusal}");
    port.write(StubPort::End as u8);
    arch::halt()
}

/// Everything between the first instruction and the kernel's.
fn prepare(config: &Config) -> Result<(), Refusal> {
    if config.magic != Config::MAGIC {
        return Err(Refusal::Config);
    }
    let params = Params::read();
    if !(1..=config.max_vcpus).contains(&params.vcpus) {
        return Err(Refusal::Vcpus { max: config.max_vcpus, found: params.vcpus });
    }
    Ram::check(&params.memory_map, KERNEL_GPA + config.kernel_bytes)?;
    let file = fetch_kernel(config)?;
    let kernel = Kernel::parse(file, config.kernel_setup_bytes)?;
    let ram = Ram::check(&params.memory_map, kernel.needed_end())?;

    // SAFETY: RAM that the map covers, and that nothing else refers to.
    let zero_page = unsafe { memory_mut(BOOT_PARAMS_GPA, 4096) };
    let zero_page = zero_page.first_chunk_mut().ok_or(Refusal::Config)?;
    linux::write_boot_params(zero_page, file, &ram)?;
    // SAFETY: as above.
    let command_line = unsafe { memory_mut(COMMAND_LINE_GPA, COMMAND_LINE_MAX) };
    command_line.copy_from_slice(&config.command_line);

    let room_bytes = usize::try_from(ACPI_LIMIT - ACPI_GPA).map_err(|_| Refusal::Acpi)?;
    // SAFETY: as above.
    let room = unsafe { memory_mut(ACPI_GPA, room_bytes) };
    let dsdt_bytes = usize::try_from(config.dsdt_bytes).map_err(|_| Refusal::Acpi)?;
    // SAFETY: the DSDT's page is measured, mapped, and never written.
    let dsdt = unsafe { memory(DSDT_GPA, dsdt_bytes.min(DSDT_MAX)) };
    let machine = acpi::Machine {
        vcpus: params.vcpus,
        ioapic_gpa: config.ioapic_gpa,
        sleep_port: config.sleep_port,
        reset_port: config.reset_port,
        dsdt,
    };
    acpi::write(room, ACPI_GPA, &machine)
}

/// The loader's parameters, copied out of their page once.
struct Params {
    vcpus: u32,
    memory_map: [MemoryMapEntry; MEMORY_MAP_ENTRIES],
}

impl Params {
    fn read() -> Self {
        // SAFETY: the parameter page is part of the image and mapped.
        let page = unsafe { memory(PARAMS_GPA, 4096) };
        let at = |offset: usize| page.get(offset..).unwrap_or(&[]);
        let vcpus = u32::read_from_prefix(at(PARAMS_VP_COUNT)).map_or(0, |(count, _)| count);
        let memory_map = FromBytes::read_from_prefix(at(PARAMS_MEMORY_MAP));
        let none = MemoryMapEntry { first_page: 0, pages: 0, kind: 0, flags: 0, reserved: 0 };
        Self { vcpus, memory_map: memory_map.map_or([none; MEMORY_MAP_ENTRIES], |(map, _)| map) }
    }
}

/// Copies the kernel out of the shared window so that its protected-mode part lies at [`KERNEL_GPA`], and
/// verifies the copy: the shared bytes are read once and never again.
fn fetch_kernel(config: &Config) -> Result<&'static [u8], Refusal> {
    let bytes = usize::try_from(config.kernel_bytes).map_err(|_| Refusal::Kernel("size"))?;
    let target = KERNEL_GPA - u64::from(config.kernel_setup_bytes);
    // SAFETY: measured values; the map covers the target, and nothing else refers to it. The window is only
    // ever read here, through a volatile-like string move.
    unsafe { arch::copy(target, config.window_gpa, bytes) };
    // SAFETY: as above; the copy is complete.
    let file = unsafe { memory(target, bytes) };
    let found = Sha256::digest(file);
    if found[..] != config.kernel_sha256[..] {
        let head = |digest: &[u8]| digest.first_chunk().map_or(0, |head| u32::from_be_bytes(*head));
        return Err(Refusal::KernelHash { expected: head(&config.kernel_sha256), found: head(&found) });
    }
    Ok(file)
}
