//! A launchable image: pages in load order, parameters and the first processor's state.
//!
//! Decoded from an IGVM file (`igvm_defs`: "Independent Guest Virtual Machine file format") for one platform.
//! All pages are in one list, in the order of the file: on SEV-SNP and TDX that order is part of what is
//! measured.
//! Whoever holds an [`Image`] holds something that this project's loader understands completely: a directive
//! that it does not know is an error, never skipped.

use boot_abi::{CONFIG_GPA, Config};
use igvm::snp_defs::SevVmsa;
use igvm::{IgvmDirectiveHeader, IgvmFile, IgvmInitializationHeader, IgvmPlatformHeader};
use igvm_defs::{IgvmNativeVpContextX64, IgvmPageDataFlags, IgvmPageDataType, IgvmPlatformType};
use zerocopy::FromBytes as _;

use crate::layout::PAGE_SIZE;
use crate::plan::Tee;

/// Largest IGVM file that is read, in bytes.
pub const MAX_IMAGE_BYTES: u64 = 16 << 20;
/// Largest parameter area, in bytes.
const MAX_PARAMETER_BYTES: u64 = 64 << 10;

/// What an image starts on. One file may carry several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Platform {
    /// An ordinary virtual machine.
    Native,
    /// AMD SEV-SNP, or its simulation.
    Snp,
    /// Intel TDX.
    Tdx,
}

impl Platform {
    /// Its name in messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Snp => "SEV-SNP",
            Self::Tdx => "TDX",
        }
    }

    const fn igvm(self) -> IgvmPlatformType {
        match self {
            Self::Native => IgvmPlatformType::NATIVE,
            Self::Snp => IgvmPlatformType::SEV_SNP,
            Self::Tdx => IgvmPlatformType::TDX,
        }
    }
}

/// How a page reaches the guest, and whether its content is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageKind {
    /// Private, its content measured.
    Measured,
    /// Private, only its place measured. Parameter areas are such pages.
    Unmeasured,
    /// Private, filled by the secure processor with the guest's keys to it; only its place is measured.
    Secrets,
    /// Private, filled with the processor features that the secure processor has checked; only its place is
    /// measured.
    Cpuid,
    /// Shared with the host, not measured at all.
    Shared,
}

impl std::fmt::Display for PageKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Measured => "measured",
            Self::Unmeasured => "unmeasured",
            Self::Secrets => "secrets",
            Self::Cpuid => "CPUID",
            Self::Shared => "shared",
        })
    }
}

/// One page of 4096 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Guest-physical address, page-aligned.
    pub gpa: u64,
    /// How it is loaded.
    pub kind: PageKind,
    /// 4096 bytes, or none for a page of zeros.
    pub data: Vec<u8>,
}

/// What the loader writes into a parameter area.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parameter {
    /// Number of virtual CPUs, a little-endian u32.
    VpCount,
    /// Array of `IGVM_VHS_MEMORY_MAP_ENTRY`, ended by an entry of no pages.
    MemoryMap,
}

/// A run of unmeasured pages that the loader fills.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParameterArea {
    /// Guest-physical address, page-aligned.
    pub gpa: u64,
    /// Size in bytes, a multiple of 4096.
    pub bytes: u64,
    /// What goes where, as byte offsets.
    pub parameters: Vec<(u32, Parameter)>,
}

/// The first virtual CPU's state; the others wait for it to start them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// Registers of an ordinary machine.
    Native(Box<IgvmNativeVpContextX64>),
    /// A save area, and the page that it is imported to where the loader imports it.
    Snp {
        /// Guest-physical address of the save area's page.
        gpa: u64,
        /// The save area.
        vmsa: Box<SevVmsa>,
    },
    /// The architectural reset state: the image's page at the reset vector has the first instruction.
    Reset,
}

/// An image for one platform.
#[derive(Debug)]
pub struct Image {
    /// What it starts on.
    pub platform: Platform,
    /// Pages, in the order of the file; those of parameter areas are among them.
    pub pages: Vec<Page>,
    /// Parameter areas: what the loader writes into which unmeasured pages.
    pub parameters: Vec<ParameterArea>,
    /// State of the first virtual CPU.
    pub start: Start,
    /// SEV-SNP guest policy (SEV-SNP firmware ABI specification, section 4.3).
    pub guest_policy: Option<u64>,
    /// SEV-SNP ID block, as the directive has it.
    pub id_block: Option<Box<IgvmDirectiveHeader>>,
}

impl Image {
    /// The measured configuration that the stub of this image reads.
    ///
    /// # Errors
    /// When the image measures no such page, or one of another layout.
    pub fn config(&self) -> Result<Config, ImageError> {
        let error = |found: String| ImageError::Config { expected: "a measured page", found };
        let page = self.pages.iter().find(|page| page.gpa == CONFIG_GPA);
        let page = page.ok_or_else(|| error("none".into()))?;
        if page.kind != PageKind::Measured {
            return Err(error(format!("one of kind {}", page.kind)));
        }
        let config = Config::read_from_prefix(&page.data).map_err(|_| error("one of zeros".into()))?.0;
        if config.magic != Config::MAGIC {
            let found = String::from_utf8_lossy(&config.magic).escape_debug().to_string();
            return Err(ImageError::Config { expected: "UVMSTUB2", found });
        }
        Ok(config)
    }
}

impl From<Tee> for boot_abi::Tee {
    fn from(tee: Tee) -> Self {
        match tee {
            Tee::None => Self::None,
            Tee::Sim => Self::Sim,
            Tee::Snp => Self::Snp,
            Tee::Tdx => Self::Tdx,
        }
    }
}

/// Why a file is no image that can be launched.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file is too long to be an image.
    #[error("IGVM file: expected at most {MAX_IMAGE_BYTES} bytes, found {0}")]
    TooLong(u64),
    /// Not an IGVM file, or a damaged one.
    #[error("IGVM file: {0}")]
    Format(#[source] igvm::Error),
    /// The image was not built for this platform.
    #[error("IGVM file: expected platform {expected}, found {found}")]
    Platform {
        /// The platform asked for.
        expected: &'static str,
        /// The platforms in the file.
        found: String,
    },
    /// A directive that this loader does not know.
    #[error("IGVM file: unsupported directive {0}")]
    Directive(String),
    /// A page that is not 4096 bytes of normal data at an aligned address.
    #[error("IGVM file: page at {gpa:#x}: expected {expected}, found {found}")]
    Page {
        /// Where.
        gpa: u64,
        /// The rule.
        expected: &'static str,
        /// What the file has.
        found: String,
    },
    /// A parameter area that is too large, or not declared, or used twice.
    #[error("IGVM file: parameter area {index}: {problem}")]
    ParameterArea {
        /// The area's index.
        index: u32,
        /// What is wrong.
        problem: &'static str,
    },
    /// No processor state, or more than one.
    #[error("IGVM file: expected one processor context, found {0}")]
    Contexts(usize),
    /// The configuration page is not one that the stub would accept.
    #[error("IGVM file: configuration at {CONFIG_GPA:#x}: expected {expected}, found {found}")]
    Config {
        /// The rule.
        expected: &'static str,
        /// What the file has.
        found: String,
    },
    /// A header that may be there once for a platform is not there, or is there twice.
    #[error("IGVM file: {what}: expected one, found {found}")]
    Once {
        /// Which.
        what: &'static str,
        /// How many there are.
        found: usize,
    },
}

impl Image {
    /// Decodes one platform's part of an IGVM file.
    ///
    /// # Errors
    /// When the bytes are not an IGVM file, do not carry the platform, or ask for something unknown.
    pub fn decode(file: &[u8], platform: Platform) -> Result<Self, ImageError> {
        let length = u64::try_from(file.len()).unwrap_or(u64::MAX);
        if length > MAX_IMAGE_BYTES {
            return Err(ImageError::TooLong(length));
        }
        let file = IgvmFile::new_from_binary(file, None).map_err(ImageError::Format)?;
        let mask = mask_of(file.platforms(), platform)?;
        let mut decoder = Decoder::default();
        for header in file.initializations() {
            decoder.initialize(header, mask)?;
        }
        for directive in file.directives() {
            if directive.compatibility_mask().is_none_or(|of| of & mask != 0) {
                decoder.take(directive)?;
            }
        }
        decoder.finish(platform)
    }
}

fn mask_of(platforms: &[IgvmPlatformHeader], wanted: Platform) -> Result<u32, ImageError> {
    let mut found = Vec::new();
    for IgvmPlatformHeader::SupportedPlatform(platform) in platforms {
        if platform.platform_type == wanted.igvm() {
            return Ok(platform.compatibility_mask);
        }
        found.push(platform_name(platform.platform_type));
    }
    Err(ImageError::Platform { expected: wanted.name(), found: found.join(", ") })
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

#[derive(Default)]
struct Decoder {
    pages: Vec<Page>,
    /// Declared areas, by index; the address comes when they are inserted.
    areas: Vec<(u32, ParameterArea)>,
    inserted: Vec<ParameterArea>,
    starts: Vec<Start>,
    policies: Vec<u64>,
    id_blocks: Vec<IgvmDirectiveHeader>,
}

impl Decoder {
    fn initialize(&mut self, header: &IgvmInitializationHeader, mask: u32) -> Result<(), ImageError> {
        match header {
            IgvmInitializationHeader::GuestPolicy { policy, compatibility_mask } => {
                if compatibility_mask & mask != 0 {
                    self.policies.push(*policy);
                }
                Ok(())
            }
            other => Err(ImageError::Directive(first_word(&format!("{other:?}")))),
        }
    }

    fn take(&mut self, directive: &IgvmDirectiveHeader) -> Result<(), ImageError> {
        match directive {
            IgvmDirectiveHeader::PageData { gpa, flags, data_type, data, .. } => {
                self.pages.push(page(*gpa, *flags, *data_type, data)?);
            }
            IgvmDirectiveHeader::ParameterArea { number_of_bytes, parameter_area_index, initial_data } => {
                self.declare(*parameter_area_index, *number_of_bytes, initial_data)?;
            }
            IgvmDirectiveHeader::VpCount(at) => {
                self.parameter(at.parameter_area_index, at.byte_offset, Parameter::VpCount)?;
            }
            IgvmDirectiveHeader::MemoryMap(at) => {
                self.parameter(at.parameter_area_index, at.byte_offset, Parameter::MemoryMap)?;
            }
            IgvmDirectiveHeader::ParameterInsert(insert) => {
                self.insert(insert.parameter_area_index, insert.gpa)?;
            }
            IgvmDirectiveHeader::X64NativeVpContext { vp_index: 0, context, .. } => {
                self.starts.push(Start::Native(context.clone()));
            }
            IgvmDirectiveHeader::SnpVpContext { gpa, vp_index: 0, vmsa, .. } => {
                self.starts.push(Start::Snp { gpa: *gpa, vmsa: vmsa.clone() });
            }
            IgvmDirectiveHeader::SnpIdBlock { .. } => self.id_blocks.push(directive.clone()),
            other => return Err(ImageError::Directive(directive_name(other))),
        }
        Ok(())
    }

    fn declare(&mut self, index: u32, bytes: u64, initial: &[u8]) -> Result<(), ImageError> {
        let problem = |problem| ImageError::ParameterArea { index, problem };
        if bytes == 0 || !bytes.is_multiple_of(PAGE_SIZE) || bytes > MAX_PARAMETER_BYTES {
            return Err(problem("expected 1 to 16 pages"));
        }
        if initial.iter().any(|byte| *byte != 0) {
            return Err(problem("initial data is not supported"));
        }
        if self.areas.iter().any(|(of, _)| *of == index) {
            return Err(problem("declared twice"));
        }
        self.areas.push((index, ParameterArea { gpa: 0, bytes, parameters: Vec::new() }));
        Ok(())
    }

    fn parameter(&mut self, index: u32, offset: u32, parameter: Parameter) -> Result<(), ImageError> {
        let problem = |problem| ImageError::ParameterArea { index, problem };
        let area = self.areas.iter_mut().find(|(of, _)| *of == index);
        let (_, area) = area.ok_or(problem("used before it was declared"))?;
        if u64::from(offset) >= area.bytes {
            return Err(problem("a parameter lies past its end"));
        }
        area.parameters.push((offset, parameter));
        Ok(())
    }

    fn insert(&mut self, index: u32, gpa: u64) -> Result<(), ImageError> {
        let at = self.areas.iter().position(|(of, _)| *of == index);
        let at = at.ok_or(ImageError::ParameterArea { index, problem: "inserted before it was declared" })?;
        let (_, area) = self.areas.swap_remove(at);
        for offset in (0..area.bytes).step_by(4096) {
            let gpa = gpa.checked_add(offset);
            let gpa = gpa.ok_or(ImageError::ParameterArea { index, problem: "its address wraps" })?;
            self.pages.push(Page { gpa, kind: PageKind::Unmeasured, data: Vec::new() });
        }
        self.inserted.push(ParameterArea { gpa, ..area });
        Ok(())
    }

    /// An area that is not inserted for this platform is not this platform's.
    fn finish(mut self, platform: Platform) -> Result<Image, ImageError> {
        if platform == Platform::Tdx {
            self.starts.push(Start::Reset);
        }
        let contexts = self.starts.len();
        let start = self.starts.pop().filter(|_| contexts == 1).ok_or(ImageError::Contexts(contexts))?;
        let found = self.policies.len();
        if found != usize::from(platform == Platform::Snp) {
            return Err(ImageError::Once { what: "SEV-SNP guest policy", found });
        }
        let found = self.id_blocks.len();
        if found > 1 {
            return Err(ImageError::Once { what: "SEV-SNP ID block", found });
        }
        Ok(Image {
            platform,
            pages: self.pages,
            parameters: self.inserted,
            start,
            guest_policy: self.policies.pop(),
            id_block: self.id_blocks.pop().map(Box::new),
        })
    }
}

fn page(
    gpa: u64,
    flags: IgvmPageDataFlags,
    data_type: IgvmPageDataType,
    data: &[u8],
) -> Result<Page, ImageError> {
    let page_error = |expected, found| ImageError::Page { gpa, expected, found };
    if flags.is_2mb_page() {
        return Err(page_error("4 KiB", "2 MiB".into()));
    }
    let kind = match (data_type, flags.shared(), flags.unmeasured()) {
        (IgvmPageDataType::NORMAL, true, _) => PageKind::Shared,
        (IgvmPageDataType::NORMAL, false, true) => PageKind::Unmeasured,
        (IgvmPageDataType::NORMAL, false, false) => PageKind::Measured,
        (IgvmPageDataType::SECRETS, false, _) => PageKind::Secrets,
        (IgvmPageDataType::CPUID_DATA, false, _) => PageKind::Cpuid,
        (other, _, _) => return Err(page_error("normal, secrets or CPUID data", format!("{other:?}"))),
    };
    if !data.is_empty() && u64::try_from(data.len()) != Ok(PAGE_SIZE) {
        return Err(page_error("0 or 4096 bytes", data.len().to_string()));
    }
    Ok(Page { gpa, kind, data: data.to_vec() })
}

/// The name of a directive without its contents, which may be long.
fn directive_name(directive: &IgvmDirectiveHeader) -> String {
    first_word(&format!("{directive:?}"))
}

fn first_word(text: &str) -> String {
    text.split([' ', '(', '{']).next().unwrap_or_default().to_owned()
}
