//! A launchable image: pages in load order, parameters and the first processor's state.
//!
//! Decoded from an IGVM file (`igvm_defs`: "Independent Guest Virtual Machine file format") for one platform.
//! Whoever holds an [`Image`] holds something that this project's loader understands completely: a directive
//! that it does not know is an error, never skipped.

use igvm::{IgvmDirectiveHeader, IgvmFile, IgvmPlatformHeader};
use igvm_defs::{IgvmNativeVpContextX64, IgvmPageDataType, IgvmPlatformType};

use crate::layout::PAGE_SIZE;

/// Largest IGVM file that is read, in bytes.
pub const MAX_IMAGE_BYTES: u64 = 16 << 20;
/// Largest parameter area, in bytes.
const MAX_PARAMETER_BYTES: u64 = 64 << 10;

/// How a page reaches the guest, and whether its content is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageKind {
    /// Private, its content measured.
    Measured,
    /// Private, only its place measured.
    Unmeasured,
    /// Shared with the host, not measured at all.
    Shared,
}

impl std::fmt::Display for PageKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Measured => "measured",
            Self::Unmeasured => "unmeasured",
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

/// An image for an unprotected machine.
#[derive(Debug)]
pub struct Image {
    /// Pages, in the order in which they are loaded.
    pub pages: Vec<Page>,
    /// Parameter areas.
    pub parameters: Vec<ParameterArea>,
    /// State of the first virtual CPU; the others wait for it to start them.
    pub context: IgvmNativeVpContextX64,
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
}

impl Image {
    /// Decodes the native platform's part of an IGVM file.
    ///
    /// # Errors
    /// When the bytes are not an IGVM file, carry no native platform, or ask for something unknown.
    pub fn decode(file: &[u8]) -> Result<Self, ImageError> {
        let length = u64::try_from(file.len()).unwrap_or(u64::MAX);
        if length > MAX_IMAGE_BYTES {
            return Err(ImageError::TooLong(length));
        }
        let file = IgvmFile::new_from_binary(file, None).map_err(ImageError::Format)?;
        let mask = native_mask(file.platforms())?;
        if let Some(header) = file.initializations().first() {
            return Err(ImageError::Directive(first_word(&format!("{header:?}"))));
        }
        let mut decoder = Decoder::default();
        for directive in file.directives() {
            if directive.compatibility_mask().is_none_or(|of| of & mask != 0) {
                decoder.take(directive)?;
            }
        }
        decoder.finish()
    }
}

fn native_mask(platforms: &[IgvmPlatformHeader]) -> Result<u32, ImageError> {
    let mut found = Vec::new();
    for IgvmPlatformHeader::SupportedPlatform(platform) in platforms {
        if platform.platform_type == IgvmPlatformType::NATIVE {
            return Ok(platform.compatibility_mask);
        }
        found.push(platform_name(platform.platform_type));
    }
    Err(ImageError::Platform { expected: "native", found: found.join(", ") })
}

fn platform_name(platform: IgvmPlatformType) -> String {
    match platform {
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
    contexts: Vec<IgvmNativeVpContextX64>,
}

impl Decoder {
    fn take(&mut self, directive: &IgvmDirectiveHeader) -> Result<(), ImageError> {
        match directive {
            IgvmDirectiveHeader::PageData { gpa, flags, data_type, data, .. } => {
                let page_error = |expected, found| ImageError::Page { gpa: *gpa, expected, found };
                if *data_type != IgvmPageDataType::NORMAL {
                    return Err(page_error("normal data", format!("{data_type:?}")));
                }
                if flags.is_2mb_page() {
                    return Err(page_error("4 KiB", "2 MiB".into()));
                }
                let kind = match (flags.shared(), flags.unmeasured()) {
                    (true, _) => PageKind::Shared,
                    (false, true) => PageKind::Unmeasured,
                    (false, false) => PageKind::Measured,
                };
                if !data.is_empty() && u64::try_from(data.len()) != Ok(PAGE_SIZE) {
                    return Err(page_error("0 or 4096 bytes", data.len().to_string()));
                }
                self.pages.push(Page { gpa: *gpa, kind, data: data.clone() });
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
                self.contexts.push(**context);
            }
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
        self.inserted.push(ParameterArea { gpa, ..area });
        Ok(())
    }

    fn finish(self) -> Result<Image, ImageError> {
        if let Some((index, _)) = self.areas.first() {
            return Err(ImageError::ParameterArea { index: *index, problem: "declared but never inserted" });
        }
        let [context] = self.contexts[..] else { return Err(ImageError::Contexts(self.contexts.len())) };
        Ok(Image { pages: self.pages, parameters: self.inserted, context })
    }
}

/// The name of a directive without its contents, which may be long.
fn directive_name(directive: &IgvmDirectiveHeader) -> String {
    first_word(&format!("{directive:?}"))
}

fn first_word(text: &str) -> String {
    text.split([' ', '(', '{']).next().unwrap_or_default().to_owned()
}
