//! The converter of OCI image layers and of overlayfs directories.

use std::error::Error;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use erofs_verity::layer::{Layer, Settings};
use erofs_verity::source::dir::{self, Fidelity};
use oci_layer::Limits;

use crate::convert::{ConversionFailure, Converted, Converter, is_caused_by_full_disk};
use crate::digest::Digest;

/// Converts within limits.
pub struct OciConverter {
    limits: Limits,
    settings: Settings,
}

impl OciConverter {
    /// A converter of layers of at most so many bytes of uncompressed tar and so many files. Its temporary files
    /// are in `spool`.
    #[must_use]
    pub fn new(uncompressed_bytes: u64, entries: u64, spool: PathBuf) -> Self {
        let limits = Limits { uncompressed_bytes, entries, ..Limits::default() };
        Self { limits, settings: Settings { spool, ..Settings::default() } }
    }
}

impl Converter for OciConverter {
    fn convert(&self, blob: Box<dyn Read + Send>, out: &File) -> Result<Converted, ConversionFailure> {
        let converted = oci_layer::convert_with(blob, out, &self.limits, &self.settings)
            .map_err(|error| failure(&error))?;
        Ok(Converted {
            diff_id: Digest(converted.diff_id.0),
            blob: Digest(converted.blob_digest.0),
            uncompressed_bytes: converted.uncompressed_bytes,
            layer: converted.layer,
        })
    }

    fn pack(&self, directory: &Path, out: &File) -> Result<Layer, ConversionFailure> {
        dir::pack(directory, Fidelity::Portable, out, &self.settings).map_err(|error| failure(&error))
    }
}

fn failure(error: &(dyn Error + 'static)) -> ConversionFailure {
    ConversionFailure { message: error.to_string(), full: is_caused_by_full_disk(error) }
}
