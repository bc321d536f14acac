//! `uvm-rootfs`: packs the root file system of the utility VM.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Parser, Subcommand};
use uvm_rootfs::{Manifest, pack};

/// Packs the read-only root file system of the utility VM.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write the image (erofs with its dm-verity hash tree) and what it measures to.
    Pack {
        /// The agent: a static x86-64 executable that becomes PID 1.
        #[arg(long)]
        agent: PathBuf,
        /// The image to write.
        #[arg(long)]
        out: PathBuf,
        /// The JSON to write: root hash, sizes, kernel arguments.
        #[arg(long)]
        info: PathBuf,
        /// Another manifest than the product's own.
        #[arg(long)]
        manifest: Option<PathBuf>,
    },
}

fn main() -> anyhow::Result<()> {
    let Command::Pack { agent, out, info, manifest } = Arguments::parse().command;
    let manifest = match manifest {
        Some(path) => {
            let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path:?}"))?;
            Manifest::parse(&text).with_context(|| format!("{path:?} is refused"))?
        }
        None => Manifest::own()?,
    };
    let packed = pack(&manifest, &agent, &out)?;
    let mut json = serde_json::to_vec_pretty(&packed)?;
    json.push(b'\n');
    std::fs::write(&info, json).with_context(|| format!("cannot write {info:?}"))?;
    println!("{}: {} bytes, root hash {}", out.display(), packed.length, packed.root_hash);
    Ok(())
}
