//! What an image is made of: which content goes where, for which isolation, in load order.
//!
//! The order is that of the file, and measured. All pages stand in the order of their addresses.

use std::borrow::Cow;

use boot_abi::{
    CONFIG_GPA, CPUID_GPA, DSDT_GPA, KERNEL_GPA, LOADED_RANGES, LoadedRange, MAILBOX_GPA, PAGE_TABLES_GPA,
    PARAMS_GPA, RESET_PAGE_GPA, SECRETS_GPA, STUB_GPA, VMSA_GPA,
};
use launch::image::PageKind;
use launch::layout::{LOW_RAM_MAX, WINDOW_BASE};
use launch::plan::Tee;

use crate::bzimage::Kernel;
use crate::recipe::{Layout, Recipe};
use crate::stub::Program;
use crate::{BuildError, cpuid, page_tables};

const PAGE: u64 = 4096;

/// A run of pages with one purpose.
pub struct Piece<'a> {
    /// Address of the first page.
    pub gpa: u64,
    /// The isolations that load it.
    pub tees: Vec<Tee>,
    pub content: Content<'a>,
}

/// What a piece holds.
pub enum Content<'a> {
    /// These bytes, padded with zeros to whole pages.
    Bytes(PageKind, Cow<'a, [u8]>),
    /// The stub's configuration, which names the other pieces' places: one page, made last.
    Config,
    /// One page that the loader fills with parameters.
    Parameters,
    /// The first processor's save area.
    SaveArea,
}

impl Piece<'_> {
    /// Bytes of memory, in whole pages.
    fn size(&self) -> u64 {
        let bytes = match &self.content {
            Content::Bytes(_, bytes) => u64::try_from(bytes.len()).unwrap_or(u64::MAX / 2),
            Content::Config | Content::Parameters | Content::SaveArea => PAGE,
        };
        bytes.next_multiple_of(PAGE)
    }

    fn is_shared(&self) -> bool {
        matches!(self.content, Content::Bytes(PageKind::Shared, _))
    }
}

/// All pieces of an image, in load order.
pub fn list<'a>(
    kernel: &Kernel<'a>,
    stub: &Program<'a>,
    dsdt: &'a [u8],
    recipe: &Recipe,
) -> Result<Vec<Piece<'a>>, BuildError> {
    let of = |wanted: &[Tee]| -> Vec<Tee> {
        recipe.tees.iter().copied().filter(|tee| wanted.contains(tee)).collect()
    };
    let all = || recipe.tees.clone();
    let snp = || of(&[Tee::Sim, Tee::Snp]);
    let bytes = |gpa, tees: Vec<Tee>, kind, bytes: Cow<'a, [u8]>| Piece {
        gpa,
        tees,
        content: Content::Bytes(kind, bytes),
    };
    let measured = |gpa, tees, data| bytes(gpa, tees, PageKind::Measured, data);
    let page_of_zeros = || Cow::Owned(vec![0; 4096]);
    let plain = of(&[Tee::None, Tee::Sim, Tee::Tdx]);

    let mut pieces = vec![
        measured(STUB_GPA, all(), stub.image.into()),
        measured(PAGE_TABLES_GPA, plain, page_tables::plain().into()),
        measured(PAGE_TABLES_GPA, of(&[Tee::Snp]), page_tables::encrypted().into()),
        Piece { gpa: CONFIG_GPA, tees: all(), content: Content::Config },
        measured(DSDT_GPA, all(), dsdt.into()),
        Piece { gpa: PARAMS_GPA, tees: all(), content: Content::Parameters },
        bytes(CPUID_GPA, snp(), PageKind::Cpuid, cpuid::page().into()),
        bytes(SECRETS_GPA, snp(), PageKind::Secrets, page_of_zeros()),
        Piece { gpa: VMSA_GPA, tees: snp(), content: Content::SaveArea },
        measured(MAILBOX_GPA, of(&[Tee::Tdx]), page_of_zeros()),
        match recipe.layout {
            Layout::Window => bytes(WINDOW_BASE, all(), PageKind::Shared, kernel.file.into()),
            Layout::Measured => {
                let (gpa, file) = in_place(kernel);
                measured(gpa, all(), file.into())
            }
        },
    ];
    if recipe.tees.contains(&Tee::Tdx) {
        let missing = || BuildError::Stub {
            expected: "a segment at 0xfffff000, because the recipe names tdx",
            found: "none".into(),
        };
        pieces.push(measured(RESET_PAGE_GPA, of(&[Tee::Tdx]), stub.reset_page.ok_or_else(missing)?.into()));
    }
    pieces.retain(|piece| !piece.tees.is_empty());
    Ok(pieces)
}

/// Where the stub finds the kernel file.
pub fn kernel_gpa(kernel: &Kernel<'_>, layout: Layout) -> u64 {
    match layout {
        Layout::Window => WINDOW_BASE,
        Layout::Measured => KERNEL_GPA - u64::from(kernel.setup_bytes),
    }
}

/// The kernel file where it is run, with zeros in front up to the start of a page.
fn in_place(kernel: &Kernel<'_>) -> (u64, Vec<u8>) {
    let start = kernel_gpa(kernel, Layout::Measured);
    let gpa = start - start % PAGE;
    let padding = usize::try_from(start - gpa).unwrap_or_default();
    (gpa, [&vec![0; padding], kernel.file].concat())
}

/// What a launch under `tee` has put into private memory that is RAM. The save area's page counts: some loaders
/// import it, and nobody may touch it.
pub fn loaded(pieces: &[Piece<'_>], tee: Tee) -> Result<[LoadedRange; LOADED_RANGES], BuildError> {
    let mut ranges: Vec<LoadedRange> = Vec::new();
    let private =
        |piece: &&Piece<'_>| piece.tees.contains(&tee) && !piece.is_shared() && piece.gpa < LOW_RAM_MAX;
    for piece in pieces.iter().filter(private) {
        let range = LoadedRange { base: piece.gpa, end: piece.gpa + piece.size() };
        match ranges.last_mut() {
            Some(last) if last.end == range.base => last.end = range.end,
            _ => ranges.push(range),
        }
    }
    let found = ranges.len();
    ranges.resize(found.max(LOADED_RANGES), LoadedRange::default());
    ranges.try_into().map_err(|_| BuildError::Ranges { max: LOADED_RANGES, found })
}
