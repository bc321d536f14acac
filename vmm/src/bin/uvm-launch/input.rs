//! Files and values that the measurement subcommands read, and files that they write.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use attestation::x509::Certificate;
use bytes::Bytes;
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
    pub bytes: Bytes,
    /// One image for each platform of the file.
    pub images: Vec<Image>,
}

impl ImageFile {
    /// Reads and decodes a file.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = Bytes::from(read(path, MAX_IMAGE_BYTES)?);
        let mut images = Vec::new();
        for platform in [Platform::Native, Platform::Snp, Platform::Tdx] {
            match Image::decode_bytes(bytes.clone(), platform) {
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
    policy: Option<PathBuf>,
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

/// Reads a file of text, such as a key in PEM.
pub fn text(path: &Path) -> Result<String> {
    const MAX_TEXT_BYTES: u64 = 64 << 10;
    String::from_utf8(read(path, MAX_TEXT_BYTES)?)
        .with_context(|| format!("{}: expected text", path.display()))
}

/// Reads certificates: all of a PEM file, or one in DER.
pub fn certificates(path: &Path) -> Result<Vec<Certificate>> {
    const MAX_CERTIFICATES_BYTES: u64 = 256 << 10;
    let bytes = read(path, MAX_CERTIFICATES_BYTES)?;
    let certificates = if bytes.starts_with(b"-----") {
        Certificate::from_pem(&bytes)
    } else {
        Certificate::from_der(&bytes).map(|one| vec![one])
    };
    certificates.with_context(|| path.display().to_string())
}

/// Writes a file whole or not at all.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    let written = fs::write(&new, bytes).and_then(|()| fs::rename(&new, path));
    written.with_context(|| format!("cannot write {}", path.display()))
}

/// Prints a value as JSON.
pub fn print_json(value: &impl serde::Serialize) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Exactly `N` bytes in hexadecimal.
pub fn bytes<const N: usize>(text: &str) -> Result<[u8; N], String> {
    let mut bytes = [0; N];
    let decoded = hex::decode_to_slice(text, &mut bytes);
    decoded.map_err(|_| format!("expected {} hexadecimal digits, found {}", 2 * N, text.len()))?;
    Ok(bytes)
}

/// A number, decimal or with `0x` hexadecimal.
pub fn number(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("expected a number such as 0x30000, found {text:?}"))
}
