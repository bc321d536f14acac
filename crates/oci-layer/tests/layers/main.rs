//! Archives, hand-built and by GNU tar, against what they have to become.
#![allow(clippy::unwrap_used, reason = "what fails in a helper has failed the test")]

mod comparison;
mod conversion;
mod hostile;
mod layer;
mod reader;
mod semantics;
mod sparse;
