//! The suites.

mod attestation;
mod containers;
mod faults;
mod hostile_host;
mod images;
mod launches;
mod layers;
mod pods;
mod refusals;
mod tampering;
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
        tampering::CASES,
        hostile_host::CASES,
        faults::CASES,
    ]
    .concat()
}
