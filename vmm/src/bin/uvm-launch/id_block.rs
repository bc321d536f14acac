//! `uvm-launch id-block`: an owner's signed statement of what the secure processor may launch.
//!
//! The key may live elsewhere: `--to-be-signed` writes what it signs, and a second call takes the signatures.

use std::fs;
use std::path::PathBuf;

use ::measure::profile::Profile;
use anyhow::{Context as _, Result, bail};
use attestation::id_block::{AmdPublicKey, IdAuth, IdBlock};
use attestation::keys;
use launch::plan::Tee;
use serde::Serialize;
use zerocopy::IntoBytes as _;

use crate::build::write;
use crate::input::{EXIT_STATUS, ImageFile, YES, print_json, read};
use crate::launch_arguments::{Loader, check_limit};
use crate::verify::{bytes, number};

/// Largest key or signature file, in bytes.
const MAX_KEY_BYTES: u64 = 16 << 10;

/// Arguments of `id-block`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_STATUS)]
pub struct Arguments {
    /// The image whose launch the block permits.
    #[arg(long, required_unless_present = "measurement")]
    image: Option<PathBuf>,
    /// With --image: number of vCPUs; a block is for one number.
    #[arg(long, default_value_t = 1)]
    vcpus: u32,
    /// With --image: who loads it.
    #[arg(long, default_value = "kvm")]
    backend: Loader,
    /// The launch digest itself, instead of an image.
    #[arg(long, value_name = "HEX", value_parser = bytes::<48>, conflicts_with = "image", requires = "guest_policy")]
    measurement: Option<[u8; 48]>,
    /// The guest policy that goes with --measurement.
    #[arg(long, value_name = "NUMBER", value_parser = number, conflicts_with = "image")]
    guest_policy: Option<u64>,
    /// Security version of the guest, shown in its reports.
    #[arg(long, default_value_t = 0)]
    guest_svn: u32,
    /// Family, shown in reports: 16 bytes of the owner's choice.
    #[arg(long, value_name = "HEX", value_parser = bytes::<16>, default_value = "00000000000000000000000000000000")]
    family_id: [u8; 16],
    /// Image, shown in reports: 16 bytes of the owner's choice.
    #[arg(long, value_name = "HEX", value_parser = bytes::<16>, default_value = "00000000000000000000000000000000")]
    image_id: [u8; 16],
    #[command(flatten)]
    signers: Signers,
    /// Where the ID block goes: 96 bytes.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Where the ID authentication information goes: 4096 bytes. Not with --to-be-signed.
    #[arg(long, value_name = "FILE", required_unless_present = "to_be_signed")]
    auth: Option<PathBuf>,
    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

/// Who signs, and where the keys are.
#[derive(Debug, clap::Args)]
struct Signers {
    /// The ID key: a P-384 private key, PEM.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// The author key, which signs the ID key: a P-384 private key, PEM.
    #[arg(long, value_name = "FILE", requires = "key")]
    author_key: Option<PathBuf>,
    /// Sign nothing: write the block to --out, which is what the ID key signs with ECDSA and SHA-384. With
    /// --public-key, write what the author key signs to FILE too.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "", conflicts_with_all = ["key", "signature"])]
    to_be_signed: Option<PathBuf>,
    /// The ID key's public half, PEM, where its private half is elsewhere.
    #[arg(long, value_name = "FILE", conflicts_with = "key")]
    public_key: Option<PathBuf>,
    /// The ID key's signature of the block, made elsewhere: DER, or 96 bytes.
    #[arg(long, value_name = "FILE", requires = "public_key")]
    signature: Option<PathBuf>,
    /// The author key's public half, PEM.
    #[arg(long, value_name = "FILE", requires = "author_signature", conflicts_with = "key")]
    author_public_key: Option<PathBuf>,
    /// The author key's signature of the ID key, made elsewhere.
    #[arg(long, value_name = "FILE", requires = "author_public_key")]
    author_signature: Option<PathBuf>,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Made {
    launch_digest: String,
    policy: String,
    guest_svn: u32,
    /// What reports of such a launch have; none when nothing was signed.
    id_key_digest: Option<String>,
    author_key_digest: Option<String>,
}

/// Makes the block, and signs it or prepares its signature.
pub fn run(arguments: &Arguments) -> Result<u8> {
    let (digest, policy) = arguments.permitted()?;
    let Arguments { guest_svn, family_id, image_id, .. } = arguments;
    let block = IdBlock::new(digest, policy, *guest_svn, *family_id, *image_id);
    let auth = arguments.signers.sign(&block)?;
    write(&arguments.out, block.as_bytes())?;
    if let (Some(auth), Some(path)) = (&auth, &arguments.auth) {
        auth.verify(&block).context("the signatures do not fit the block")?;
        write(path, auth.as_bytes())?;
    }
    let made = Made {
        launch_digest: hex::encode(digest),
        policy: format!("{policy:#x}"),
        guest_svn: *guest_svn,
        id_key_digest: auth.as_ref().map(|auth| hex::encode(auth.id_key.digest())),
        author_key_digest: auth
            .as_ref()
            .filter(|auth| auth.has_author_key())
            .map(|auth| hex::encode(auth.author_key.digest())),
    };
    if arguments.json { print_json(&made)? } else { show(&made) }
    Ok(YES)
}

impl Arguments {
    /// The digest and policy that the block permits.
    fn permitted(&self) -> Result<([u8; 48], u64)> {
        if let (Some(digest), Some(policy)) = (self.measurement, self.guest_policy) {
            return Ok((digest, policy));
        }
        let Some(path) = &self.image else { bail!("expected --image or --measurement, found neither") };
        let file = ImageFile::read(path)?;
        let image = file.of(Tee::Snp)?;
        check_limit(image, self.vcpus)?;
        let digests = Profile::ours(Tee::Snp, self.backend.into()).digests(image, self.vcpus)?;
        let digest = digests.last().context("number of vCPUs: expected at least 1, found 0")?;
        Ok((digest.0, image.guest_policy.context("guest policy: expected one in the image, found none")?))
    }
}

impl Signers {
    /// Authentication information; none if the block is to be signed elsewhere first.
    fn sign(&self, block: &IdBlock) -> Result<Option<IdAuth>> {
        if let Some(path) = &self.to_be_signed {
            self.write_key_to_be_signed(path)?;
            return Ok(None);
        }
        if let Some(path) = &self.key {
            let key = private_key(path)?;
            let author = self.author_key.as_ref().map(private_key).transpose()?;
            return Ok(Some(IdAuth::sign(block, &key, author.as_ref())?));
        }
        let (Some(key), Some(signed)) = (&self.public_key, &self.signature) else {
            bail!("signer: expected --key, --to-be-signed, or --public-key with --signature, found none");
        };
        let author = match (&self.author_public_key, &self.author_signature) {
            (Some(key), Some(signed)) => Some((public_key(key)?, signature(signed)?)),
            _ => None,
        };
        let author = author.as_ref().map(|(key, signature)| (key, signature));
        Ok(Some(IdAuth::new(&public_key(key)?, &signature(signed)?, author)))
    }

    /// Writes what an author key signs, where that is asked for.
    fn write_key_to_be_signed(&self, path: &PathBuf) -> Result<()> {
        match (&self.public_key, path.as_os_str().is_empty()) {
            (Some(key), false) => write(path, AmdPublicKey::from_key(&public_key(key)?).to_be_signed()),
            (None, true) => Ok(()),
            (Some(_), true) => bail!("--to-be-signed: expected a file for the ID key, found none"),
            (None, false) => bail!("--to-be-signed FILE: expected --public-key, found none"),
        }
    }
}
