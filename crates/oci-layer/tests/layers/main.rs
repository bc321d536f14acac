//! Archives, hand-built and by GNU tar, against what they have to become.

mod archive;
mod comparison;
mod conversion;
mod hostile;
mod layer;
mod reader;
mod semantics;
mod sparse;
