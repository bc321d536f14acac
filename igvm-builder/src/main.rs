//! Command line of the image builder.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use clap::{Parser, Subcommand};
use igvm_builder::id_block::{self, Allowed};
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
    /// Puts a signed SEV-SNP ID block into an image.
    AttachIdBlock {
        /// The image: an IGVM file.
        #[arg(long)]
        image: PathBuf,
        /// The ID block: 96 bytes.
        #[arg(long)]
        block: PathBuf,
        /// Its authentication information: 4096 bytes.
        #[arg(long)]
        auth: PathBuf,
        /// Where the image with the ID block goes.
        #[arg(long)]
        out: PathBuf,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Build { recipe, kernel, stub, out, sidecar } => {
            build_image(&recipe, &kernel, &stub, &out, sidecar)
        }
        Command::AttachIdBlock { image, block, auth, out } => attach_id_block(&image, &block, &auth, &out),
    }
}

fn build_image(
    recipe: &Path,
    kernel: &Path,
    stub: &Path,
    out: &Path,
    sidecar: Option<PathBuf>,
) -> Result<()> {
    let text = fs::read_to_string(recipe).with_context(|| format!("cannot read {}", recipe.display()))?;
    let recipe: Recipe = toml::from_str(&text).with_context(|| format!("recipe {}", recipe.display()))?;
    let built = build(&read(kernel)?, &read(stub)?, &recipe)?;
    let json = serde_json::to_vec_pretty(&built.sidecar)?;
    write(out, &built.file)?;
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

fn attach_id_block(image: &Path, block: &Path, auth: &Path, out: &Path) -> Result<()> {
    let (file, allowed) = id_block::attach(&read(image)?, &sized(block)?, &sized(auth)?)?;
    write(out, &file)?;
    match allowed {
        Allowed::Kvm(vcpus) => println!("{}: starts under KVM with {vcpus} virtual CPUs", out.display()),
        Allowed::Mshv => println!("{}: starts under the Microsoft Hypervisor", out.display()),
    }
    Ok(())
}

/// A file of exactly `N` bytes.
fn sized<const N: usize>(path: &Path) -> Result<[u8; N]> {
    let bytes = read(path)?;
    let found = bytes.len();
    bytes.try_into().map_err(|_| anyhow!("{}: expected {N} bytes, found {found}", path.display()))
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
