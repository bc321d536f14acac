//! Which launch a report is of: which image, on which backend, with how many virtual CPUs. Where no image
//! reproduces the measurement: what comes nearest, and what speaks against it.
//!
//! Nothing here says whether a report is genuine; that is for verification.

pub mod claims;
mod variants;

use igvm::IgvmDirectiveHeader;
use launch::image::{Image, Platform};
use launch::layout::MAX_VCPUS;
use launch::plan::{HostData, Tee};
use launch::snp::Backend;
use serde::Serialize;

use crate::config;
use crate::profile::{Profile, backend_name};
use claims::{Claims, Summary};

/// Most virtual CPUs that are tried beyond an image's own limit.
const MOST_VCPUS: u32 = 512;

/// One platform's part of an image that a report may be of.
#[derive(Debug)]
pub struct Candidate<'a> {
    /// How to call it.
    pub name: &'a str,
    /// The image.
    pub image: &'a Image,
}

/// What is expected beside the measurement, as far as it is known.
#[derive(Debug, Default)]
pub struct Circumstances<'a> {
    /// Who gave the report, as the guest says.
    pub provider: Option<&'a str>,
    /// The host data that the launch should have.
    pub host_data: Option<HostData>,
}

/// What a report is of.
#[derive(Debug, Clone, Serialize)]
pub struct Explanation {
    /// What the report says.
    pub report: Summary,
    /// Launches that measure the same.
    pub matches: Vec<Match>,
    /// If there is none: every candidate, the nearest first.
    pub nearest: Vec<Near>,
}

/// A launch that measures what the report says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Match {
    /// The image.
    pub image: String,
    /// Its isolation.
    pub tee: String,
    /// Who loaded it.
    pub backend: &'static str,
    /// With how many virtual CPUs; none where the measurement does not depend on it.
    pub vcpus: Option<u32>,
    /// What is out of the ordinary; none for a launch as our own monitor makes it.
    pub cause: Option<String>,
    /// What the report says beside the measurement, against what the image says.
    pub findings: Vec<Finding>,
}

/// An image that does not measure what the report says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Near {
    /// The image and its platform.
    pub image: String,
    /// What agrees and what does not.
    pub findings: Vec<Finding>,
}

/// One thing that image and report both say something about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What.
    pub what: &'static str,
    /// What the image says.
    pub expected: String,
    /// What the report says.
    pub found: String,
    /// Whether they agree.
    pub agrees: bool,
}

/// Explains `claims` by `candidates`.
#[must_use]
pub fn explain(claims: &Claims, candidates: &[Candidate<'_>], known: &Circumstances<'_>) -> Explanation {
    let mut matches = Vec::new();
    for candidate in candidates {
        if let Some((profile, vcpus, cause)) = reproduce(claims, candidate.image) {
            matches.push(Match {
                image: candidate.name.to_owned(),
                tee: profile.tee.to_string(),
                backend: backend_name(profile.backend),
                vcpus,
                cause,
                findings: findings(claims, candidate.image, known),
            });
        }
    }
    // A launch as our own monitor makes it explains more than one that needs a cause.
    matches.sort_by_key(|found| found.cause.is_some());
    let nearest = if matches.is_empty() { nearest(claims, candidates, known) } else { Vec::new() };
    Explanation { report: claims.summary(), matches, nearest }
}

/// The launch of `image` that measures what is claimed: profile, number of virtual CPUs, cause.
fn reproduce(claims: &Claims, image: &Image) -> Option<(Profile, Option<u32>, Option<String>)> {
    let wanted = claims.measurement();
    match (claims, image.platform) {
        (Claims::Tdx(_), Platform::Tdx) => {
            let profile = Profile::ours(Tee::Tdx, Backend::Kvm);
            let same = profile.digests(image, 1).ok()?.first() == Some(&wanted);
            same.then_some((profile, None, None))
        }
        (Claims::Snp(report), Platform::Snp) => {
            let tee = tee(image);
            let on_kvm = Profile::ours(tee, Backend::Kvm);
            let limit = limit(image);
            let digests = on_kvm.digests(image, MOST_VCPUS.max(limit)).ok()?;
            let vcpus = (1..).zip(&digests).find(|(_, digest)| **digest == wanted).map(|(vcpus, _)| vcpus);
            if let Some(vcpus) = vcpus {
                let cause =
                    (vcpus > limit).then(|| format!("more vCPUs than the image starts with, {limit}"));
                return Some((on_kvm, Some(vcpus), cause));
            }
            let on_mshv = Profile::ours(tee, Backend::Mshv);
            if on_mshv.digests(image, 1).is_ok_and(|digests| digests.first() == Some(&wanted)) {
                return Some((on_mshv, None, None));
            }
            let (vcpus, cause) = variants::search(image, wanted, MAX_VCPUS, report.policy.get())?;
            Some((on_kvm, Some(vcpus), Some(cause)))
        }
        _ => None,
    }
}

fn tee(image: &Image) -> Tee {
    let sim = config::read(image).is_some_and(|config| config.tee == boot_abi::Tee::Sim as u32);
    if sim { Tee::Sim } else { Tee::Snp }
}

fn limit(image: &Image) -> u32 {
    config::read(image).map_or(MAX_VCPUS, |config| config.max_vcpus.clamp(1, MAX_VCPUS))
}

fn nearest(claims: &Claims, candidates: &[Candidate<'_>], known: &Circumstances<'_>) -> Vec<Near> {
    let near = candidates.iter().map(|candidate| Near {
        image: format!("{} ({})", candidate.name, candidate.image.platform.name()),
        findings: {
            let mut findings = findings(claims, candidate.image, known);
            findings.extend(unmatched(claims, candidate.image));
            findings
        },
    });
    let mut near: Vec<Near> = near.collect();
    near.sort_by_key(|near| std::cmp::Reverse(near.findings.iter().filter(|finding| finding.agrees).count()));
    near
}

/// That the measurement is none of the image's, with the one that it has for one virtual CPU.
fn unmatched(claims: &Claims, image: &Image) -> Option<Finding> {
    let found = claims.measurement().to_string();
    let (profile, range) = match (claims, image.platform) {
        (Claims::Tdx(_), Platform::Tdx) => {
            (Profile::ours(Tee::Tdx, Backend::Kvm), "any number of vCPUs".into())
        }
        (Claims::Snp(_), Platform::Snp) => {
            let range = format!("1 vCPU; none of 1 to {MOST_VCPUS} gives the one found");
            (Profile::ours(tee(image), Backend::Kvm), range)
        }
        _ => return None,
    };
    let one = profile.digests(image, 1).ok()?.pop()?;
    Some(Finding {
        what: "measurement",
        expected: format!("{one} ({profile}, {range})"),
        found,
        agrees: false,
    })
}

/// Everything but the measurement.
fn findings(claims: &Claims, image: &Image, known: &Circumstances<'_>) -> Vec<Finding> {
    let finding = |what, expected: String, found: String| {
        let agrees = expected == found;
        Finding { what, expected, found, agrees }
    };
    let platform = match claims {
        Claims::Snp(_) => Platform::Snp,
        Claims::Tdx(_) => Platform::Tdx,
    };
    let mut findings = vec![finding("platform", image.platform.name().into(), platform.name().into())];
    if image.platform != platform {
        return findings;
    }
    if let Some(provider) = known.provider {
        // Any provider of real hardware has a name of its own.
        let simulated = |sim: bool| if sim { "simulated" } else { "hardware" };
        let expected = simulated(platform == Platform::Snp && tee(image) == Tee::Sim);
        findings.push(finding("provider", expected.into(), simulated(provider.contains("sim")).into()));
    }
    if let Some(expected) = known.host_data {
        let padding = if platform == Platform::Tdx { "00".repeat(16) } else { String::new() };
        findings.push(finding("host data", format!("{expected}{padding}"), claims.host_data()));
    }
    match claims {
        Claims::Snp(report) => {
            if let Some(policy) = image.guest_policy {
                let expected = evidence::policy::GuestPolicy(policy).to_string();
                findings.push(finding("guest policy", expected, report.policy().to_string()));
            }
            findings.extend(id_block(image).into_iter().flat_map(|[svn, family, id]| {
                [
                    finding("guest SVN", svn, report.guest_svn.get().to_string()),
                    finding("family ID", family, hex::encode(report.family_id)),
                    finding("image ID", id, hex::encode(report.image_id)),
                ]
            }));
        }
        Claims::Tdx(claims) => {
            let debug = |on: bool| if on { "on" } else { "off" };
            findings.push(finding("debug", debug(false).into(), debug(claims.attributes & 1 == 1).into()));
        }
    }
    findings
}

/// Security version, family and image as the ID block names them.
fn id_block(image: &Image) -> Option<[String; 3]> {
    match image.id_block.as_deref()? {
        IgvmDirectiveHeader::SnpIdBlock { guest_svn, family_id, image_id, .. } => {
            Some([guest_svn.to_string(), hex::encode(family_id), hex::encode(image_id)])
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
