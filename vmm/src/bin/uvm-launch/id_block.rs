//! `uvm-launch id-block`: an owner's signed statement of what the secure processor may launch.
//!
//! The keys may live elsewhere: `--to-be-signed` stops before signing, and a second call takes the signatures.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use attestation::id_block::{AmdPublicKey, IdAuth, IdBlock};
use attestation::keys;
use serde::Serialize;
use zerocopy::IntoBytes as _;

use crate::input::{EXIT_STATUS, YES, bytes, number, print_json, read, text, write};
use crate::signed_launch;

/// Longest signature file, in bytes.
const MAX_SIGNATURE_BYTES: u64 = 4096;
/// The default of identifiers.
const NO_ID: &str = "00000000000000000000000000000000";

/// Arguments of `id-block`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_STATUS)]
pub struct Arguments {
    #[command(flatten)]
    launch: signed_launch::LaunchArguments,
    /// The guest policy that goes with --measurement.
    #[arg(long, value_name = "NUMBER", value_parser = number, conflicts_with = "image")]
    guest_policy: Option<u64>,
    /// Security version of the guest, shown in its reports.
    #[arg(long, default_value_t = 0)]
    guest_svn: u32,
    /// Family, shown in reports: 16 bytes of the owner's choice.
    #[arg(long, value_name = "HEX", value_parser = bytes::<16>, default_value = NO_ID)]
    family_id: [u8; 16],
    /// Image, shown in reports: 16 bytes of the owner's choice.
    #[arg(long, value_name = "HEX", value_parser = bytes::<16>, default_value = NO_ID)]
    image_id: [u8; 16],
    #[command(flatten)]
    signers: Signers,
    /// Where the ID block goes: 96 bytes. They are what the ID key signs, with ECDSA and SHA-384.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Where the ID authentication information goes: 4096 bytes.
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
    /// Sign nothing: the keys are elsewhere, and --out has what the ID key signs.
    #[arg(long, conflicts_with_all = ["key", "signature", "auth"])]
    to_be_signed: bool,
    /// With --to-be-signed and --public-key: where to write what the author key signs.
    #[arg(long, value_name = "FILE", requires = "to_be_signed", requires = "public_key")]
    author_to_be_signed: Option<PathBuf>,
    /// The ID key's public half, PEM.
    #[arg(long, value_name = "FILE", conflicts_with = "key")]
    public_key: Option<PathBuf>,
    /// The ID key's signature of the block, made elsewhere: DER, or 96 bytes.
    #[arg(long, value_name = "FILE", requires = "public_key")]
    signature: Option<PathBuf>,
    /// The author key's public half, PEM.
    #[arg(long, value_name = "FILE", requires = "author_signature", conflicts_with = "key")]
    author_public_key: Option<PathBuf>,
    /// The author key's signature of the ID key, made elsewhere.
    #[arg(long, value_name = "FILE", requires = "author_public_key", requires = "signature")]
    author_signature: Option<PathBuf>,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Made {
    launch_digest: String,
    guest_policy: String,
    guest_svn: u32,
    /// What reports of such a launch have; none where nothing was signed.
    id_key_digest: Option<String>,
    author_key_digest: Option<String>,
}

/// Makes the block, and signs it or takes its signatures.
pub fn run(arguments: &Arguments) -> Result<u8> {
    let launch = arguments.launch.resolve()?;
    let policy = launch.policy.or(arguments.guest_policy);
    let policy = policy.context("guest policy: expected --guest-policy with --measurement, found none")?;
    let Arguments { guest_svn, family_id, image_id, .. } = arguments;
    let block = IdBlock::new(launch.digest, policy, *guest_svn, *family_id, *image_id);
    let auth = arguments.signers.sign(&block)?;
    if let Some(auth) = &auth {
        // A signature from elsewhere may be of something else.
        auth.verify(&block)?;
    }
    write(&arguments.out, block.as_bytes())?;
    if let (Some(auth), Some(path)) = (&auth, &arguments.auth) {
        write(path, auth.as_bytes())?;
    }
    let author = auth.as_ref().filter(|auth| auth.has_author_key());
    let made = Made {
        launch_digest: hex::encode(launch.digest),
        guest_policy: format!("{policy:#x}"),
        guest_svn: *guest_svn,
        id_key_digest: auth.as_ref().map(|auth| hex::encode(auth.id_key.digest())),
        author_key_digest: author.map(|auth| hex::encode(auth.author_key.digest())),
    };
    if arguments.json {
        print_json(&made)?;
    } else {
        show(&made);
    }
    Ok(YES)
}

impl Signers {
    /// Authentication information; none if the block is to be signed elsewhere first.
    fn sign(&self, block: &IdBlock) -> Result<Option<IdAuth>> {
        if self.to_be_signed {
            if let (Some(key), Some(path)) = (&self.public_key, &self.author_to_be_signed) {
                let key = keys::public_key(&text(key)?)?;
                write(path, AmdPublicKey::from_key(&key).to_be_signed())?;
            }
            return Ok(None);
        }
        if let Some(key) = &self.key {
            let key = keys::private_key(&text(key)?).with_context(|| key.display().to_string())?;
            let author = match &self.author_key {
                Some(path) => {
                    Some(keys::private_key(&text(path)?).with_context(|| path.display().to_string())?)
                }
                None => None,
            };
            return Ok(Some(IdAuth::sign(block, &key, author.as_ref())?));
        }
        let (Some(key), Some(signature)) = (&self.public_key, &self.signature) else {
            bail!("signer: expected --key, --to-be-signed, or --public-key with --signature, found none");
        };
        let key = keys::public_key(&text(key)?).with_context(|| key.display().to_string())?;
        let signature = keys::signature(&read(signature, MAX_SIGNATURE_BYTES)?)?;
        let author = match (&self.author_public_key, &self.author_signature) {
            (Some(key), Some(signature)) => Some((
                keys::public_key(&text(key)?)?,
                keys::signature(&read(signature, MAX_SIGNATURE_BYTES)?)?,
            )),
            _ => None,
        };
        let author = author.as_ref().map(|(key, signature)| (key, signature));
        Ok(Some(IdAuth::new(&key, &signature, author)))
    }
}

fn show(made: &Made) {
    println!("launch digest      {}", made.launch_digest);
    println!("guest policy       {}, security version {}", made.guest_policy, made.guest_svn);
    for (name, digest) in
        [("id key digest    ", &made.id_key_digest), ("author key digest", &made.author_key_digest)]
    {
        if let Some(digest) = digest {
            println!("{name}  {digest}");
        }
    }
    if made.id_key_digest.is_none() {
        println!("not signed: the block is what the ID key signs (ECDSA P-384, SHA-384)");
    }
}
