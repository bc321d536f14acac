//! Recorded launches: KVM and the processors behind it are played, byte for byte.

mod built;
mod kernel;
mod runtime;
mod snp;
mod tdx;

use std::sync::Arc;

use igvm::snp_defs::{SevSelector, SevVmsa};
use launch::image::{Image, Page, PageKind, Platform, Start};
use launch::plan::HostData;
use launch::snp::{Backend, steps, vmsa};
use vm_memory::MmapRegion;

use super::{IsolatedVm, Services};
use crate::hv::seam::Kernel;
use crate::hv::seam::recorder::{Entry, Recorder};
use crate::hv::{HvError, Launch, Run, Vcpu, Vm as _};

use kernel::Played;

const POLICY: u64 = 0x3_0000;
const RAM_BYTES: usize = 2 << 20;
const RESET_PAGE: u64 = 0xFFFF_F000;
const HOST_DATA: HostData = HostData([0xA5; 32]);

/// A start in 64-bit mode, in the form in which KVM makes save areas.
fn long_mode() -> SevVmsa {
    let segment = |selector, attrib, limit| SevSelector { selector, attrib, limit, base: 0 };
    let data = segment(0x18, 0xC93, u32::MAX);
    SevVmsa {
        cs: segment(0x10, 0xA9B, u32::MAX),
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: segment(0, 0x8B, 0xFFFF),
        cr0: 0x8000_0031,
        cr3: 0x14_0000,
        cr4: 0x60,
        efer: 0x1D00,
        rip: 0x10_0000,
        rsp: 0x10_8000,
        rsi: 0x1234,
        r15: 0x5678,
        ..vmsa::base()
    }
}

fn page(gpa: u64, kind: PageKind, fill: u8) -> Page {
    let data = if fill == 0 { Vec::new() } else { vec![fill; 4096] };
    Page { gpa, kind, data: data.into() }
}

/// Three measured pages that touch each other, one page of each other kind, and a shared one.
fn image(platform: Platform) -> Image {
    use PageKind::{Cpuid, Measured, Secrets, Shared, Unmeasured};
    let mut pages = vec![
        page(0x10_0000, Measured, 1),
        page(0x10_1000, Measured, 2),
        page(0x10_2000, Measured, 0),
        page(0x14_4000, Unmeasured, 3),
        page(0xC000_0000, Shared, 9),
    ];
    match platform {
        Platform::Snp => pages.extend([
            page(0x14_5000, Cpuid, 0),
            page(0x14_6000, Secrets, 0),
            page(0x14_8000, Measured, 4),
        ]),
        _ => pages.extend([page(0x14_9000, Measured, 5), page(RESET_PAGE, Measured, 6)]),
    }
    let (start, guest_policy) = match platform {
        Platform::Snp => (Start::Snp { gpa: 0x14_7000, vmsa: Box::new(long_mode()) }, Some(POLICY)),
        _ => (Start::Reset, None),
    };
    Image { platform, pages, parameters: Vec::new(), start, guest_policy, id_block: None }
}

fn runs(image: &Image) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for step in steps(image, Backend::Kvm, &[]) {
        let bytes = if step.data.is_empty() { vec![0; 4096] } else { step.data.to_vec() };
        match runs.last_mut() {
            Some(run) if run.page_type == step.page_type && run.gpa + run.bytes.len() as u64 == step.gpa => {
                run.bytes.extend(bytes);
            }
            _ => runs.push(Run { gpa: step.gpa, page_type: step.page_type, bytes }),
        }
    }
    runs
}

type Recording = Arc<Recorder<Played>>;

/// A machine and its virtual CPUs. The latter go first, as they do when a process ends.
struct Launched {
    vcpus: Vec<Box<dyn Vcpu>>,
    vm: IsolatedVm,
    window: u32,
}

fn make(kernel: &Recording, platform: Platform, vcpus: u32) -> Result<IsolatedVm, HvError> {
    let kernel: Arc<dyn Kernel> = Arc::clone(kernel) as _;
    match platform {
        Platform::Snp => IsolatedVm::snp(kernel, vcpus, Services::default()),
        _ => IsolatedVm::tdx(kernel, vcpus, HOST_DATA, Services::default()),
    }
}

/// Everything up to the launch itself.
fn populate(vm: IsolatedVm, platform: Platform, vcpus: u32) -> Result<Launched, HvError> {
    let memory = |bytes| Arc::new(MmapRegion::new(bytes).unwrap());
    vm.map_private(0, memory(RAM_BYTES))?;
    if platform == Platform::Tdx {
        vm.map_private(RESET_PAGE, memory(0x1000))?;
    }
    let window = vm.map(0xC000_0000, memory(0x1000))?;
    let vcpus = (0..vcpus).map(|id| vm.create_vcpu(id)).collect::<Result<_, _>>()?;
    Ok(Launched { vcpus, vm, window })
}

/// A whole launch.
fn launch(kernel: &Recording, image: &Image, vcpus: u32) -> Result<Launched, HvError> {
    let vm = make(kernel, image.platform, vcpus)?;
    let mut launched = populate(vm, image.platform, vcpus)?;
    let runs = runs(image);
    let launch = Launch { image, runs: &runs, host_data: HOST_DATA, vcpus };
    launched.vm.launch(&launch, &mut launched.vcpus)?;
    Ok(launched)
}

fn recorder(platform: Platform) -> Recording {
    Arc::new(Recorder::new(Played::new(platform)))
}

/// The log as `on name` lines, without what asks for capabilities.
fn outline(log: &[Entry]) -> Vec<String> {
    let told = log.iter().filter(|entry| entry.name != "KVM_CHECK_EXTENSION");
    told.map(|entry| format!("{} {}", entry.on, entry.name)).collect()
}

/// The only entry of this name.
fn only<'a>(log: &'a [Entry], name: &str) -> &'a Entry {
    let mut found = log.iter().filter(|entry| entry.name == name);
    let entry = found.next().unwrap_or_else(|| panic!("no {name}"));
    assert!(found.next().is_none(), "{name} twice");
    entry
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
}

/// Fails a launch at each thing that it asks of the kernel, one after another: the message names the call, no
/// virtual CPU has run, and nothing is left open.
fn fails_cleanly_everywhere(platform: Platform) {
    let image = image(platform);
    let whole = recorder(platform);
    drop(launch(&whole, &image, 2).unwrap());
    let asked = whole.log();
    assert!(asked.len() > 30, "{}", asked.len());
    assert_eq!(whole.open_descriptors(), 0);
    for (index, failing) in asked.iter().enumerate() {
        let kernel = Arc::new(Recorder::failing(Played::new(platform), index, libc::EPERM));
        let error = launch(&kernel, &image, 2).err().unwrap_or_else(|| panic!("{failing:?} is ignored"));
        let message = error.to_string();
        let named = if failing.name == "open" { &failing.on } else { failing.name };
        assert!(message.contains(named), "{index}: {message}");
        assert!(message.contains("Operation not permitted"), "{index}: {message}");
        assert_eq!(kernel.log().len(), index + 1, "something is asked after {failing:?}");
        assert!(kernel.log().iter().all(|entry| entry.name != "KVM_RUN"));
        assert_eq!(kernel.open_descriptors(), 0, "after {failing:?}");
    }
}
