//! One platform's part of an image, described.

use boot_abi::KERNEL_GPA;
use evidence::policy::GuestPolicy;
use igvm::IgvmDirectiveHeader;
use launch::digest::page_digest;
use launch::image::{Image, Page, PageKind, Parameter, Platform};
use launch::layout::{LOW_RAM_MAX, PAGE_SIZE};
use serde::Serialize;
use sha2::{Digest as _, Sha384};

use crate::config::{self, Field};
use crate::registers::{self, Register};
use launch::role;

/// What the secure processor takes for a measured page, in milliseconds: an estimate, which differs by model.
pub const ESTIMATED_MS_PER_PAGE: usize = 1;

/// What is in an image for one platform.
#[derive(Debug, Clone, Serialize)]
pub struct Contents {
    /// The platform.
    pub platform: &'static str,
    /// The isolation that its configuration page names; none if that page is not of this version.
    pub tee: Option<String>,
    /// How the kernel travels.
    pub layout: Layout,
    /// How many pages there are of each kind.
    pub pages: Counts,
    /// Estimated time that a secure processor takes to measure them, in milliseconds; none for an ordinary machine,
    /// where nobody does.
    pub estimated_launch_ms: Option<usize>,
    /// The guest policy, where there is one.
    pub policy: Option<Policy>,
    /// The ID block, where there is one.
    pub id_block: Option<IdBlock>,
    /// The kernel's command line.
    pub command_line: Option<String>,
    /// The configuration page.
    pub configuration: Vec<Field>,
    /// What the loader writes where, unmeasured.
    pub parameters: Vec<String>,
    /// Registers of the first virtual CPU that are not zero.
    pub registers: Vec<Register>,
    /// All pages, in the order of the file, runs of one kind and role merged.
    pub runs: Vec<Run>,
}

/// How the kernel travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// In shared pages; the measured stub verifies it.
    Window,
    /// In measured pages.
    Measured,
}

impl std::fmt::Display for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Window => "window",
            Self::Measured => "measured",
        })
    }
}

/// Pages by kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Content measured.
    pub measured: usize,
    /// Only the place measured, secrets and CPUID pages included.
    pub unmeasured: usize,
    /// Not measured at all.
    pub shared: usize,
}

/// A guest policy in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Policy {
    /// The number, in hexadecimal.
    pub value: String,
    /// Its bits.
    pub words: Vec<&'static str>,
    /// Whether reserved bits are as the specification wants them.
    pub valid: bool,
}

impl Policy {
    /// A policy in words.
    #[must_use]
    pub fn of(value: u64) -> Self {
        let policy = GuestPolicy(value);
        Self {
            value: format!("{value:#x}"),
            words: policy.words().collect(),
            valid: policy.reserved_bits_hold(),
        }
    }
}

/// An ID block: what the image's owner has signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IdBlock {
    /// The launch digest that it is for: the processor launches no other.
    pub launch_digest: String,
    /// Family of images.
    pub family_id: String,
    /// Image.
    pub image_id: String,
    /// Security version.
    pub guest_svn: u32,
    /// Whether an author key has signed the ID key.
    pub author_key: bool,
}

/// Consecutive pages of one kind and role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Run {
    /// Guest-physical address of the first byte.
    pub gpa: String,
    /// Past the last byte.
    pub end: String,
    /// Number of pages.
    pub pages: usize,
    /// How they are loaded.
    pub kind: String,
    /// What they are for.
    pub role: &'static str,
    /// SHA-384 of their content: of the page's, as it is measured, if there is one.
    pub sha384: Option<String>,
}

impl Contents {
    /// Describes `image`. With `each_page`, no runs are merged.
    #[must_use]
    pub fn of(image: &Image, each_page: bool) -> Self {
        let count = |kind| image.pages.iter().filter(|page| page.kind == kind).count();
        let measured = count(PageKind::Measured);
        let config = config::read(image);
        Self {
            platform: image.platform.name(),
            tee: config.as_ref().map(config::tee),
            layout: layout(image),
            pages: Counts {
                measured,
                unmeasured: count(PageKind::Unmeasured) + count(PageKind::Secrets) + count(PageKind::Cpuid),
                shared: count(PageKind::Shared),
            },
            estimated_launch_ms: (image.platform != Platform::Native)
                .then_some(measured * ESTIMATED_MS_PER_PAGE),
            policy: image.guest_policy.map(Policy::of),
            id_block: image.id_block.as_deref().and_then(id_block),
            command_line: config.as_ref().map(config::command_line),
            configuration: config.as_ref().map(config::fields).unwrap_or_default(),
            parameters: parameters(image),
            registers: registers::set(&image.start),
            runs: runs(&image.pages, each_page),
        }
    }
}

/// The layout of an image: whether anything but the stub's own pages is measured below the window.
#[must_use]
pub fn layout(image: &Image) -> Layout {
    let kernel = (KERNEL_GPA - PAGE_SIZE)..LOW_RAM_MAX;
    let measured = |page: &Page| page.kind == PageKind::Measured && kernel.contains(&page.gpa);
    if image.pages.iter().any(measured) { Layout::Measured } else { Layout::Window }
}

fn parameters(image: &Image) -> Vec<String> {
    let of_area = |area: &launch::image::ParameterArea| {
        let gpa = area.gpa;
        let parameter = move |(offset, parameter): &(u32, Parameter)| {
            let what = match parameter {
                Parameter::VpCount => "number of virtual CPUs",
                Parameter::MemoryMap => "memory map",
            };
            format!("{:#x}: {what}", gpa.saturating_add(u64::from(*offset)))
        };
        area.parameters.iter().map(parameter).collect::<Vec<_>>()
    };
    image.parameters.iter().flat_map(of_area).collect()
}

fn id_block(directive: &IgvmDirectiveHeader) -> Option<IdBlock> {
    match directive {
        IgvmDirectiveHeader::SnpIdBlock {
            ld, family_id, image_id, guest_svn, author_key_enabled, ..
        } => Some(IdBlock {
            launch_digest: hex::encode(ld),
            family_id: hex::encode(family_id),
            image_id: hex::encode(image_id),
            guest_svn: *guest_svn,
            author_key: *author_key_enabled != 0,
        }),
        _ => None,
    }
}

/// The pages as runs, in order.
#[must_use]
pub fn runs(pages: &[Page], each_page: bool) -> Vec<Run> {
    let continues = |first: &Page, second: &Page| {
        !each_page
            && first.kind == second.kind
            && first.gpa.checked_add(PAGE_SIZE) == Some(second.gpa)
            && role::of(first.gpa) == role::of(second.gpa)
    };
    pages.chunk_by(continues).filter_map(run).collect()
}

fn run(pages: &[Page]) -> Option<Run> {
    let (first, last) = (pages.first()?, pages.last()?);
    let has_content = matches!(first.kind, PageKind::Measured | PageKind::Shared);
    Some(Run {
        gpa: format!("{:#x}", first.gpa),
        end: format!("{:#x}", last.gpa.saturating_add(PAGE_SIZE)),
        pages: pages.len(),
        kind: first.kind.to_string(),
        role: role::of(first.gpa),
        sha384: has_content.then(|| content_digest(pages)),
    })
}

fn content_digest(pages: &[Page]) -> String {
    const ZEROS: [u8; 4096] = [0; 4096];
    if let [page] = pages {
        return page_digest(&page.data).to_string();
    }
    let mut hash = Sha384::new();
    for page in pages {
        hash.update(if page.data.is_empty() { &ZEROS[..] } else { &page.data });
    }
    hex::encode(hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(gpa: u64, kind: PageKind, fill: u8) -> Page {
        Page { gpa, kind, data: vec![fill; 4096].into() }
    }

    #[test]
    fn runs_end_where_kind_place_or_role_changes() {
        let stub = boot_abi::STUB_GPA;
        let pages = [
            page(stub, PageKind::Measured, 1),
            page(stub + 0x1000, PageKind::Measured, 2),
            page(stub + 0x2000, PageKind::Unmeasured, 3),
            page(stub + 0x4000, PageKind::Unmeasured, 3),
            page(boot_abi::PAGE_TABLES_GPA, PageKind::Measured, 4),
        ];
        let merged = runs(&pages, false);
        assert_eq!(merged.iter().map(|run| run.pages).collect::<Vec<_>>(), [2, 1, 1, 1]);
        assert_eq!((merged[0].gpa.as_str(), merged[0].end.as_str()), ("0x100000", "0x102000"));
        assert_eq!(merged[1].sha384, None);
        assert_eq!(runs(&pages, true).len(), 5);
    }

    #[test]
    fn a_page_at_the_end_of_the_address_space_is_no_problem() {
        assert_eq!(runs(&[page(!0xFFF, PageKind::Measured, 1)], false).len(), 1);
    }
}
