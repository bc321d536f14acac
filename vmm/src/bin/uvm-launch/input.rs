//! Files that the measurement subcommands read.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use launch::image::{Image, ImageError, MAX_IMAGE_BYTES, Platform};
use launch::plan::{HostData, Tee};
use sha2::{Digest as _, Sha256};

/// Exit status: the answer is yes, or there was no question.
pub const YES: u8 = 0;
/// Exit status: two measurements differ, a report is explained by nothing, or evidence is refused.
pub const NO: u8 = 1;
/// Exit status: an argument or a file is not what it should be.
pub const BAD_INPUT: u8 = 2;

/// What `--help` of each subcommand ends with.
pub const EXIT_STATUS: &str =
    "Exit status: 0 yes or done, 1 no (differs, unexplained, refused), 2 bad input.";

/// An IGVM file and everything in it that can be launched.
#[derive(Debug)]
pub struct ImageFile {
    /// How the user called it.
    pub name: String,
    /// The file.
    pub bytes: Vec<u8>,
    /// One image for each platform of the file.
    pub images: Vec<Image>,
}

impl ImageFile {
    /// Reads and decodes a file.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = read(path, MAX_IMAGE_BYTES)?;
        let mut images = Vec::new();
        for platform in [Platform::Native, Platform::Snp, Platform::Tdx] {
            match Image::decode(&bytes, platform) {
                Ok(image) => images.push(image),
                Err(ImageError::Platform { .. }) => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("{}, {}", path.display(), platform.name()));
                }
            }
        }
        ensure!(
            !images.is_empty(),
            "{}: expected platform native, SEV-SNP or TDX, found none",
            path.display()
        );
        Ok(Self { name: path.display().to_string(), bytes, images })
    }

    /// SHA-256 of the file, in hexadecimal.
    pub fn sha256(&self) -> String {
        hex::encode(Sha256::digest(&self.bytes))
    }

    /// The part that starts under `tee`.
    pub fn of(&self, tee: Tee) -> Result<&Image> {
        let platform = tee.platform();
        let found = self.images.iter().find(|image| image.platform == platform);
        let names = || self.images.iter().map(|image| image.platform.name()).collect::<Vec<_>>().join(", ");
        found.with_context(|| {
            format!("{}: expected platform {}, found {}", self.name, platform.name(), names())
        })
    }
}

/// Reads a file of at most `most` bytes.
pub fn read(path: &Path, most: u64) -> Result<Vec<u8>> {
    let shown = path.display();
    let file = File::open(path).with_context(|| format!("cannot read {shown}"))?;
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes).with_context(|| format!("cannot read {shown}"))?;
    let length = u64::try_from(bytes.len())?;
    ensure!(length <= most, "{shown}: expected at most {most} bytes, found more");
    Ok(bytes)
}

/// Host data as a user gives it: the value itself, or the policy document whose SHA-256 it is.
#[derive(Debug, clap::Args)]
pub struct HostDataArguments {
    /// Expected host data: 64 hexadecimal digits.
    #[arg(long, value_name = "HEX")]
    host_data: Option<HostData>,
    /// Expect the SHA-256 of this policy document's bytes as host data.
    #[arg(long, value_name = "FILE", conflicts_with = "host_data")]
    policy: Option<std::path::PathBuf>,
}

impl HostDataArguments {
    /// The host data, if any is expected.
    pub fn resolve(&self) -> Result<Option<HostData>> {
        const MAX_POLICY_BYTES: u64 = 4 << 20;
        match &self.policy {
            Some(path) => Ok(Some(HostData(Sha256::digest(read(path, MAX_POLICY_BYTES)?).into()))),
            None => Ok(self.host_data),
        }
    }
}

/// Prints a value as JSON.
pub fn print_json(value: &impl serde::Serialize) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}
