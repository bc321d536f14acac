//! What differs between the machines that the stub runs on: how a byte reaches the VMM, how memory is taken, and
//! how to end. The measured configuration says which it is; nothing is probed.

use core::fmt;

use boot_abi::ram::Ram;
use boot_abi::{CC_BLOB_GPA, CPUID_GPA, Config, LOADED_RANGES, LoadedRange, MAILBOX_GPA, Tee};
use boot_stub::Refusal;
use boot_stub::sha256::Engine;
use boot_stub::snp::{self, NEVER_VALIDATED, cc_blob, cpuid, msr};
use boot_stub::steps::Steps;
use boot_stub::tdx;

use crate::arch::{self, memory, memory_mut};

/// The machine, and the port that takes the stub's reports.
pub struct Platform {
    kind: Kind,
    port: u16,
}

enum Kind {
    /// No isolation, or a simulated one: an ordinary virtual machine.
    Plain,
    Snp(snp::Guest<arch::snp::Cpu>),
    Tdx(arch::tdx::Cpu),
}

impl Platform {
    /// Opens the way to the VMM. `address_width` is what a TD starts with. Where there is no way, it ends the
    /// guest here.
    pub fn open(tee: Tee, port: u16, address_width: u32) -> Self {
        let kind = match tee {
            Tee::None | Tee::Sim => Kind::Plain,
            Tee::Snp => Kind::Snp(open_snp()),
            Tee::Tdx => Kind::Tdx(open_tdx(address_width)),
        };
        Self { kind, port }
    }

    /// Sends one byte to the VMM.
    pub fn report(&mut self, byte: u8) {
        let sent = match &mut self.kind {
            Kind::Plain => {
                arch::write_port(self.port, byte);
                true
            }
            Kind::Snp(guest) => guest.write_port(self.port, byte).is_ok(),
            Kind::Tdx(module) => tdx::write_port(module, self.port, byte).is_ok(),
        };
        if !sent {
            self.terminate()
        }
    }

    /// Takes all RAM that the launch did not load, each page once. The map has been checked; nothing has touched
    /// that memory before.
    pub fn accept(&mut self, ram: &Ram, config: &Config) -> Result<(), Refusal> {
        match &mut self.kind {
            Kind::Plain => {}
            Kind::Snp(guest) => {
                // SAFETY: the page is loaded, private, and never written.
                let page = unsafe { memory(CPUID_GPA, 4096) };
                cpuid::check(page.first_chunk().ok_or(Refusal::Config("CPUID page"))?)?;
                let mut except = [LoadedRange::default(); LOADED_RANGES + NEVER_VALIDATED.len()];
                let known = config.loaded.iter().chain(&NEVER_VALIDATED);
                except.iter_mut().zip(known).for_each(|(slot, range)| *slot = *range);
                guest.accept(Steps::new(ram.ranges(), &except))?;
            }
            Kind::Tdx(module) => {
                tdx::accept(module, Steps::new(ram.ranges(), &config.loaded))?;
                // SAFETY: accepted just now or loaded; the other virtual CPUs do not look into it yet.
                unsafe { memory_mut(MAILBOX_GPA, 4096) }.fill(0);
                module.open_mailbox();
            }
        }
        Ok(())
    }

    /// How to hash fastest.
    pub fn hash_engine(&self) -> Engine {
        match self.kind {
            Kind::Plain => arch::detect_hash_engine(),
            // SAFETY: every processor with SEV-SNP (Zen 3 and later) or TDX (Sapphire Rapids and later) has the
            // extensions.
            Kind::Snp(_) | Kind::Tdx(_) => unsafe { arch::hash_extensions() },
        }
    }

    /// Where the list of data begins that Linux finds beside its zero page, or 0.
    pub fn write_setup_data(&self) -> Result<u64, Refusal> {
        if !matches!(self.kind, Kind::Snp(_)) {
            return Ok(0);
        }
        // SAFETY: accepted RAM that nothing else refers to.
        let page = unsafe { memory_mut(CC_BLOB_GPA, 4096) };
        cc_blob::write(page.first_chunk_mut().ok_or(Refusal::Config("CC blob"))?);
        Ok(CC_BLOB_GPA)
    }

    /// Where Linux wakes the other processors, if not by interrupt.
    pub const fn mailbox_gpa(&self) -> Option<u64> {
        match self.kind {
            Kind::Plain | Kind::Snp(_) => None,
            Kind::Tdx(_) => Some(MAILBOX_GPA),
        }
    }

    /// Ends the guest.
    pub fn terminate(&mut self) -> ! {
        match &mut self.kind {
            Kind::Plain => arch::halt(),
            Kind::Snp(_) => terminate_snp(msr::Reason::General),
            Kind::Tdx(module) => terminate_tdx(module),
        }
    }
}

impl fmt::Write for Platform {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| self.report(byte));
        Ok(())
    }
}

fn snp_cpu() -> arch::snp::Cpu {
    // SAFETY: the measured configuration says so, and comes with the page tables.
    unsafe { arch::snp::Cpu::promised() }
}

fn open_snp() -> snp::Guest<arch::snp::Cpu> {
    match snp::Guest::open(snp_cpu()) {
        Ok(guest) => guest,
        // There is no way to say more than a reason's number.
        Err(error) => terminate_snp(msr::Reason::from(&error)),
    }
}

fn terminate_snp(reason: msr::Reason) -> ! {
    loop {
        msr::terminate(&mut snp_cpu(), reason);
    }
}

fn open_tdx(address_width: u32) -> arch::tdx::Cpu {
    // SAFETY: the measured configuration says so, and comes with the page tables.
    let mut module = unsafe { arch::tdx::Cpu::promised() };
    match tdx::shared_bit(address_width) {
        Ok(bit) => module.share_devices(bit),
        Err(_) => terminate_tdx(&mut module),
    }
    module
}

fn terminate_tdx(module: &mut arch::tdx::Cpu) -> ! {
    loop {
        tdx::terminate(module);
    }
}
