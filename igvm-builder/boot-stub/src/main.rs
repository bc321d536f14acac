//! The measured firmware: takes memory, verifies the kernel, describes the machine to it, and jumps.
//!
//! Runs on the first virtual CPU, in 64-bit mode, with the page tables, stack and configuration that the
//! image measures, interrupts off and no interrupt table: any fault ends the machine. It believes nothing
//! that is not measured, except what the library has checked.
#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "firmware: physical memory, I/O ports and the entry are its work")]

#[cfg(not(sha2_backend = "soft"))]
compile_error!("the hash crate must not execute CPUID: build with --cfg sha2_backend=\"soft\"");

mod arch;
mod platform;

use core::fmt::Write as _;

use boot_abi::{
    ACPI_GPA, ACPI_LIMIT, BOOT_PARAMS_GPA, COMMAND_LINE_GPA, COMMAND_LINE_MAX, CONFIG_GPA, Config, DSDT_GPA,
    DSDT_MAX, KERNEL_GPA, PARAMS_GPA, StubPort, Tee,
};
use boot_stub::linux::{self, Kernel};
use boot_stub::params::Params;
use boot_stub::{Refusal, acpi, config, sha256};
use zerocopy::FromBytes;

use arch::{memory, memory_mut};
use platform::Platform;

/// Called by the entry code (`arch`) with a stack and SSE. `address_width` has a meaning on TDX only.
extern "C" fn start(address_width: u32) -> ! {
    // SAFETY: the configuration page is measured, mapped, and never written.
    let page = unsafe { memory(CONFIG_GPA, size_of::<Config>()) };
    let Ok(config) = Config::ref_from_bytes(page) else { arch::halt() };
    // An image for an isolation that this stub does not know cannot say so to anyone but an ordinary VMM.
    let tee = Tee::from_number(config.tee).unwrap_or(Tee::None);
    let mut platform = Platform::open(tee, config.stub_port, address_width);
    platform.report(StubPort::Started as u8);
    match prepare(config, &mut platform) {
        Ok(()) => {
            platform.report(StubPort::KernelEntry as u8);
            arch::enter_kernel(KERNEL_GPA + linux::ENTRY_64, BOOT_PARAMS_GPA)
        }
        Err(refusal) => refuse(&mut platform, refusal),
    }
}

fn refuse(platform: &mut Platform, refusal: Refusal) -> ! {
    platform.report(StubPort::Refused as u8);
    // Writing to the port cannot fail.
    let _ = write!(platform, "{refusal}");
    platform.report(StubPort::End as u8);
    platform.terminate()
}

/// Everything between the first instruction and the kernel's.
fn prepare(config: &Config, platform: &mut Platform) -> Result<(), Refusal> {
    config::check(config)?;
    // SAFETY: the parameter page is part of the image, mapped, and never written by the guest.
    let page = unsafe { memory(PARAMS_GPA, 4096) };
    let params = Params::parse(page.first_chunk().ok_or(Refusal::Config("parameter page"))?, config)?;
    platform.accept(&params.ram, config)?;

    let file = fetch_kernel(config, platform)?;
    let kernel = Kernel::parse(file, config.kernel_setup_bytes)?;
    params.ram.reaches(kernel.needed_end())?;

    // SAFETY: RAM that the map covers, and that nothing else refers to.
    let zero_page = unsafe { memory_mut(BOOT_PARAMS_GPA, 4096) };
    let zero_page = zero_page.first_chunk_mut().ok_or(Refusal::Config("zero page"))?;
    linux::write_boot_params(zero_page, file, &params.ram, platform.write_setup_data()?)?;
    // SAFETY: as above.
    let command_line = unsafe { memory_mut(COMMAND_LINE_GPA, COMMAND_LINE_MAX) };
    command_line.copy_from_slice(&config.command_line);
    write_acpi(config, params.vcpus, platform)
}

fn write_acpi(config: &Config, vcpus: u32, platform: &Platform) -> Result<(), Refusal> {
    let room_bytes = usize::try_from(ACPI_LIMIT - ACPI_GPA).map_err(|_| Refusal::Acpi)?;
    // SAFETY: RAM that the map covers, and that nothing else refers to.
    let room = unsafe { memory_mut(ACPI_GPA, room_bytes) };
    let dsdt_bytes = usize::try_from(config.dsdt_bytes).map_err(|_| Refusal::Acpi)?;
    // SAFETY: the DSDT's page is measured, mapped, and never written.
    let dsdt = unsafe { memory(DSDT_GPA, dsdt_bytes.min(DSDT_MAX)) };
    let machine = acpi::Machine {
        vcpus,
        ioapic_gpa: config.ioapic_gpa,
        sleep_port: config.sleep_port,
        reset_port: config.reset_port,
        mailbox_gpa: platform.mailbox_gpa(),
        dsdt,
    };
    acpi::write(room, ACPI_GPA, &machine)
}

/// The verified kernel file, so placed that its protected-mode part lies at [`KERNEL_GPA`]. Unless the launch put
/// it there, it is copied out of the shared window; only the copy is verified, and the shared bytes are read once
/// and never again.
fn fetch_kernel(config: &Config, platform: &mut Platform) -> Result<&'static [u8], Refusal> {
    let bytes = usize::try_from(config.kernel_bytes).map_err(|_| Refusal::Kernel("size"))?;
    let target = config::kernel_file_gpa(config);
    if !config::kernel_is_private(config) {
        // SAFETY: measured values; the map covers the target, and nothing else refers to it. The window is only
        // ever read here, through a volatile-like string move.
        unsafe { arch::copy(target, config.window_gpa, bytes) };
        platform.report(StubPort::Copied as u8);
    }
    // SAFETY: as above; the copy is complete.
    let file = unsafe { memory(target, bytes) };
    let found = sha256::digest(platform.hash_engine(), file);
    if found != config.kernel_sha256 {
        let head = |digest: &[u8]| digest.first_chunk().map_or(0, |head| u32::from_be_bytes(*head));
        return Err(Refusal::KernelHash { expected: head(&config.kernel_sha256), found: head(&found) });
    }
    Ok(file)
}
