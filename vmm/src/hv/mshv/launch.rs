//! The launch itself: pages in, digest checked by the secure processor, first virtual processor ready.

use std::sync::atomic::{AtomicU8, Ordering};

use ::launch::image::Start;
use ::launch::snp::PageType;
use zerocopy::IntoBytes as _;

use super::partition::{Partition, page_list};
use super::{abi, cpuid};
use crate::hv::id_block::IdBlock;
use crate::hv::{HvError, Launch, Run, Vcpu};

/// How far a machine's one launch is. A launch that failed is never tried again.
#[derive(Debug, Default)]
pub struct Stage(AtomicU8);

const NEW: u8 = 0;
const STARTED: u8 = 1;
const LAUNCHED: u8 = 2;

impl Stage {
    /// Begins the launch.
    pub fn start(&self) -> Result<(), HvError> {
        let started = self.0.compare_exchange(NEW, STARTED, Ordering::SeqCst, Ordering::SeqCst);
        started.map(drop).map_err(too_late)
    }

    /// Refuses what is possible only before the launch.
    pub fn expect_new(&self) -> Result<(), HvError> {
        match self.0.load(Ordering::SeqCst) {
            NEW => Ok(()),
            stage => Err(too_late(stage)),
        }
    }

    /// The launch is done.
    pub fn finish(&self) {
        self.0.store(LAUNCHED, Ordering::SeqCst);
    }
}

fn too_late(stage: u8) -> HvError {
    let found = if stage == LAUNCHED { "one that runs" } else { "one whose launch failed" };
    refused("machine on MSHV", "one that was never launched", found)
}

/// Launches: see the module above for the order and its reasons.
pub fn run(
    partition: &Partition,
    guest_policy: u64,
    launch: &Launch<'_>,
    vcpus: &mut [Box<dyn Vcpu>],
) -> Result<(), HvError> {
    let first = vcpus.first_mut().ok_or_else(|| refused("virtual processors", "at least one", "none"))?;
    check(launch, guest_policy)?;
    partition.set_features(features(&launch.image.start));
    let finish = launch_finish(launch, guest_policy)?;
    for run in launch.runs {
        place(partition, run)?;
    }
    partition.set_property(abi::ISOLATION_STATE, abi::ISOLATION_SECURE)?;
    for slot in partition.memory().present_mut() {
        partition.hand_over(slot)?;
    }
    for run in launch.runs {
        let pages = (run.gpa / abi::PAGE..).take(run.bytes.len() / abi::PAGE_BYTES);
        let mut argument = page_list(isolated_page_type(run.page_type), &pages.collect::<Vec<_>>());
        partition.call(abi::IMPORT_ISOLATED_PAGES, &mut argument)?;
    }
    let mut finish = finish;
    partition.call(abi::COMPLETE_ISOLATED_IMPORT, finish.as_mut_bytes())?;
    first.set_start(&launch.image.start)?;
    partition.set_property(abi::TIME_FREEZE, 0)
}

/// What must hold of a launch before anything is irrevocable.
fn check(launch: &Launch<'_>, guest_policy: u64) -> Result<(), HvError> {
    let Start::Snp { gpa, .. } = launch.image.start else {
        return Err(refused("image", "a SEV-SNP save area for the first virtual processor", "none"));
    };
    if launch.image.guest_policy != Some(guest_policy) {
        let found = format!("{:#x?}", launch.image.guest_policy);
        return Err(refused("image", &format!("guest policy {guest_policy:#x}"), &found));
    }
    let ascending = launch.runs.is_sorted_by(|run, next| end(run).is_some_and(|end| end <= next.gpa));
    let whole = |run: &Run| {
        let bytes = run.bytes.len();
        run.gpa.is_multiple_of(abi::PAGE) && bytes > 0 && bytes.is_multiple_of(abi::PAGE_BYTES)
    };
    if !ascending || !launch.runs.iter().all(whole) {
        return Err(refused("private pages", "whole pages in the order of their addresses", "others"));
    }
    let pages_of = |kind| launch.runs.iter().filter(move |run| run.page_type == kind);
    let is_save_area = |run: &Run| run.gpa == gpa && run.bytes.len() == abi::PAGE_BYTES;
    if !pages_of(PageType::Vmsa).map(is_save_area).eq([true]) {
        return Err(refused(
            "private pages",
            &format!("one save area, at {gpa:#x}"),
            "another number or place",
        ));
    }
    if pages_of(PageType::Cpuid).any(|run| run.bytes.len() != abi::PAGE_BYTES) {
        return Err(refused("private pages", "CPUID pages one by one", "several in a row"));
    }
    Ok(())
}

fn end(run: &Run) -> Option<u64> {
    run.gpa.checked_add(u64::try_from(run.bytes.len()).ok()?)
}

fn refused(what: &'static str, expected: &str, found: &str) -> HvError {
    HvError::Refused { what, expected: expected.into(), found: found.into() }
}

/// SEV features that every virtual processor of this guest has.
fn features(start: &Start) -> u64 {
    match start {
        Start::Snp { vmsa, .. } => vmsa.sev_features.into_bits(),
        Start::Native(_) | Start::Reset => 0,
    }
}

/// Puts a run's content into memory, while the host still can.
fn place(partition: &Partition, run: &Run) -> Result<(), HvError> {
    let filled;
    let bytes = if run.page_type == PageType::Cpuid {
        filled = cpuid::bytes(&cpuid::fill(&run.bytes, |leaf| partition.cpuid(leaf))?);
        &filled
    } else {
        &run.bytes
    };
    if partition.memory().write(run.gpa, bytes) {
        return Ok(());
    }
    let found = format!("{:#x} bytes at {:#x}", run.bytes.len(), run.gpa);
    Err(refused("private pages", "a place in memory", &found))
}

/// `MSHV_ISOLATED_PAGE_*`.
const fn isolated_page_type(page_type: PageType) -> u8 {
    match page_type {
        PageType::Normal => 0,
        PageType::Vmsa => 1,
        PageType::Zero => 2,
        PageType::Unmeasured => 3,
        PageType::Secrets => 4,
        PageType::Cpuid => 5,
    }
}

/// What finishes the launch: host data, and the ID block where the image has one.
fn launch_finish(launch: &Launch<'_>, guest_policy: u64) -> Result<abi::LaunchFinish, HvError> {
    let mut finish: abi::LaunchFinish = abi::zeroed();
    finish.host_data = launch.host_data.0;
    finish.id_block[abi::ID_BLOCK_POLICY..].copy_from_slice(&guest_policy.to_le_bytes());
    if let Some(directive) = launch.image.id_block.as_deref() {
        let IdBlock { block, auth, author_key } = IdBlock::new(directive, guest_policy)?;
        finish.id_block = block;
        let bytes = finish.id_auth.len();
        finish.id_auth.copy_from_slice(&auth[..bytes]);
        finish.id_block_enabled = 1;
        finish.author_key_enabled = u8::from(author_key);
    }
    Ok(finish)
}
