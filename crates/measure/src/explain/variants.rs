//! Launches of an image other than the ordinary one: what somebody else's monitor, another kernel or a changed
//! setting would make of it. They are tried so that a measurement that nobody expected gets a cause.

use boot_abi::{CONFIG_GPA, Config};
use igvm::snp_defs::SevVmsa;
use launch::digest::LaunchDigest;
use launch::image::{Image, PageKind, Start};
use launch::snp::{Backend, Chain, PageType, steps, vmsa};
use zerocopy::IntoBytes as _;

use crate::{config, cpu};

/// Features that kernels are known to set in save areas on their own or by their users' choice.
const FEATURES: [(u64, &str); 4] = [
    (1 << 5, "the host's kernel sets debug-swap in SEV_FEATURES"),
    (1 << 3, "the monitor asks for restricted injection"),
    (1 << 9, "the monitor asks for a secure TSC"),
    (1 << 3 | 1 << 5, "restricted injection, and debug-swap by the host's kernel"),
];

/// A save area for the first virtual CPU and one for each other, and what it takes to get them.
struct SaveAreas {
    first: SevVmsa,
    other: SevVmsa,
    cause: String,
}

/// Searches launches on SEV-SNP, with 1 to `most_vcpus` virtual CPUs, for one that measures `wanted`. Returns the
/// number of virtual CPUs and the cause.
pub fn search(image: &Image, wanted: LaunchDigest, most_vcpus: u32, policy: u64) -> Option<(u32, String)> {
    let chains = [
        (chain(image, Backend::Kvm), ""),
        (
            chain(image, Backend::Mshv),
            "pages are imported in the order of their addresses, save areas as KVM makes them",
        ),
    ];
    let Start::Snp { vmsa: first, .. } = &image.start else { return None };
    for (pages, order) in &chains {
        for areas in save_areas(first) {
            if let Some(vcpus) = among(pages, &areas, wanted, most_vcpus) {
                return Some((vcpus, joined(order, &areas.cause)));
            }
        }
    }
    let changed = with_policy(image, policy)?;
    let pages = chain(&changed, Backend::Kvm);
    let areas = SaveAreas { first: **first, other: vmsa::reset(vmsa::RESET_RDX), cause: String::new() };
    let vcpus = among(&pages, &areas, wanted, most_vcpus)?;
    Some((vcpus, format!("the image is built for guest policy {policy:#x}, and is otherwise this one")))
}

fn joined(order: &str, cause: &str) -> String {
    [order, cause].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join("; ")
}

/// The chain over the pages in a backend's order, without save areas.
fn chain(image: &Image, backend: Backend) -> Chain {
    let mut chain = Chain::default();
    for step in steps(image, backend, &[]).iter().filter(|step| step.page_type != PageType::Vmsa) {
        chain.extend(step.page_type, step.gpa, step.data);
    }
    chain
}

fn save_areas(first: &SevVmsa) -> Vec<SaveAreas> {
    let reset = vmsa::reset(vmsa::RESET_RDX);
    let plain = SaveAreas { first: *first, other: reset, cause: String::new() };
    let models = cpu::all().map(|model| SaveAreas {
        first: *first,
        other: vmsa::reset(model.signature.into()),
        cause: format!("another monitor, which leaves RDX at reset, on a processor {}", model.name),
    });
    let features = FEATURES.into_iter().map(|(bits, cause)| {
        let with = |area: &SevVmsa| SevVmsa { sev_features: with_bits(area, bits), ..*area };
        SaveAreas { first: with(first), other: with(&reset), cause: cause.into() }
    });
    std::iter::once(plain).chain(models).chain(features).collect()
}

fn with_bits(area: &SevVmsa, bits: u64) -> igvm::snp_defs::SevFeatures {
    (u64::from(area.sev_features) | bits).into()
}

/// The number of virtual CPUs with which a launch measures `wanted`.
fn among(pages: &Chain, areas: &SaveAreas, wanted: LaunchDigest, most_vcpus: u32) -> Option<u32> {
    let (first, other) = (vmsa::page(&areas.first), vmsa::page(&areas.other));
    let mut chain = pages.clone();
    (1..=most_vcpus).find(|vcpu| {
        chain.extend(PageType::Vmsa, vmsa::KVM_GPA, if *vcpu == 1 { &first } else { &other });
        chain.digest() == wanted
    })
}

/// The image as the builder would make it for another guest policy; none if its configuration is not known.
fn with_policy(image: &Image, policy: u64) -> Option<Image> {
    let mut config = config::read(image)?;
    let word = |policy: u64| format!("uvm.snp_policy={policy:#x}");
    let line = config::command_line(&config).replace(&word(config.guest_policy), &word(policy));
    if line.len() >= config.command_line.len() {
        return None;
    }
    config.guest_policy = policy;
    config.command_line.fill(0);
    config.command_line[..line.len()].copy_from_slice(line.as_bytes());
    config.command_line_bytes = u16::try_from(line.len()).ok()?;
    Some(with_config(image, &config))
}

fn with_config(image: &Image, config: &Config) -> Image {
    let mut pages = image.pages.clone();
    for page in pages.iter_mut().filter(|page| page.gpa == CONFIG_GPA && page.kind == PageKind::Measured) {
        let mut data = config.as_bytes().to_vec();
        data.resize(4096, 0);
        page.data = data.into();
    }
    Image {
        platform: image.platform,
        pages,
        parameters: image.parameters.clone(),
        start: image.start.clone(),
        guest_policy: Some(config.guest_policy),
        id_block: image.id_block.clone(),
    }
}
