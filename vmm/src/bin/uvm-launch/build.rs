//! `uvm-launch build`: an image from a recipe.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use igvm_builder::{Recipe, build};

use crate::input::{EXIT_STATUS, YES, print_json, read};

/// Longest recipe, in bytes.
const MAX_RECIPE_BYTES: u64 = 64 << 10;
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
    let text = String::from_utf8(read(&arguments.recipe, MAX_RECIPE_BYTES)?)
        .with_context(|| format!("recipe {shown}"))?;
    let recipe: Recipe = toml::from_str(&text).with_context(|| format!("recipe {shown}"))?;
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

/// Writes a file whole or not at all.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    let written = fs::write(&new, bytes).and_then(|()| fs::rename(&new, path));
    written.with_context(|| format!("cannot write {}", path.display()))
}
