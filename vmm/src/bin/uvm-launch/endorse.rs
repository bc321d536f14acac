//! `uvm-launch endorse`: a signed statement that a launch measurement is a version of an image.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use attestation::endorsement::{Issuer, Statement, sign};
use attestation::keys;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::input::{EXIT_STATUS, YES, certificates, print_json, text, write};
use crate::signed_launch;

/// Arguments of `endorse`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_STATUS)]
pub struct Arguments {
    #[command(flatten)]
    launch: signed_launch::LaunchArguments,
    /// The line of images that this is a version of, such as ConfAKS-AMD-UVM.
    #[arg(long)]
    feed: String,
    /// Security version within the feed.
    #[arg(long)]
    svn: u64,
    /// The signer's private key: P-384, PEM.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The signer's certificate, then its issuers up to the authority: PEM, at least two.
    #[arg(long, value_name = "FILE")]
    chain: PathBuf,
    /// Object identifier of the purpose that the signer's certificate is for (extended key usage).
    #[arg(long, value_name = "OID")]
    key_usage: String,
    /// Where the endorsement goes.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Made {
    issuer: String,
    feed: String,
    svn: u64,
    launch_digest: String,
    bytes: usize,
}

/// Makes the endorsement.
pub fn run(arguments: &Arguments) -> Result<u8> {
    let launch = arguments.launch.resolve()?;
    let key =
        keys::private_key(&text(&arguments.key)?).with_context(|| arguments.key.display().to_string())?;
    let chain = certificates(&arguments.chain)?;
    let statement =
        Statement { feed: arguments.feed.clone(), svn: arguments.svn, measurement: launch.digest };
    let endorsement = sign(&statement, &key, &chain, &arguments.key_usage)?;
    let authority = chain.last().context("--chain: expected certificates, found none")?;
    let issuer =
        Issuer { authority: Sha256::digest(authority.der()).into(), key_usage: arguments.key_usage.clone() };
    write(&arguments.out, &endorsement)?;
    let made = Made {
        issuer: issuer.to_string(),
        feed: statement.feed,
        svn: statement.svn,
        launch_digest: hex::encode(launch.digest),
        bytes: endorsement.len(),
    };
    if arguments.json {
        print_json(&made)?;
    } else {
        println!("{}: {} bytes", arguments.out.display(), made.bytes);
        println!("launch digest  {}", made.launch_digest);
        println!("feed           {}, security version {}", made.feed, made.svn);
        println!("issuer         {}", made.issuer);
    }
    Ok(YES)
}
