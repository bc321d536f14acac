//! Pages: which are on one side only, moved, loaded otherwise, of other content, in another order.

use std::collections::{BTreeMap, BTreeSet};

use launch::image::{Image, Page, PageKind};
use launch::snp::{self, Backend};

use super::Difference;
use crate::contents::runs;
use launch::role;

/// Measured pages of other content that are shown one by one.
const SHOWN_PAGES: usize = 16;
/// Bytes that are shown of each.
const SHOWN_BYTES: usize = 16;

/// Address, and which page it is of those at that address: a file may load one twice.
type Key = (u64, usize);

/// Adds the differences between the pages of two images.
pub fn compare(into: &mut Vec<Difference>, a: &Image, b: &Image) {
    let private = |kind| kind != PageKind::Shared;
    let (first, second) = (of_kind(a, private), of_kind(b, private));
    let mut only_a = missing(&first, &second);
    let mut only_b = missing(&second, &first);
    into.extend(moved(&mut only_a, &mut only_b));
    into.extend(runs(&only_a, false).into_iter().map(Difference::OnlyInA));
    into.extend(runs(&only_b, false).into_iter().map(Difference::OnlyInB));
    let mut differing = Vec::new();
    for (key, page) in &first {
        let Some(other) = second.get(key) else { continue };
        let (gpa, role) = (format!("{:#x}", page.gpa), role::of(page.gpa));
        if page.kind != other.kind {
            let (a, b) = (page.kind.to_string(), other.kind.to_string());
            into.push(Difference::Kind { gpa, role, a, b });
        }
        if page.kind == PageKind::Measured && other.kind == PageKind::Measured {
            differing.extend(bytes(page, other));
        }
    }
    let more = differing.len().saturating_sub(SHOWN_PAGES);
    into.extend(differing.into_iter().take(SHOWN_PAGES));
    if more > 0 {
        into.push(Difference::MoreBytes { pages: more });
    }
    shared(into, a, b);
}

fn of_kind(image: &Image, wanted: fn(PageKind) -> bool) -> BTreeMap<Key, &Page> {
    let mut keyed = BTreeMap::new();
    let mut seen: BTreeMap<u64, usize> = BTreeMap::new();
    for page in image.pages.iter().filter(|page| wanted(page.kind)) {
        let times = seen.entry(page.gpa).or_default();
        keyed.insert((page.gpa, *times), page);
        *times += 1;
    }
    keyed
}

fn missing(of: &BTreeMap<Key, &Page>, from: &BTreeMap<Key, &Page>) -> Vec<Page> {
    of.iter().filter(|(key, _)| !from.contains_key(key)).map(|(_, page)| (*page).clone()).collect()
}

/// Takes out the pages that are in both lists with the same content, which is not zeros.
fn moved(a: &mut Vec<Page>, b: &mut Vec<Page>) -> Vec<Difference> {
    let mut moved = Vec::new();
    a.retain(|page| {
        if page.kind != PageKind::Measured || page.data.iter().all(|byte| *byte == 0) {
            return true;
        }
        let same = |other: &Page| other.kind == page.kind && other.data == page.data;
        let Some(at) = b.iter().position(same) else { return true };
        let other = b.remove(at);
        let (from, to) = (format!("{:#x}", page.gpa), format!("{:#x}", other.gpa));
        moved.push(Difference::Moved { a: from, b: to, role: role::of(page.gpa) });
        false
    });
    moved
}

/// How two pages' contents differ; none if they do not.
fn bytes(a: &Page, b: &Page) -> Option<Difference> {
    let at = |page: &Page, index: usize| page.data.get(index).copied().unwrap_or(0);
    let indices = || (0..4096).filter(|index| at(a, *index) != at(b, *index));
    let first = indices().next()?;
    let shown = |page: &Page| {
        let bytes = (first..4096).take(SHOWN_BYTES).map(|index| at(page, index));
        hex::encode(bytes.collect::<Vec<u8>>())
    };
    Some(Difference::Bytes {
        gpa: format!("{:#x}", a.gpa),
        role: role::of(a.gpa),
        differing: indices().count(),
        first,
        a: shown(a),
        b: shown(b),
    })
}

fn shared(into: &mut Vec<Difference>, a: &Image, b: &Image) {
    let (a, b) = (of_kind(a, |kind| kind == PageKind::Shared), of_kind(b, |kind| kind == PageKind::Shared));
    let keys: BTreeSet<&Key> = a.keys().chain(b.keys()).collect();
    let differs = |key: &&&Key| a.get(**key).map(|page| &page.data) != b.get(**key).map(|page| &page.data);
    let pages = keys.iter().filter(differs).count();
    if pages > 0 {
        into.push(Difference::Shared { pages });
    }
}

/// Adds where the import orders of the pages that both sides have part.
pub fn order(into: &mut Vec<Difference>, a: (&Image, Backend), b: (&Image, Backend)) {
    let sequence = |(image, backend)| {
        let steps = snp::steps(image, backend, &[]);
        steps.into_iter().map(|step| step.gpa).collect::<Vec<_>>()
    };
    let (first, second) = (sequence(a), sequence(b));
    let in_both = |gpa: &&u64, other: &BTreeSet<u64>| other.contains(*gpa);
    let (set_a, set_b) = (first.iter().copied().collect(), second.iter().copied().collect());
    let first = first.iter().filter(|gpa| in_both(gpa, &set_b));
    let second = second.iter().filter(|gpa| in_both(gpa, &set_a));
    let parted = first.zip(second).enumerate().find(|(_, (a, b))| a != b);
    if let Some((place, (a, b))) = parted {
        let shown = |gpa: u64| format!("{gpa:#x} ({})", role::of(gpa));
        into.push(Difference::Order { place, a: shown(*a), b: shown(*b) });
    }
}
