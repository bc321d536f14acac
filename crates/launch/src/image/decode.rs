//! Turns the headers of an IGVM file into one platform's [`Image`].
//!
//! A header that this loader does not know is an error, whatever platform it is for. Headers that it knows are left
//! out where they are for other platforms.

use std::ops::Range;

use bytes::Bytes;
use igvm::IgvmDirectiveHeader;
use igvm::snp_defs::SevVmsa;
use igvm_defs::{
    IGVM_VHS_PAGE_DATA, IGVM_VHS_PARAMETER, IGVM_VHS_PARAMETER_AREA, IGVM_VHS_PARAMETER_INSERT,
    IGVM_VHS_SNP_ID_BLOCK, IGVM_VHS_SUPPORTED_PLATFORM, IGVM_VHS_VP_CONTEXT, IgvmNativeVpContextX64,
    IgvmPageDataType, IgvmPlatformType, IgvmVariableHeaderType as Type,
};
use zerocopy::FromBytes as _;

use super::{Image, ImageError, Page, PageKind, Parameter, ParameterArea, Platform, Start};
use crate::layout::PAGE_SIZE;
use crate::reader::{self, Header};

/// Largest parameter area, in bytes.
const MAX_PARAMETER_BYTES: u64 = 64 << 10;
/// Most parameter areas that wait for their place: as many as a loader could be expected to fill.
const MAX_AREAS: usize = 16;
/// Guest-physical addresses have 52 bits at most (AMD64 architecture manual, volume 2, section 5.1).
const GPA_LIMIT: u64 = 1 << 52;

pub fn image(file: &Bytes, platform: Platform) -> Result<Image, ImageError> {
    let headers = reader::read(file)?;
    let mut decoder = Decoder::new(file, platform);
    for header in headers {
        decoder.take(header)?;
    }
    decoder.finish()
}

struct Decoder<'a> {
    file: &'a Bytes,
    platform: Platform,
    /// The platforms of the file.
    found: Vec<IgvmPlatformType>,
    /// Masks of all of them, and of the one that is wanted.
    masks: u32,
    mask: Option<u32>,
    pages: Vec<Page>,
    /// Declared areas, by index; the address comes when they are inserted.
    areas: Vec<(u32, ParameterArea)>,
    inserted: Vec<ParameterArea>,
    starts: Vec<Start>,
    policies: Vec<u64>,
    id_blocks: Vec<IgvmDirectiveHeader>,
}

impl<'a> Decoder<'a> {
    fn new(file: &'a Bytes, platform: Platform) -> Self {
        Self {
            file,
            platform,
            found: Vec::new(),
            masks: 0,
            mask: None,
            pages: Vec::new(),
            areas: Vec::new(),
            inserted: Vec::new(),
            starts: Vec::new(),
            policies: Vec::new(),
            id_blocks: Vec::new(),
        }
    }

    fn take(&mut self, header: Header) -> Result<(), ImageError> {
        if let Header::Platform(platform) = &header {
            return self.platform(platform);
        }
        let ours = match header.compatibility_mask() {
            Some(mask) => self.is_ours(mask)?,
            None => true,
        };
        match header {
            Header::ParameterArea(area, _) => self.declare(&area),
            Header::Parameter(Type::IGVM_VHT_VP_COUNT_PARAMETER, at) => {
                self.parameter(&at, Parameter::VpCount)
            }
            Header::Parameter(Type::IGVM_VHT_MEMORY_MAP, at) => self.parameter(&at, Parameter::MemoryMap),
            Header::Parameter(other, _) => Err(ImageError::Directive(format!("{other:?}"))),
            Header::RequiredMemory(_) => {
                Err(ImageError::Directive(format!("{:?}", Type::IGVM_VHT_REQUIRED_MEMORY)))
            }
            // An area is used up, whatever platform it is inserted for.
            Header::ParameterInsert(insert) => self.insert(&insert, ours),
            _ if !ours => Ok(()),
            Header::GuestPolicy(policy) => {
                self.policies.push(policy.policy);
                Ok(())
            }
            Header::Page(page, data) => self.page(&page, data),
            Header::Context(context, data) => self.context(&context, data),
            Header::IdBlock(block) => {
                self.id_blocks.push(id_block(&block));
                Ok(())
            }
            Header::Platform(_) => Ok(()),
        }
    }

    fn no_platform(&self) -> ImageError {
        let found: Vec<String> = self.found.iter().map(|platform| platform_name(*platform)).collect();
        ImageError::Platform { expected: self.platform.name(), found: found.join(", ") }
    }

    fn platform(&mut self, platform: &IGVM_VHS_SUPPORTED_PLATFORM) -> Result<(), ImageError> {
        let mask = platform.compatibility_mask;
        let error = |expected, found| ImageError::Header { what: "platform", expected, found };
        if mask.count_ones() != 1 || self.masks & mask != 0 {
            return Err(error("a compatibility mask of one bit of its own", format!("{mask:#x}")));
        }
        if self.found.contains(&platform.platform_type) {
            return Err(error("each platform once", platform_name(platform.platform_type)));
        }
        self.masks |= mask;
        self.found.push(platform.platform_type);
        if platform.platform_type == self.platform.igvm() {
            let form = (platform.platform_version, platform.highest_vtl, platform.shared_gpa_boundary);
            if form != (1, 0, 0) {
                return Err(error("version 1, VTL 0 and no shared address boundary", format!("{form:x?}")));
            }
            self.mask = Some(mask);
        }
        Ok(())
    }

    /// Whether a header with this compatibility mask is for the wanted platform.
    fn is_ours(&self, mask: u32) -> Result<bool, ImageError> {
        if mask == 0 || mask & !self.masks != 0 {
            let (what, expected) = ("compatibility mask", "bits of the file's platforms");
            return Err(ImageError::Header { what, expected, found: format!("{mask:#x}") });
        }
        Ok(self.mask.is_some_and(|ours| ours & mask != 0))
    }

    /// The part of the file in `range`, which is shared, not copied.
    fn data(&self, range: Range<usize>) -> Bytes {
        if range.is_empty() { Bytes::new() } else { self.file.slice(range) }
    }

    fn page(&mut self, page: &IGVM_VHS_PAGE_DATA, data: Range<usize>) -> Result<(), ImageError> {
        let kind = page_kind(page, self.platform)?;
        self.pages.push(Page { gpa: checked_gpa(page.gpa)?, kind, data: self.data(data) });
        Ok(())
    }

    fn declare(&mut self, area: &IGVM_VHS_PARAMETER_AREA) -> Result<(), ImageError> {
        let index = area.parameter_area_index;
        let problem = |problem| ImageError::ParameterArea { index, problem };
        let bytes = area.number_of_bytes;
        if bytes == 0 || !bytes.is_multiple_of(PAGE_SIZE) || bytes > MAX_PARAMETER_BYTES {
            return Err(problem("expected 1 to 16 pages"));
        }
        if area.file_offset != 0 {
            return Err(problem("initial data is not supported"));
        }
        if self.areas.iter().any(|(of, _)| *of == index) {
            return Err(problem("declared twice"));
        }
        if self.areas.len() == MAX_AREAS {
            return Err(problem("more than 16 areas wait to be inserted"));
        }
        self.areas.push((index, ParameterArea { gpa: 0, bytes, parameters: Vec::new() }));
        Ok(())
    }

    fn parameter(&mut self, at: &IGVM_VHS_PARAMETER, parameter: Parameter) -> Result<(), ImageError> {
        let index = at.parameter_area_index;
        let problem = |problem| ImageError::ParameterArea { index, problem };
        let area = self.areas.iter_mut().find(|(of, _)| *of == index);
        let (_, area) = area.ok_or(problem("used before it was declared"))?;
        if u64::from(at.byte_offset) >= area.bytes {
            return Err(problem("a parameter lies past its end"));
        }
        area.parameters.push((at.byte_offset, parameter));
        Ok(())
    }

    fn insert(&mut self, insert: &IGVM_VHS_PARAMETER_INSERT, ours: bool) -> Result<(), ImageError> {
        let index = insert.parameter_area_index;
        let at = self.areas.iter().position(|(of, _)| *of == index);
        let at = at.ok_or(ImageError::ParameterArea { index, problem: "inserted before it was declared" })?;
        let (_, area) = self.areas.swap_remove(at);
        if ours {
            for offset in (0..area.bytes).step_by(4096) {
                let gpa = checked_gpa(insert.gpa.saturating_add(offset))?;
                self.pages.push(Page { gpa, kind: PageKind::Unmeasured, data: Bytes::new() });
            }
            self.inserted.push(ParameterArea { gpa: insert.gpa, ..area });
        }
        Ok(())
    }

    fn context(&mut self, context: &IGVM_VHS_VP_CONTEXT, data: Range<usize>) -> Result<(), ImageError> {
        let error = |expected, found| ImageError::Header { what: "processor context", expected, found };
        if context.vp_index != 0 {
            return Err(error("virtual CPU 0 alone", format!("virtual CPU {}", context.vp_index)));
        }
        let gpa = context.gpa.get();
        let page = self.data(data);
        match self.platform {
            Platform::Native => {
                let read = IgvmNativeVpContextX64::read_from_prefix(&page);
                let (registers, rest) = read.map_err(|_| error("4096 bytes", "none".into()))?;
                if gpa != 0 || rest.iter().any(|byte| *byte != 0) {
                    return Err(error("registers alone, without an address", format!("{gpa:#x}")));
                }
                self.starts.push(Start::Native(Box::new(registers)));
            }
            Platform::Snp => {
                let vmsa = SevVmsa::read_from_bytes(&page);
                let vmsa = vmsa.map_err(|_| error("4096 bytes", "none".into()))?;
                self.starts.push(Start::Snp { gpa: checked_gpa(gpa)?, vmsa: Box::new(vmsa) });
            }
            Platform::Tdx => return Err(error("none on TDX", "one".into())),
        }
        Ok(())
    }

    /// An area that is not inserted for this platform is not this platform's.
    fn finish(mut self) -> Result<Image, ImageError> {
        if self.mask.is_none() {
            return Err(self.no_platform());
        }
        if self.platform == Platform::Tdx {
            self.starts.push(Start::Reset);
        }
        let contexts = self.starts.len();
        let start = self.starts.pop().filter(|_| contexts == 1).ok_or(ImageError::Contexts(contexts))?;
        self.check_counts()?;
        check_places(&self.pages, &start)?;
        Ok(Image {
            platform: self.platform,
            pages: self.pages,
            parameters: self.inserted,
            start,
            guest_policy: self.policies.pop(),
            id_block: self.id_blocks.pop().map(Box::new),
        })
    }

    fn check_counts(&self) -> Result<(), ImageError> {
        let snp = self.platform == Platform::Snp;
        let pages = |kind| self.pages.iter().filter(|page| page.kind == kind).count();
        let once = [
            ("SEV-SNP guest policy", self.policies.len()),
            ("CPUID page", pages(PageKind::Cpuid)),
            ("secrets page", pages(PageKind::Secrets)),
        ];
        for (what, found) in once {
            if found != usize::from(snp) {
                let expected = if snp { "one" } else { "none on this platform" };
                return Err(ImageError::Count { what, expected, found });
            }
        }
        let found = self.id_blocks.len();
        if found > usize::from(snp) {
            return Err(ImageError::Count { what: "SEV-SNP ID block", expected: "at most one", found });
        }
        Ok(())
    }
}

/// The ID block in the form in which the `igvm` crate has it.
fn id_block(block: &IGVM_VHS_SNP_ID_BLOCK) -> IgvmDirectiveHeader {
    IgvmDirectiveHeader::SnpIdBlock {
        compatibility_mask: block.compatibility_mask,
        author_key_enabled: block.author_key_enabled,
        reserved: block.reserved,
        ld: block.ld,
        family_id: block.family_id,
        image_id: block.image_id,
        version: block.version,
        guest_svn: block.guest_svn,
        id_key_algorithm: block.id_key_algorithm,
        author_key_algorithm: block.author_key_algorithm,
        id_key_signature: Box::new(block.id_key_signature),
        id_public_key: Box::new(block.id_public_key),
        author_key_signature: Box::new(block.author_key_signature),
        author_public_key: Box::new(block.author_public_key),
    }
}

/// No page may be loaded twice, the save area's included: what runs is what was measured.
fn check_places(pages: &[Page], start: &Start) -> Result<(), ImageError> {
    let save_area = match start {
        Start::Snp { gpa, .. } => Some(*gpa),
        Start::Native(_) | Start::Reset => None,
    };
    let mut places: Vec<u64> = pages.iter().map(|page| page.gpa).chain(save_area).collect();
    places.sort_unstable();
    match places.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(ImageError::Twice(pair[0])),
        None => Ok(()),
    }
}

fn checked_gpa(gpa: u64) -> Result<u64, ImageError> {
    if gpa.is_multiple_of(PAGE_SIZE) && gpa < GPA_LIMIT {
        return Ok(gpa);
    }
    Err(ImageError::Page { gpa, expected: "a page-aligned address of 52 bits", found: format!("{gpa:#x}") })
}

fn page_kind(page: &IGVM_VHS_PAGE_DATA, platform: Platform) -> Result<PageKind, ImageError> {
    let error = |expected, found| ImageError::Page { gpa: page.gpa, expected, found };
    let flags = page.flags;
    if flags.is_2mb_page() {
        return Err(error("4 KiB", "2 MiB".into()));
    }
    if flags.reserved() != 0 || page.reserved != 0 {
        return Err(error("reserved bits of zero", format!("flags {:#x}", u32::from(flags))));
    }
    match (page.data_type, flags.shared(), flags.unmeasured()) {
        (IgvmPageDataType::NORMAL, true, false) => Ok(PageKind::Shared),
        (IgvmPageDataType::NORMAL, false, true) => Ok(PageKind::Unmeasured),
        (IgvmPageDataType::NORMAL, false, false) => Ok(PageKind::Measured),
        (IgvmPageDataType::SECRETS, false, false) if platform == Platform::Snp => Ok(PageKind::Secrets),
        (IgvmPageDataType::CPUID_DATA, false, false) if platform == Platform::Snp => Ok(PageKind::Cpuid),
        (other, ..) => {
            let found = format!("{other:?} with flags {:#x}", u32::from(flags));
            Err(error("normal data, or on SEV-SNP secrets or CPUID data", found))
        }
    }
}

fn platform_name(platform: IgvmPlatformType) -> String {
    match platform {
        IgvmPlatformType::NATIVE => "native".into(),
        IgvmPlatformType::VSM_ISOLATION => "VSM".into(),
        IgvmPlatformType::SEV_SNP => "SEV-SNP".into(),
        IgvmPlatformType::TDX => "TDX".into(),
        other => format!("{other:?}"),
    }
}
