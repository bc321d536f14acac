//! What makes the measurements of two launches differ.
//!
//! Differences are told from the circumstances (isolation, backend, number of virtual CPUs) over what the image
//! says of itself (policy, command line, configuration, registers) down to pages and bytes. One cause shows at
//! several levels: another command line word is also a byte of the configuration page.

mod difference;
mod pages;
mod words;

use launch::image::{Image, Platform};
use launch::snp::Backend;
use serde::Serialize;

pub use difference::{Difference, WordChange};

use crate::config;
use crate::contents::{self, Policy};
use crate::profile::{Profile, ProfileError, backend_name};
use crate::registers;

/// One side of a comparison.
#[derive(Debug)]
pub struct Side<'a> {
    /// The image.
    pub image: &'a Image,
    /// The circumstances; none for an ordinary machine, whose launch nobody measures.
    pub profile: Option<Profile>,
    /// Number of virtual CPUs.
    pub vcpus: u32,
}

/// What a comparison has found.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// The platform that was compared.
    pub platform: &'static str,
    /// The first side's measurement; none for an ordinary machine.
    pub a: Option<String>,
    /// The second side's.
    pub b: Option<String>,
    /// Every difference, causes first.
    pub differences: Vec<Difference>,
}

impl Comparison {
    /// Whether the two launches measure the same: their digests are equal or, where nobody computes any, nothing
    /// differs that would be measured.
    #[must_use]
    pub fn same_measurement(&self) -> bool {
        match (&self.a, &self.b) {
            (Some(a), Some(b)) => a == b,
            _ => !self.differences.iter().any(Difference::is_measured),
        }
    }
}

/// Compares two launches on one platform.
///
/// # Errors
/// A side has a profile under which its image cannot be launched.
pub fn compare(a: &Side<'_>, b: &Side<'_>) -> Result<Comparison, ProfileError> {
    let mut differences = Vec::new();
    circumstances(&mut differences, a, b);
    policies(&mut differences, a.image, b.image);
    configurations(&mut differences, a.image, b.image);
    start(&mut differences, a.image, b.image);
    pages::compare(&mut differences, a.image, b.image);
    pages::order(&mut differences, (a.image, backend(a)), (b.image, backend(b)));
    Ok(Comparison { platform: a.image.platform.name(), a: digest(a)?, b: digest(b)?, differences })
}

fn digest(side: &Side<'_>) -> Result<Option<String>, ProfileError> {
    let Some(profile) = &side.profile else { return Ok(None) };
    Ok(profile.digests(side.image, side.vcpus)?.pop().map(|digest| digest.to_string()))
}

fn backend(side: &Side<'_>) -> Backend {
    side.profile.as_ref().map_or(Backend::Kvm, |profile| profile.backend)
}

fn circumstances(into: &mut Vec<Difference>, a: &Side<'_>, b: &Side<'_>) {
    let mut differ = |what: &'static str, a: String, b: String| {
        if a != b {
            into.push(Difference::Circumstance { what, a, b });
        }
    };
    if let (Some(first), Some(second)) = (&a.profile, &b.profile) {
        differ("isolation", first.tee.to_string(), second.tee.to_string());
        differ("backend", backend_name(first.backend).into(), backend_name(second.backend).into());
        differ("RDX of other vCPUs", hex(first.reset_rdx()), hex(second.reset_rdx()));
    }
    // Only KVM measures a save area for each virtual CPU.
    if a.image.platform == Platform::Snp && (backend(a) == Backend::Kvm || backend(b) == Backend::Kvm) {
        differ("number of vCPUs", a.vcpus.to_string(), b.vcpus.to_string());
    }
    differ("layout", contents::layout(a.image).to_string(), contents::layout(b.image).to_string());
}

fn hex(value: u64) -> String {
    format!("{value:#x}")
}

fn policies(into: &mut Vec<Difference>, a: &Image, b: &Image) {
    let (Some(a), Some(b)) = (a.guest_policy, b.guest_policy) else { return };
    if a != b {
        into.push(Difference::Policy { a: Policy::of(a), b: Policy::of(b) });
    }
}

fn configurations(into: &mut Vec<Difference>, a: &Image, b: &Image) {
    let (Some(a), Some(b)) = (config::read(a), config::read(b)) else { return };
    let (first, second) = (config::command_line(&a), config::command_line(&b));
    let changes = words::compare(&first, &second);
    if first != second {
        into.push(Difference::CommandLine { words: changes });
    }
    let pairs = pairs(
        config::fields(&a).into_iter().map(|field| (field.name, field.value)),
        config::fields(&b).into_iter().map(|field| (field.name, field.value)),
    );
    into.extend(pairs.map(|(field, a, b)| Difference::Configuration { field, a, b }));
}

fn start(into: &mut Vec<Difference>, a: &Image, b: &Image) {
    let named = |image: &Image| {
        let registers = registers::all(&image.start).into_iter();
        registers.map(|register| (register.name, register.value)).collect::<Vec<_>>()
    };
    let pairs = pairs(named(a).into_iter(), named(b).into_iter());
    into.extend(pairs.map(|(register, a, b)| Difference::Register { register, a, b }));
    let at = |image: &Image| match image.start {
        launch::image::Start::Snp { gpa, .. } => Some(gpa),
        _ => None,
    };
    if let (Some(a), Some(b)) = (at(a), at(b))
        && a != b
    {
        into.push(Difference::SaveArea { a: hex(a), b: hex(b) });
    }
    let ids = |image: &Image| format!("{:?}", image.id_block);
    if ids(a) != ids(b) {
        into.push(Difference::IdBlock { a: a.id_block.is_some(), b: b.id_block.is_some() });
    }
    if a.parameters != b.parameters {
        into.push(Difference::Parameters);
    }
}

/// Named values that are not the same on both sides, in the order of the first; a value that a side does not have
/// is `none` there.
fn pairs(
    a: impl Iterator<Item = (String, String)>,
    b: impl Iterator<Item = (String, String)>,
) -> impl Iterator<Item = (String, String, String)> {
    let mut second: Vec<_> = b.collect();
    let mut changed = Vec::new();
    for (name, value) in a {
        let at = second.iter().position(|(other, _)| *other == name);
        let other = at.map_or_else(|| "none".to_owned(), |at| second.remove(at).1);
        if value != other {
            changed.push((name, value, other));
        }
    }
    changed.extend(second.into_iter().map(|(name, value)| (name, "none".to_owned(), value)));
    changed.into_iter()
}

#[cfg(test)]
mod tests;
