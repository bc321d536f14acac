//! Every header of an IGVM file, in the order of the file, in words.

use bytes::Bytes;
use igvm_defs::{
    IGVM_VHS_GUEST_POLICY, IGVM_VHS_PAGE_DATA, IGVM_VHS_PARAMETER, IGVM_VHS_PARAMETER_AREA,
    IGVM_VHS_PARAMETER_INSERT, IGVM_VHS_REQUIRED_MEMORY, IGVM_VHS_SNP_ID_BLOCK, IGVM_VHS_SUPPORTED_PLATFORM,
    IGVM_VHS_VP_CONTEXT, IgvmPageDataType, IgvmPlatformType, IgvmVariableHeaderType as Type,
};
use launch::image::ImageError;
use launch::image::headers::{File, Header as Raw};
use launch::layout::PAGE_SIZE;
use serde::Serialize;

use crate::contents::Policy;
use crate::role;

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
pub fn list(file: Bytes, each_page: bool) -> Result<Vec<Header>, ImageError> {
    let file = File::open(file)?;
    let mut listed: Vec<Header> = Vec::new();
    let mut run: Option<Run> = None;
    for header in file.headers() {
        let header = header?;
        let page = match header.kind {
            Type::IGVM_VHT_PAGE_DATA => Some(header.read::<IGVM_VHS_PAGE_DATA>()?),
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
            listed.push(told(&header)?);
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

/// A header that is no page data.
fn told(header: &Raw<'_>) -> Result<Header, ImageError> {
    Ok(match header.kind {
        Type::IGVM_VHT_SUPPORTED_PLATFORM => platform(&header.read()?),
        Type::IGVM_VHT_GUEST_POLICY => {
            let IGVM_VHS_GUEST_POLICY { policy, compatibility_mask, .. } = header.read()?;
            let words = Policy::of(policy);
            let words = if words.valid { words.words.join(", ") } else { "reserved bits wrong".into() };
            one(Some(compatibility_mask), "guest policy", format!("{policy:#x}: {words}"))
        }
        Type::IGVM_VHT_PARAMETER_AREA => {
            let area: IGVM_VHS_PARAMETER_AREA = header.read()?;
            let detail = format!("area {}, {:#x} bytes", area.parameter_area_index, area.number_of_bytes);
            one(None, "parameter area", detail)
        }
        Type::IGVM_VHT_PARAMETER_INSERT => {
            let insert: IGVM_VHS_PARAMETER_INSERT = header.read()?;
            let detail = format!("area {} at {:#x}", insert.parameter_area_index, insert.gpa);
            one(Some(insert.compatibility_mask), "parameter insert", detail)
        }
        Type::IGVM_VHT_VP_CONTEXT => {
            let context: IGVM_VHS_VP_CONTEXT = header.read()?;
            let detail = format!("vCPU {} at {:#x}", context.vp_index, context.gpa.get());
            one(Some(context.compatibility_mask), "vCPU context", detail)
        }
        Type::IGVM_VHT_REQUIRED_MEMORY => {
            let memory: IGVM_VHS_REQUIRED_MEMORY = header.read()?;
            let detail = format!("{:#x} bytes at {:#x}", memory.number_of_bytes, memory.gpa);
            one(Some(memory.compatibility_mask), "required memory", detail)
        }
        Type::IGVM_VHT_SNP_ID_BLOCK => {
            let block: IGVM_VHS_SNP_ID_BLOCK = header.read()?;
            let author = if block.author_key_enabled == 0 { "no author key" } else { "author key" };
            one(
                Some(block.compatibility_mask),
                "SNP ID block",
                format!("guest SVN {}, {author}", block.guest_svn),
            )
        }
        kind => parameter(kind, header)?,
    })
}

fn platform(platform: &IGVM_VHS_SUPPORTED_PLATFORM) -> Header {
    let name = match platform.platform_type {
        IgvmPlatformType::NATIVE => "native".to_owned(),
        IgvmPlatformType::VSM_ISOLATION => "VSM isolation".to_owned(),
        IgvmPlatformType::SEV_SNP => "SEV-SNP".to_owned(),
        IgvmPlatformType::TDX => "TDX".to_owned(),
        other => format!("type {}", other.0),
    };
    let (version, vtl) = (platform.platform_version, platform.highest_vtl);
    let boundary = platform.shared_gpa_boundary;
    let detail = format!("{name}, version {version}, highest VTL {vtl}, shared GPA boundary {boundary:#x}");
    one(Some(platform.compatibility_mask), "platform", detail)
}

/// What the loader writes into an area.
fn parameter(kind: Type, header: &Raw<'_>) -> Result<Header, ImageError> {
    let name = match kind {
        Type::IGVM_VHT_VP_COUNT_PARAMETER => "vCPU count",
        Type::IGVM_VHT_MEMORY_MAP => "memory map",
        other => {
            let detail = format!("type {:#x}, {} bytes", other.0, header.content.len());
            return Ok(one(None, "not supported", detail));
        }
    };
    let at: IGVM_VHS_PARAMETER = header.read()?;
    Ok(one(None, name, format!("area {} at byte {:#x}", at.parameter_area_index, at.byte_offset)))
}

fn one(mask: Option<u32>, kind: &str, detail: String) -> Header {
    Header { mask: mask.map(|mask| format!("{mask:#x}")), kind: kind.into(), detail, count: 1 }
}
