//! The suites.

mod attestation;
mod containers;
mod faults;
mod images;
mod launches;
mod layers;
mod pods;
mod refusals;
mod volumes;

use crate::case::Case;

/// All cases, in the order in which they run: what is needed by the rest comes first.
#[must_use]
pub fn all() -> Vec<Case> {
    [
        launches::CASES,
        refusals::CASES,
        attestation::CASES,
        containers::CASES,
        layers::CASES,
        images::CASES,
        pods::CASES,
        volumes::CASES,
        faults::CASES,
    ]
    .concat()
}
