//! Page-aligned copies of what is imported: secure processors and kernels take whole, aligned pages only.

use launch::layout::PAGE_SIZE;
use zerocopy::{FromBytes, FromZeros as _, Immutable, IntoBytes, KnownLayout};

use super::machine::Machine;
use crate::hv::{HvError, Run};

/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;

/// One page.
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
struct Page([u8; PAGE_BYTES]);

/// A run's pages, aligned.
#[derive(Debug)]
pub struct Pages(Vec<Page>);

impl Pages {
    /// Copies a run, after a check that it is whole pages of RAM.
    pub fn of(machine: &Machine, run: &Run) -> Result<Self, HvError> {
        let size = run.bytes.len() as u64;
        if size == 0 || !size.is_multiple_of(PAGE_SIZE) || !run.gpa.is_multiple_of(PAGE_SIZE) {
            let found = format!("{size} bytes at {:#x}", run.gpa);
            return Err(HvError::Launch(format!(
                "run of pages: expected whole aligned pages, found {found}"
            )));
        }
        if !machine.is_ram(run.gpa, size) {
            let end = run.gpa.saturating_add(size);
            let found = format!("{:#x} to {end:#x}", run.gpa);
            return Err(HvError::Launch(format!("run of pages: expected a range inside RAM, found {found}")));
        }
        Ok(Self::copy(&run.bytes))
    }

    /// Copies `bytes`, filled up with zeros to whole pages.
    pub fn copy(bytes: &[u8]) -> Self {
        let mut pages = vec![Page::new_zeroed(); bytes.len().div_ceil(PAGE_BYTES)];
        pages.as_mut_slice().as_mut_bytes()[..bytes.len()].copy_from_slice(bytes);
        Self(pages)
    }

    /// The pages' bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        self.0.as_mut_slice().as_mut_bytes()
    }
}
