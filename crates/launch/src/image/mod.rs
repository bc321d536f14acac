//! A launchable image: pages in load order, parameters and the first processor's state.
//!
//! Decoded from an IGVM file (`igvm_defs`: "Independent Guest Virtual Machine file format") for one platform.
//! All pages are in one list, in the order of the file: on SEV-SNP and TDX that order is part of what is
//! measured.
//! Whoever holds an [`Image`] holds something that this project's loader understands completely: a directive
//! that it does not know is an error, never skipped.

mod decode;
mod error;

use boot_abi::{CONFIG_GPA, Config};
use bytes::Bytes;
use igvm::IgvmDirectiveHeader;
use igvm::snp_defs::SevVmsa;
use igvm_defs::{IgvmNativeVpContextX64, IgvmPlatformType};
use zerocopy::FromBytes as _;

pub use error::ImageError;

use crate::plan::Tee;

/// Largest IGVM file that is read, in bytes.
pub const MAX_IMAGE_BYTES: u64 = 16 << 20;

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
    /// 4096 bytes, or none for a page of zeros. They are the file's own, not a copy.
    pub data: Bytes,
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
    /// Decodes one platform's part of an IGVM file.
    ///
    /// # Errors
    /// When the bytes are not an IGVM file, do not carry the platform, or ask for something unknown.
    pub fn decode(file: &[u8], platform: Platform) -> Result<Self, ImageError> {
        check_length(file.len())?;
        Self::decode_bytes(Bytes::copy_from_slice(file), platform)
    }

    /// As [`Image::decode`], without a copy: the pages share the memory of `file`.
    ///
    /// # Errors
    /// As [`Image::decode`].
    pub fn decode_bytes(file: Bytes, platform: Platform) -> Result<Self, ImageError> {
        check_length(file.len())?;
        decode::image(&file, platform)
    }

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

fn check_length(length: usize) -> Result<(), ImageError> {
    if u64::try_from(length).is_ok_and(|length| length <= MAX_IMAGE_BYTES) {
        return Ok(());
    }
    Err(ImageError::TooLong(length))
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
