//! `uvm-launch build`: an image from a recipe.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use igvm_builder::{Recipe, build};

use crate::input::{EXIT_STATUS, YES, print_json, read, text, write};

/// Largest kernel or boot stub, in bytes: neither fits an image if it is larger.
const MAX_INPUT_BYTES: u64 = launch::image::MAX_IMAGE_BYTES;

/// Arguments of `build`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_STATUS)]
pub struct Arguments {
    /// The recipe: a TOML file (docs/formats.md).
    recipe: PathBuf,
    /// The kernel: a bzImage.
    #[arg(long)]
    kernel: PathBuf,
    /// The boot stub: an ELF file.
    #[arg(long)]
    stub: PathBuf,
    /// Where the IGVM file goes.
    #[arg(long)]
    out: PathBuf,
    /// Where the sidecar goes [default: beside the image, ending in .json].
    #[arg(long)]
    sidecar: Option<PathBuf>,
    /// Print the sidecar instead of text.
    #[arg(long)]
    json: bool,
}

/// Builds the image, writes it and its sidecar.
pub fn run(arguments: &Arguments) -> Result<u8> {
    let shown = arguments.recipe.display();
    let recipe: Recipe =
        toml::from_str(&text(&arguments.recipe)?).with_context(|| format!("recipe {shown}"))?;
    let kernel = read(&arguments.kernel, MAX_INPUT_BYTES)?;
    let stub = read(&arguments.stub, MAX_INPUT_BYTES)?;
    let built = build(&kernel, &stub, &recipe)?;
    write(&arguments.out, &built.file)?;
    let sidecar = arguments.sidecar.clone().unwrap_or_else(|| arguments.out.with_extension("json"));
    write(&sidecar, &serde_json::to_vec_pretty(&built.sidecar)?)?;
    if arguments.json {
        print_json(&built.sidecar)?;
    } else {
        println!("{}: {} bytes; sidecar {}", arguments.out.display(), built.file.len(), sidecar.display());
        println!("see `uvm-launch inspect {}` and `uvm-launch measure …`", arguments.out.display());
    }
    Ok(YES)
}
