//! The suites.

mod attestation;
mod containers;
mod faults;
mod launches;
mod pods;
mod refusals;

use crate::case::Case;

/// All cases, in the order in which they run: what is needed by the rest comes first.
#[must_use]
pub fn all() -> Vec<Case> {
    [launches::CASES, refusals::CASES, attestation::CASES, containers::CASES, pods::CASES, faults::CASES]
        .concat()
}
