//! Command line of the image builder.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use igvm_builder::{Recipe, build};

/// Builds the IGVM image of a utility VM and its measurement sidecar.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Builds an image.
    Build {
        /// The recipe: a TOML file with `command_line`, `max_vcpus`, `debug`, `tees`, `layout`, `snp_policy`.
        #[arg(long)]
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
        /// Where the sidecar goes; beside the image, ending in `.json`, if not given.
        #[arg(long)]
        sidecar: Option<PathBuf>,
    },
}

fn main() -> Result<()> {
    let Command::Build { recipe, kernel, stub, out, sidecar } = Arguments::parse().command;
    let text = fs::read_to_string(&recipe).with_context(|| format!("cannot read {}", recipe.display()))?;
    let recipe: Recipe = toml::from_str(&text).with_context(|| format!("recipe {}", recipe.display()))?;
    let built = build(&read(&kernel)?, &read(&stub)?, &recipe)?;
    let json = serde_json::to_vec_pretty(&built.sidecar)?;
    write(&out, &built.file)?;
    write(&sidecar.unwrap_or_else(|| out.with_extension("json")), &json)?;
    let shown = built.sidecar;
    println!("{}: {} bytes", out.display(), shown.image_bytes);
    for platform in &shown.platforms {
        let cost = &platform.cost;
        println!(
            "{:<5} {} measured, {} unmeasured and {} shared pages, digest {}",
            platform.tee.to_string(),
            cost.measured_pages,
            cost.unmeasured_pages,
            cost.shared_pages,
            platform.measurement.first()
        );
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Writes a file whole or not at all.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let new = path.with_extension("new");
    let written = fs::File::create(&new).and_then(|mut file| file.write_all(bytes));
    written.and_then(|()| fs::rename(&new, path)).with_context(|| format!("cannot write {}", path.display()))
}
