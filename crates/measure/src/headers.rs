//! Every header of an IGVM file, in the order of the file, in words.

use igvm::{IgvmDirectiveHeader, IgvmFile, IgvmInitializationHeader, IgvmPlatformHeader};
use igvm_defs::{IgvmPageDataFlags, IgvmPageDataType, IgvmPlatformType};
use launch::image::{ImageError, MAX_IMAGE_BYTES};
use launch::layout::PAGE_SIZE;
use serde::Serialize;

use crate::contents::Policy;
use crate::role;

/// One header, or a run of page-data headers that differ in address and content only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Header {
    /// The compatibility mask, in hexadecimal; none where the kind of header has none.
    pub mask: Option<String>,
    /// The kind of header.
    pub kind: String,
    /// What it says.
    pub detail: String,
    /// How many headers this is.
    pub count: usize,
}

/// A file's headers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Headers {
    /// Platforms and their masks.
    pub platforms: Vec<Header>,
    /// Initialization headers.
    pub initialization: Vec<Header>,
    /// Directives.
    pub directives: Vec<Header>,
}

/// Lists the headers of `file`. With `each_page`, page data is not merged into runs.
///
/// # Errors
/// The bytes are too many, or no IGVM file.
pub fn list(file: &[u8], each_page: bool) -> Result<Headers, ImageError> {
    let length = u64::try_from(file.len()).unwrap_or(u64::MAX);
    if length > MAX_IMAGE_BYTES {
        return Err(ImageError::TooLong(length));
    }
    let file = IgvmFile::new_from_binary(file, None).map_err(ImageError::Format)?;
    Ok(Headers {
        platforms: file.platforms().iter().map(platform).collect(),
        initialization: file.initializations().iter().map(initialization).collect(),
        directives: directives(file.directives(), each_page),
    })
}

fn platform(header: &IgvmPlatformHeader) -> Header {
    let IgvmPlatformHeader::SupportedPlatform(platform) = header;
    let name = match platform.platform_type {
        IgvmPlatformType::NATIVE => "native".to_owned(),
        IgvmPlatformType::VSM_ISOLATION => "VSM isolation".to_owned(),
        IgvmPlatformType::SEV_SNP => "SEV-SNP".to_owned(),
        IgvmPlatformType::TDX => "TDX".to_owned(),
        other => format!("{other:?}"),
    };
    let (version, vtl) = (platform.platform_version, platform.highest_vtl);
    let boundary = platform.shared_gpa_boundary;
    let detail = format!("version {version}, highest VTL {vtl}, shared GPA boundary {boundary:#x}");
    one(Some(platform.compatibility_mask), &name, detail)
}

fn initialization(header: &IgvmInitializationHeader) -> Header {
    match header {
        IgvmInitializationHeader::GuestPolicy { policy, compatibility_mask } => {
            let words = Policy::of(*policy);
            let words = if words.valid { words.words.join(", ") } else { "reserved bits wrong".into() };
            one(Some(*compatibility_mask), "guest policy", format!("{policy:#x}: {words}"))
        }
        other => one(None, "other", format!("{other:?}").chars().take(120).collect()),
    }
}

fn directives(directives: &[IgvmDirectiveHeader], each_page: bool) -> Vec<Header> {
    let continues = |first: &IgvmDirectiveHeader, second: &IgvmDirectiveHeader| {
        !each_page
            && page_data(first).zip(page_data(second)).is_some_and(|(first, second)| second.follows(&first))
    };
    directives.chunk_by(continues).filter_map(|run| directive(run)).collect()
}

/// What two page-data headers must have in common to be told in one line.
struct PageData {
    gpa: u64,
    mask: u32,
    flags: IgvmPageDataFlags,
    data_type: IgvmPageDataType,
}

impl PageData {
    fn follows(&self, before: &Self) -> bool {
        before.gpa.checked_add(PAGE_SIZE) == Some(self.gpa)
            && role::of(before.gpa) == role::of(self.gpa)
            && (before.mask, before.data_type) == (self.mask, self.data_type)
            && u32::from(before.flags) == u32::from(self.flags)
    }

    fn words(&self) -> &'static str {
        match (self.data_type, self.flags.shared(), self.flags.unmeasured()) {
            (IgvmPageDataType::SECRETS, ..) => "secrets",
            (IgvmPageDataType::CPUID_DATA, ..) => "CPUID",
            (IgvmPageDataType::NORMAL, true, _) => "shared",
            (IgvmPageDataType::NORMAL, false, true) => "unmeasured",
            (IgvmPageDataType::NORMAL, false, false) => "measured",
            _ => "of an unknown type",
        }
    }
}

fn page_data(directive: &IgvmDirectiveHeader) -> Option<PageData> {
    match directive {
        IgvmDirectiveHeader::PageData { gpa, compatibility_mask, flags, data_type, .. } => {
            Some(PageData { gpa: *gpa, mask: *compatibility_mask, flags: *flags, data_type: *data_type })
        }
        _ => None,
    }
}

fn directive(run: &[IgvmDirectiveHeader]) -> Option<Header> {
    let first = run.first()?;
    if let (Some(page), Some(last)) = (page_data(first), run.last().and_then(page_data)) {
        let end = last.gpa.saturating_add(PAGE_SIZE);
        let detail = format!("{:#x}..{end:#x} {}: {}", page.gpa, page.words(), role::of(page.gpa));
        return Some(Header { count: run.len(), ..one(Some(page.mask), "page data", detail) });
    }
    Some(single(first))
}

fn single(directive: &IgvmDirectiveHeader) -> Header {
    use IgvmDirectiveHeader as D;
    let mask = directive.compatibility_mask();
    let parameter = |at: &igvm_defs::IGVM_VHS_PARAMETER| {
        format!("area {} at byte {:#x}", at.parameter_area_index, at.byte_offset)
    };
    let (kind, detail) = match directive {
        D::ParameterArea { number_of_bytes, parameter_area_index, .. } => {
            ("parameter area", format!("area {parameter_area_index}, {number_of_bytes:#x} bytes"))
        }
        D::ParameterInsert(insert) => {
            ("parameter insert", format!("area {} at {:#x}", insert.parameter_area_index, insert.gpa))
        }
        D::VpCount(at) => ("vCPU count", parameter(at)),
        D::MemoryMap(at) => ("memory map", parameter(at)),
        D::CommandLine(at) => ("host's command line", parameter(at)),
        D::EnvironmentInfo(at) => ("environment", parameter(at)),
        D::Madt(at) => ("host's MADT", parameter(at)),
        D::RequiredMemory { gpa, number_of_bytes, .. } => {
            ("required memory", format!("{number_of_bytes:#x} bytes at {gpa:#x}"))
        }
        D::SnpVpContext { gpa, vp_index, .. } => ("SNP vCPU context", format!("vCPU {vp_index} at {gpa:#x}")),
        D::X64NativeVpContext { vp_index, .. } => ("native vCPU context", format!("vCPU {vp_index}")),
        D::SnpIdBlock { guest_svn, author_key_enabled, .. } => {
            let author = if *author_key_enabled == 0 { "no author key" } else { "author key" };
            ("SNP ID block", format!("guest SVN {guest_svn}, {author}"))
        }
        other => {
            let text = format!("{other:?}");
            return one(mask, text.split([' ', '(', '{']).next().unwrap_or_default(), String::new());
        }
    };
    one(mask, kind, detail)
}

fn one(mask: Option<u32>, kind: &str, detail: String) -> Header {
    Header { mask: mask.map(|mask| format!("{mask:#x}")), kind: kind.into(), detail, count: 1 }
}
