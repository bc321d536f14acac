//! The measurement sidecar: what is in an image, page by page, for people and programs.
//!
//! It is made by decoding the finished file, with the decoder that the VMM uses: it describes what is there,
//! not what was meant.

use launch::digest::page_digest;
use launch::image::{Image, PageKind, Platform};
use launch::snp::{self, Backend};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::BuildError;
use crate::bzimage::Kernel;
use crate::recipe::Recipe;

/// Everything that an image's launch is made of.
#[derive(Debug, Clone, Serialize)]
pub struct Sidecar {
    /// Version of this form.
    pub version: u32,
    /// SHA-256 of the IGVM file.
    pub image_sha256: String,
    /// Size of the IGVM file in bytes.
    pub image_bytes: usize,
    /// Platforms that the image starts on.
    pub platforms: Vec<&'static str>,
    /// Whether this is a debug image, with a console.
    pub debug: bool,
    /// Most virtual CPUs.
    pub max_vcpus: u32,
    /// The kernel's measured command line.
    pub command_line: String,
    /// The kernel, which the stub verifies.
    pub kernel: KernelInfo,
    /// SHA-384 chain over the private pages, in load order ([`launch::snp`]).
    pub launch_digest: String,
    /// Number of pages whose content is measured.
    pub measured_pages: usize,
    /// Number of shared pages, which are not measured.
    pub shared_pages: usize,
    /// Every private page, in load order.
    pub pages: Vec<PageInfo>,
}

/// The kernel in an image.
#[derive(Debug, Clone, Serialize)]
pub struct KernelInfo {
    /// SHA-256 of the file.
    pub sha256: String,
    /// Size in bytes.
    pub bytes: usize,
}

/// A private page.
#[derive(Debug, Clone, Serialize)]
pub struct PageInfo {
    /// Guest-physical address.
    pub gpa: String,
    /// What the page is for.
    pub role: &'static str,
    /// `measured`, `unmeasured`, `secrets` or `CPUID`.
    pub kind: String,
    /// SHA-384 of its content, where that is measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha384: Option<String>,
}

impl Sidecar {
    pub(crate) fn describe(file: &[u8], kernel: &Kernel<'_>, recipe: &Recipe) -> Result<Self, BuildError> {
        let image = Image::decode(file, Platform::Native)?;
        let count = |kind| image.pages.iter().filter(|page| page.kind == kind).count();
        Ok(Self {
            version: 1,
            image_sha256: hex::encode(Sha256::digest(file)),
            image_bytes: file.len(),
            platforms: vec!["native"],
            debug: recipe.debug,
            max_vcpus: recipe.max_vcpus,
            command_line: recipe.full_command_line(),
            kernel: KernelInfo { sha256: hex::encode(kernel.sha256), bytes: kernel.file.len() },
            launch_digest: snp::digests(&image, Backend::Kvm, 1, 0)
                .first()
                .map(ToString::to_string)
                .unwrap_or_default(),
            measured_pages: count(PageKind::Measured),
            shared_pages: count(PageKind::Shared),
            pages: private_pages(&image),
        })
    }
}

fn private_pages(image: &Image) -> Vec<PageInfo> {
    let private = image.pages.iter().filter(|page| page.kind != PageKind::Shared);
    let info = private.map(|page| PageInfo {
        gpa: format!("{:#x}", page.gpa),
        role: role(page.gpa),
        kind: page.kind.to_string(),
        sha384: (page.kind == PageKind::Measured).then(|| page_digest(&page.data).to_string()),
    });
    info.collect()
}

fn role(gpa: u64) -> &'static str {
    match gpa {
        boot_abi::STUB_GPA..boot_abi::STUB_LIMIT => "boot stub",
        boot_abi::PAGE_TABLES_GPA..boot_abi::CONFIG_GPA => "page tables",
        boot_abi::CONFIG_GPA..boot_abi::DSDT_GPA => "configuration",
        boot_abi::DSDT_GPA..boot_abi::PARAMS_GPA => "DSDT",
        boot_abi::PARAMS_GPA..boot_abi::STUB_END => "parameters",
        _ => "other",
    }
}
