//! Every header of an IGVM file, in the order of the file, in words.

use igvm_defs::{
    IGVM_VHS_PAGE_DATA, IGVM_VHS_SUPPORTED_PLATFORM, IgvmPageDataType, IgvmPlatformType,
    IgvmVariableHeaderType as Type,
};
use launch::image::ImageError;
use launch::layout::PAGE_SIZE;
use launch::reader::{self, Header as Raw};
use serde::Serialize;

use crate::contents::Policy;
use launch::role;

/// One header, or a run of page-data headers that differ in address and content only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Header {
    /// The compatibility mask: which platforms it is for. None where the kind of header has none.
    pub mask: Option<String>,
    /// The kind of header.
    pub kind: String,
    /// What it says.
    pub detail: String,
    /// How many headers this is.
    pub count: usize,
}

/// Lists the headers of `file`. With `each_page`, page data is not merged into runs.
///
/// # Errors
/// The bytes are no IGVM file of the version that is read.
pub fn list(file: &[u8], each_page: bool) -> Result<Vec<Header>, ImageError> {
    let mut listed: Vec<Header> = Vec::new();
    let mut run: Option<Run> = None;
    for header in reader::read(file)? {
        let page = match &header {
            Raw::Page(page, _) => Some(*page),
            _ => None,
        };
        run = match (run, page) {
            (Some(run), Some(page)) if !each_page && run.is_followed_by(&page) => {
                Some(Run { last: page.gpa, count: run.count + 1, ..run })
            }
            (run, page) => {
                listed.extend(run.map(|run| run.told()));
                page.map(|page| Run { last: page.gpa, count: 1, first: page })
            }
        };
        if run.is_none() {
            listed.push(told(&header));
        }
    }
    listed.extend(run.map(|run| run.told()));
    Ok(listed)
}

/// Page-data headers that are told in one line.
struct Run {
    first: IGVM_VHS_PAGE_DATA,
    last: u64,
    count: usize,
}

impl Run {
    fn is_followed_by(&self, page: &IGVM_VHS_PAGE_DATA) -> bool {
        let first = &self.first;
        self.last.checked_add(PAGE_SIZE) == Some(page.gpa)
            && role::of(first.gpa) == role::of(page.gpa)
            && (first.compatibility_mask, first.data_type) == (page.compatibility_mask, page.data_type)
            && u32::from(first.flags) == u32::from(page.flags)
    }

    fn told(&self) -> Header {
        let Self { first, last, count } = self;
        let kind = match (first.data_type, first.flags.shared(), first.flags.unmeasured()) {
            (IgvmPageDataType::SECRETS, ..) => "secrets",
            (IgvmPageDataType::CPUID_DATA, ..) => "CPUID",
            (IgvmPageDataType::NORMAL, true, _) => "shared",
            (IgvmPageDataType::NORMAL, false, true) => "unmeasured",
            (IgvmPageDataType::NORMAL, false, false) => "measured",
            _ => "of an unknown type",
        };
        let end = last.saturating_add(PAGE_SIZE);
        let detail = format!("{:#x}..{end:#x} {kind}: {}", first.gpa, role::of(first.gpa));
        Header { count: *count, ..one(Some(first.compatibility_mask), "page data", detail) }
    }
}

/// A header on its own.
fn told(header: &Raw) -> Header {
    let (kind, detail) = match header {
        Raw::Platform(header) => ("platform", platform(header)),
        Raw::GuestPolicy(header) => {
            let words = Policy::of(header.policy);
            let words = if words.valid { words.words.join(", ") } else { "reserved bits wrong".into() };
            ("guest policy", format!("{:#x}: {words}", header.policy))
        }
        Raw::Page(page, _) => return Run { last: page.gpa, count: 1, first: *page }.told(),
        Raw::ParameterArea(area, _) => (
            "parameter area",
            format!("area {}, {:#x} bytes", area.parameter_area_index, area.number_of_bytes),
        ),
        Raw::Parameter(kind, at) => {
            (parameter(*kind), format!("area {} at byte {:#x}", at.parameter_area_index, at.byte_offset))
        }
        Raw::ParameterInsert(insert) => {
            ("parameter insert", format!("area {} at {:#x}", insert.parameter_area_index, insert.gpa))
        }
        Raw::Context(context, _) => {
            ("vCPU context", format!("vCPU {} at {:#x}", context.vp_index, context.gpa.get()))
        }
        Raw::RequiredMemory(memory) => {
            ("required memory", format!("{:#x} bytes at {:#x}", memory.number_of_bytes, memory.gpa))
        }
        Raw::IdBlock(block) => {
            let author = if block.author_key_enabled == 0 { "no author key" } else { "author key" };
            ("SNP ID block", format!("guest SVN {}, {author}", block.guest_svn))
        }
    };
    one(header.compatibility_mask(), kind, detail)
}

fn platform(platform: &IGVM_VHS_SUPPORTED_PLATFORM) -> String {
    let name = match platform.platform_type {
        IgvmPlatformType::NATIVE => "native".to_owned(),
        IgvmPlatformType::VSM_ISOLATION => "VSM isolation".to_owned(),
        IgvmPlatformType::SEV_SNP => "SEV-SNP".to_owned(),
        IgvmPlatformType::TDX => "TDX".to_owned(),
        other => format!("type {}", other.0),
    };
    let (version, vtl) = (platform.platform_version, platform.highest_vtl);
    let boundary = platform.shared_gpa_boundary;
    format!("{name}, version {version}, highest VTL {vtl}, shared GPA boundary {boundary:#x}")
}

/// What the loader writes into an area.
const fn parameter(kind: Type) -> &'static str {
    match kind {
        Type::IGVM_VHT_VP_COUNT_PARAMETER => "vCPU count",
        Type::IGVM_VHT_MEMORY_MAP => "memory map",
        _ => "host's command line",
    }
}

fn one(mask: Option<u32>, kind: &str, detail: String) -> Header {
    Header { mask: mask.map(|mask| format!("{mask:#x}")), kind: kind.into(), detail, count: 1 }
}
