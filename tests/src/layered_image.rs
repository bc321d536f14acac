//! Images of many layers, of which every layer leaves a trace in what a container sees.
//!
//! The bottom layer has a shell. Every other layer adds a file of its own to `/each`, replaces `/top`, and takes away
//! (by a whiteout) what the layer below it put into `/gone`. Every fifth layer is the same as the other fifth ones,
//! byte for byte, so that one layer occurs several times in a stack.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::oci_archive::{LayerTar, digest, write_layers};

/// What a container has to print for [`LayeredImage::view`] to be what it sees.
pub const SHOW: &str = "cat /each/* /top; echo /gone/*; cat /same/file";

/// Which layers are one and the same.
const SAME: usize = 5;
/// A file large enough that layers have more than one block of data and of hashes.
const PAYLOAD_BYTES: usize = 600_000;

/// An image and its layers.
#[derive(Debug)]
pub struct LayeredImage {
    /// Reference in containerd.
    pub name: String,
    /// The archive.
    pub archive: String,
    tars: Vec<Vec<u8>>,
}

impl LayeredImage {
    /// Writes an image of `layers` layers into `folder`. Its name ends with that number, and starts with
    /// `registry` (`host:port/`).
    ///
    /// # Errors
    /// When there is no busybox here, or a file cannot be written.
    pub fn write(folder: &Path, registry: &str, layers: usize) -> Result<Self> {
        let tars = (0..layers).map(layer).collect::<Result<Vec<_>>>()?;
        let name = format!("{registry}layers:{layers}");
        let config = json!({ "Cmd": ["sh", "-c", SHOW], "Env": ["PATH=/bin"] });
        let archive = write_layers(folder, &name, &tars, &config)?;
        Ok(Self { name, archive, tars })
    }

    /// Digests of the uncompressed layers, each once.
    #[must_use]
    pub fn diff_ids(&self) -> BTreeSet<String> {
        self.tars.iter().map(|tar| digest(tar)).collect()
    }

    /// The uncompressed tar of layer `number`.
    #[must_use]
    pub fn tar(&self, number: usize) -> &[u8] {
        &self.tars[number]
    }

    /// How many layers there are.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.tars.len()
    }

    /// What [`SHOW`] prints in a container.
    #[must_use]
    pub fn view(&self) -> String {
        let own: Vec<usize> = (0..self.tars.len()).filter(|number| !is_same(*number)).collect();
        let top = own.last().copied().unwrap_or_default();
        let lines: String = own.iter().map(|number| format!("layer {number}\n")).collect();
        // Without any, the pattern stays as it is.
        let gone = if top == 0 { "*".to_owned() } else { top.to_string() };
        format!("{lines}top {top}\n/gone/{gone}\nthe same\n")
    }
}

/// Whether layer `number` is one of those that are all the same.
fn is_same(number: usize) -> bool {
    number > 0 && number.is_multiple_of(SAME)
}

fn layer(number: usize) -> Result<Vec<u8>> {
    let mut tar = LayerTar::default();
    if is_same(number) {
        tar.file("same/file", b"the same\n")?;
        return tar.finish();
    }
    if number == 0 {
        base(&mut tar)?;
    } else {
        // The one below that put something there: the layers that are all the same did not.
        let below = if is_same(number - 1) { number - 2 } else { number - 1 };
        if below > 0 {
            tar.file(&format!("gone/.wh.{below}"), b"")?;
        }
        tar.file(&format!("gone/{number}"), b"")?;
    }
    tar.file(&format!("each/{number:03}"), format!("layer {number}\n").as_bytes())?;
    tar.file("top", format!("top {number}\n").as_bytes())?;
    tar.finish()
}

fn base(tar: &mut LayerTar) -> Result<()> {
    let shell = std::fs::read("/bin/busybox").context("/bin/busybox")?;
    tar.directory("bin")?;
    tar.file("bin/busybox", &shell)?;
    for name in ["sh", "cat", "sleep", "true"] {
        tar.symlink(&format!("bin/{name}"), "busybox")?;
    }
    tar.directory("gone")?;
    tar.file("same/file", b"the same\n")?;
    tar.file("payload", &payload())
}

/// Bytes that do not repeat within a block.
fn payload() -> Vec<u8> {
    let mut state = 0x9e37_79b9u32;
    let mut next = || {
        // xorshift32.
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    };
    (0..PAYLOAD_BYTES).map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_leave_their_traces() {
        let folder = tempfile::tempdir().unwrap();
        let image = LayeredImage::write(folder.path(), "", 7).unwrap();
        assert_eq!(image.name, "layers:7");
        let each = "layer 0\nlayer 1\nlayer 2\nlayer 3\nlayer 4\nlayer 6\n";
        assert_eq!(image.view(), format!("{each}top 6\n/gone/6\nthe same\n"));
        assert_eq!((image.layers(), image.diff_ids().len()), (7, 7));
        let image = LayeredImage::write(folder.path(), "", 11).unwrap();
        assert_eq!((image.layers(), image.diff_ids().len()), (11, 10));
    }
}
