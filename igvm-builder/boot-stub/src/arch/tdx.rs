//! TDX's instruction, `TDCALL` (Intel TDX module ABI), and the page-table entry that depends on the machine.

use core::arch::asm;
use core::ptr;
use core::sync::atomic::Ordering;

use boot_abi::PAGE_TABLES_GPA;
use boot_stub::tdx::Module;

use super::entry::MAILBOX_READY;

const VP_VMCALL: u64 = 0;
const MEM_PAGE_ACCEPT: u64 = 6;
/// R10 to R15 pass to the hypervisor and back.
const PASSED: u64 = 0xFC00;
/// The GiB of the window and the devices.
const DEVICE_GIB: usize = 3;

/// The processor of a TD.
#[derive(Debug)]
pub struct Cpu(());

impl Cpu {
    /// # Safety
    /// The guest must run as a TD, on the page tables that the image has for it.
    pub const unsafe fn promised() -> Self {
        Self(())
    }

    /// Maps the GiB of the window and the devices as shared memory.
    pub fn share_devices(&mut self, shared_bit: u64) {
        let pdpt = PAGE_TABLES_GPA as usize + 4096;
        let entry: *mut u64 = ptr::with_exposed_provenance_mut(pdpt + DEVICE_GIB * 8);
        // SAFETY: the entry is in private, loaded memory which no Rust object covers.
        let value = unsafe { entry.read_volatile() };
        // SAFETY: as above; nothing of the stub's lies in the GiB, and the other virtual CPUs run below it.
        unsafe { entry.write_volatile(value | shared_bit) };
        // SAFETY: loads the same tables again, so that no earlier translation stays.
        unsafe { asm!("mov {tables}, cr3", "mov cr3, {tables}", tables = out(reg) _, options(nostack)) };
    }

    /// Lets the other virtual CPUs look into the mailbox, which is accepted and zero.
    pub fn open_mailbox(&mut self) {
        MAILBOX_READY.store(1, Ordering::Release);
    }
}

impl Module for Cpu {
    fn accept(&mut self, page: u64) -> u64 {
        let status;
        // SAFETY: changes whether memory may be used, which nothing refers to before it was accepted.
        unsafe {
            asm!(
                "tdcall",
                inout("rax") MEM_PAGE_ACCEPT => status,
                inout("rcx") page => _,
                lateout("rdx") _, lateout("r8") _, lateout("r9") _, lateout("r10") _, lateout("r11") _,
                options(nostack),
            );
        }
        status
    }

    fn vmcall(&mut self, registers: [u64; 6]) -> Option<u64> {
        let [r10, r11, r12, r13, r14, r15] = registers;
        let module: u64;
        let hypervisor;
        // SAFETY: only the registers named pass to the hypervisor and back; it sees shared memory alone.
        unsafe {
            asm!(
                "tdcall",
                inout("rax") VP_VMCALL => module,
                inout("rcx") PASSED => _,
                inout("r10") r10 => hypervisor,
                inout("r11") r11 => _, inout("r12") r12 => _, inout("r13") r13 => _,
                inout("r14") r14 => _, inout("r15") r15 => _,
                options(nostack),
            );
        }
        (module == 0).then_some(hypervisor)
    }
}
