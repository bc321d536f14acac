//! Builds the IGVM image of a utility VM and its measurement sidecar.
//!
//! [`build`] is a pure function from the bytes of a kernel, a boot stub and a [`Recipe`] to the bytes of an
//! image: the same inputs give the same file anywhere. Reading and writing files is the program's part.
#![forbid(unsafe_code)]

mod bzimage;
mod context;
mod cpuid;
mod dsdt;
pub mod id_block;
mod page_tables;
mod pieces;
pub mod recipe;
pub mod sidecar;
mod stub;
mod write;

pub use recipe::{Layout, Recipe};
pub use sidecar::Sidecar;

use launch::plan::Tee;

/// Most pages of an image of the window layout whose content is measured: measuring is what a launch costs, about
/// a millisecond a page.
pub const MEASURED_PAGES_MAX: usize = 32;

/// A built image.
#[derive(Debug)]
pub struct Built {
    /// The IGVM file.
    pub file: Vec<u8>,
    /// What is in it, and what of it is measured.
    pub sidecar: Sidecar,
}

/// Why an image cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The kernel is no bzImage that the stub would start.
    #[error("kernel: expected {expected}, found {found}")]
    Kernel {
        /// The rule.
        expected: &'static str,
        /// What the file has.
        found: String,
    },
    /// The stub is not the program that this builder expects.
    #[error("boot stub: expected {expected}, found {found}")]
    Stub {
        /// The rule.
        expected: &'static str,
        /// What the file has.
        found: String,
    },
    /// The command line does not fit, or holds a zero byte.
    #[error("command line: expected at most {max} bytes without a zero, found {found}")]
    CommandLine {
        /// Most bytes.
        max: usize,
        /// Bytes given.
        found: usize,
    },
    /// The DSDT does not fit its page.
    #[error("DSDT: expected at most {max} bytes, found {found}")]
    Dsdt {
        /// Most bytes.
        max: usize,
        /// Bytes made.
        found: usize,
    },
    /// The recipe's processor limit.
    #[error("max_vcpus: expected 1 to {max}, found {found}")]
    Vcpus {
        /// Most that a machine has.
        max: u32,
        /// What the recipe says.
        found: u32,
    },
    /// Another field of the recipe.
    #[error("recipe: {field}: expected {expected}, found {found}")]
    Recipe {
        /// The field.
        field: &'static str,
        /// The rule.
        expected: &'static str,
        /// What the recipe says.
        found: String,
    },
    /// More separate runs of private pages than the stub's configuration has room for.
    #[error("private pages: expected at most {max} runs, found {found}")]
    Ranges {
        /// Most runs.
        max: usize,
        /// Runs of this image.
        found: usize,
    },
    /// A launch would take too long.
    #[error("{tee}: expected at most {max} measured pages, found {found}")]
    MeasuredPages {
        /// Under which isolation.
        tee: Tee,
        /// Most pages.
        max: usize,
        /// Pages of this image.
        found: usize,
    },
    /// An ID block that is not for this image.
    #[error("ID block: expected {expected}, found {found}")]
    IdBlock {
        /// The rule.
        expected: &'static str,
        /// What there is.
        found: String,
    },
    /// The IGVM library refused what was built.
    #[error("IGVM file: {0}")]
    Igvm(#[source] igvm::Error),
    /// What was built does not decode again.
    #[error(transparent)]
    Image(#[from] launch::image::ImageError),
}

/// Builds an image: a kernel (bzImage), the boot stub (ELF), and how to start them.
///
/// # Errors
/// When an input is not what the stub can work with, or something does not fit.
pub fn build(kernel: &[u8], stub: &[u8], recipe: &Recipe) -> Result<Built, BuildError> {
    let kernel = bzimage::Kernel::parse(kernel)?;
    let stub = stub::Program::parse(stub)?;
    let file = write::image(&kernel, &stub, recipe)?;
    let sidecar = Sidecar::describe(&file, &kernel, recipe)?;
    Ok(Built { file, sidecar })
}
