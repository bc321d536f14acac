//! The measurement sidecar: what is in an image, page by page, for people and programs.
//!
//! It is made by decoding the finished file, with the decoder that the VMM uses: it describes what is there,
//! not what was meant.

use evidence::policy::GuestPolicy;
use launch::digest::page_digest;
use launch::image::{Image, PageKind, Start};
use launch::plan::Tee;
use launch::role;
use launch::snp::{self, Backend, vmsa};
use launch::tdx;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::bzimage::Kernel;
use crate::recipe::{Layout, Recipe};
use crate::{BuildError, MEASURED_PAGES_MAX};

/// Everything that an image's launches are made of.
#[derive(Debug, Clone, Serialize)]
pub struct Sidecar {
    /// Version of this form.
    pub version: u32,
    /// SHA-256 of the IGVM file.
    pub image_sha256: String,
    /// Size of the IGVM file in bytes.
    pub image_bytes: usize,
    /// How the kernel travels.
    pub layout: Layout,
    /// Whether this is a debug image, with a console.
    pub debug: bool,
    /// Most virtual CPUs.
    pub max_vcpus: u32,
    /// The kernel, which the stub verifies.
    pub kernel: KernelInfo,
    /// What the image starts under, in the file's order.
    pub platforms: Vec<PlatformInfo>,
}

/// The kernel in an image.
#[derive(Debug, Clone, Serialize)]
pub struct KernelInfo {
    /// SHA-256 of the file.
    pub sha256: String,
    /// Size in bytes.
    pub bytes: usize,
}

/// An image under one isolation.
#[derive(Debug, Clone, Serialize)]
pub struct PlatformInfo {
    /// The isolation.
    pub tee: Tee,
    /// The file's platform.
    pub platform: &'static str,
    /// The kernel's measured command line.
    pub command_line: String,
    /// SEV-SNP guest policy, in numbers and words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest_policy: Option<String>,
    /// What the processor measures.
    pub measurement: Measurement,
    /// What the launch costs.
    pub cost: Cost,
    /// SHA-384 of the first virtual CPU's save area.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub save_area_sha384: Option<String>,
    /// Every private page, in load order.
    pub pages: Vec<PageInfo>,
}

/// What a launch measures to, in hexadecimal.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Measurement {
    /// No processor measures an ordinary machine. This names the image: a SHA-384 chain over its private pages in
    /// SEV-SNP's arithmetic.
    Unmeasured(String),
    /// SEV-SNP launch digests.
    LaunchDigests {
        /// Under KVM, for 1, 2, … virtual CPUs.
        kvm: Vec<String>,
        /// Under the Microsoft Hypervisor, where the number of virtual CPUs has no part in it.
        #[serde(skip_serializing_if = "Option::is_none")]
        mshv: Option<String>,
    },
    /// TDX's build-time measurement, whatever the number of virtual CPUs.
    Mrtd(String),
}

impl Measurement {
    /// The digest of a launch with one virtual CPU, by our VMM on KVM.
    #[must_use]
    pub fn first(&self) -> &str {
        match self {
            Self::Unmeasured(digest) | Self::Mrtd(digest) => digest,
            Self::LaunchDigests { kvm, .. } => kvm.first().map_or("", |digest| digest),
        }
    }
}

/// What a launch costs: the secure processor takes pages one by one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cost {
    /// Pages whose content is measured; on SEV-SNP with the first virtual CPU's save area.
    pub measured_pages: usize,
    /// Private pages of which only the place is measured.
    pub unmeasured_pages: usize,
    /// Shared pages, which are not measured and cost the secure processor nothing.
    pub shared_pages: usize,
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
        let platform = |tee: &Tee| PlatformInfo::describe(file, *tee, recipe);
        Ok(Self {
            version: 2,
            image_sha256: hex::encode(Sha256::digest(file)),
            image_bytes: file.len(),
            layout: recipe.layout,
            debug: recipe.debug,
            max_vcpus: recipe.max_vcpus,
            kernel: KernelInfo { sha256: hex::encode(kernel.sha256), bytes: kernel.file.len() },
            platforms: recipe.tees.iter().map(platform).collect::<Result<_, _>>()?,
        })
    }

    /// The part about one isolation.
    #[must_use]
    pub fn platform(&self, tee: Tee) -> Option<&PlatformInfo> {
        self.platforms.iter().find(|platform| platform.tee == tee)
    }
}

impl PlatformInfo {
    fn describe(file: &[u8], tee: Tee, recipe: &Recipe) -> Result<Self, BuildError> {
        let image = Image::decode(file, tee.platform())?;
        let cost = Cost::of(&image);
        if recipe.layout == Layout::Window && cost.measured_pages > MEASURED_PAGES_MAX {
            let found = cost.measured_pages;
            return Err(BuildError::MeasuredPages { tee, max: MEASURED_PAGES_MAX, found });
        }
        let save_area = match &image.start {
            Start::Snp { vmsa, .. } => Some(page_digest(&vmsa::page(vmsa)).to_string()),
            Start::Native(_) | Start::Reset => None,
        };
        Ok(Self {
            tee,
            platform: tee.platform().name(),
            command_line: recipe.full_command_line(tee),
            guest_policy: image.guest_policy.map(|policy| GuestPolicy(policy).to_string()),
            measurement: measure(&image, tee, recipe.max_vcpus),
            cost,
            save_area_sha384: save_area,
            pages: private_pages(&image),
        })
    }
}

impl Cost {
    fn of(image: &Image) -> Self {
        let count = |kinds: &[PageKind]| image.pages.iter().filter(|page| kinds.contains(&page.kind)).count();
        let save_areas = usize::from(matches!(image.start, Start::Snp { .. }));
        Self {
            measured_pages: count(&[PageKind::Measured]) + save_areas,
            unmeasured_pages: count(&[PageKind::Unmeasured, PageKind::Secrets, PageKind::Cpuid]),
            shared_pages: count(&[PageKind::Shared]),
        }
    }
}

fn measure(image: &Image, tee: Tee, max_vcpus: u32) -> Measurement {
    let digests = |backend, vcpus| {
        let digests = snp::digests(image, backend, vcpus, vmsa::RESET_RDX);
        digests.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    match tee {
        Tee::None => Measurement::Unmeasured(digests(Backend::Kvm, 1).concat()),
        Tee::Sim => Measurement::LaunchDigests { kvm: digests(Backend::Kvm, max_vcpus), mshv: None },
        Tee::Snp => Measurement::LaunchDigests {
            kvm: digests(Backend::Kvm, max_vcpus),
            mshv: Some(digests(Backend::Mshv, 1).concat()),
        },
        Tee::Tdx => Measurement::Mrtd(tdx::mrtd(image).to_string()),
    }
}

fn private_pages(image: &Image) -> Vec<PageInfo> {
    let private = image.pages.iter().filter(|page| page.kind != PageKind::Shared);
    let info = private.map(|page| PageInfo {
        gpa: format!("{:#x}", page.gpa),
        role: role::of(page.gpa),
        kind: page.kind.to_string(),
        sha384: (page.kind == PageKind::Measured).then(|| page_digest(&page.data).to_string()),
    });
    info.collect()
}
