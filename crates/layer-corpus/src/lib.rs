//! Odd image layers: for everything that tar allows and that layers make something of, an archive that has it.
//!
//! [`corpus`] gives them all, by name. They say nothing about what becomes of them: those who test that do.

pub mod archive;
mod metadata;
mod names;
mod overlays;
mod sparse;

/// A layer.
#[derive(Debug, Clone)]
pub struct Odd {
    /// Which it is.
    pub name: &'static str,
    /// The archive, uncompressed.
    pub tar: Vec<u8>,
}

/// All of them.
#[must_use]
pub fn corpus() -> Vec<Odd> {
    let all = [metadata::LAYERS, names::LAYERS, overlays::LAYERS, sparse::LAYERS].concat();
    all.into_iter().map(|(name, make)| Odd { name, tar: make().finish() }).collect()
}

/// Layers by name.
type Layers = &'static [(&'static str, fn() -> archive::Archive)];
