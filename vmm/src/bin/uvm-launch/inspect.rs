//! `uvm-launch inspect`: what is in an image, and what it costs to launch.

use std::path::PathBuf;

use anyhow::Result;
use measure::contents::{Contents, ESTIMATED_MS_PER_PAGE, Layout, Policy};
use measure::headers::{self, Header};
use measure::registers::{Register, feature_words};
use serde::Serialize;

use crate::input::{EXIT_STATUS, ImageFile, YES, print_json};

/// Arguments of `inspect`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_STATUS)]
pub struct Arguments {
    /// The image: an IGVM file.
    image: PathBuf,
    /// Show each page instead of runs of pages of one kind.
    #[arg(long)]
    pages: bool,
    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Inspection {
    image: String,
    image_sha256: String,
    image_bytes: usize,
    headers: Vec<Header>,
    platforms: Vec<Contents>,
}

/// Prints what is in the image.
pub fn run(arguments: &Arguments) -> Result<u8> {
    let file = ImageFile::read(&arguments.image)?;
    let inspection = Inspection {
        image: file.name.clone(),
        image_sha256: file.sha256(),
        image_bytes: file.bytes.len(),
        headers: headers::list(&file.bytes, arguments.pages)?,
        platforms: file.images.iter().map(|image| Contents::of(image, arguments.pages)).collect(),
    };
    if arguments.json {
        print_json(&inspection)?;
    } else {
        show(&inspection);
    }
    Ok(YES)
}

fn show(inspection: &Inspection) {
    let Inspection { image, image_sha256, image_bytes, headers, platforms } = inspection;
    println!("{image}: IGVM file, {image_bytes} bytes, SHA-256 {image_sha256}");
    println!("\nHeaders, in the order of the file (mask: which platforms they are for)");
    println!("   mask  count  header");
    headers.iter().for_each(show_header);
    platforms.iter().for_each(show_platform);
}

fn show_header(header: &Header) {
    let mask = header.mask.as_deref().unwrap_or("-");
    println!("{mask:>7}  {:>5}  {}: {}", header.count, header.kind, header.detail);
}

fn show_platform(contents: &Contents) {
    let tee = contents.tee.as_deref().unwrap_or("a configuration page of another version");
    println!("\n{}, for {tee}", contents.platform);
    show_cost(contents);
    if let Some(policy) = &contents.policy {
        println!("  guest policy: {}", policy_words(policy));
    }
    if let Some(block) = &contents.id_block {
        let author = if block.author_key { "with" } else { "without" };
        println!("  ID block: guest SVN {}, {author} author key", block.guest_svn);
        println!("    for launch digest {}", block.launch_digest);
        println!("    family {}, image {}", block.family_id, block.image_id);
    }
    if let Some(line) = &contents.command_line {
        println!("  command line: {line}");
    }
    println!("  configuration");
    contents.configuration.iter().for_each(|field| println!("    {:<20} {}", field.name, field.value));
    println!("  written by the loader, not measured");
    contents.parameters.iter().for_each(|parameter| println!("    {parameter}"));
    if contents.registers.is_empty() {
        println!("  vCPU 0: architectural reset state");
    } else {
        println!("  vCPU 0 (registers that are not 0)");
        contents.registers.iter().for_each(show_register);
    }
    println!("  pages, in the order of the file (SHA-384 of a page is what is measured)");
    for run in &contents.runs {
        let digest = run.sha384.as_ref().map(|digest| format!("  {digest}")).unwrap_or_default();
        println!(
            "    {:>12}..{:<12} {:>5} {:<10} {:<28}{digest}",
            run.gpa, run.end, run.pages, run.kind, run.role
        );
    }
}

fn show_cost(contents: &Contents) {
    let pages = contents.pages;
    println!("  layout {}: {} pages measured", contents.layout, pages.measured);
    println!("    {} private pages whose content is not measured, {} shared", pages.unmeasured, pages.shared);
    if let Some(ms) = contents.estimated_launch_ms {
        println!(
            "    estimate: {ms} ms in the secure processor, at about {ESTIMATED_MS_PER_PAGE} ms a measured page"
        );
        if contents.layout == Layout::Window {
            println!("    (in layout measured, the kernel would add {} measured pages)", pages.shared);
        }
    }
}

fn policy_words(policy: &Policy) -> String {
    let words = if policy.words.is_empty() { "nothing allowed".into() } else { policy.words.join(", ") };
    let valid = if policy.valid { "" } else { " (reserved bits are wrong: no processor launches this)" };
    format!("{}: {words}{valid}", policy.value)
}

fn show_register(register: &Register) {
    let words = match register.name.as_str() {
        "sev_features" => u64::from_str_radix(register.value.trim_start_matches("0x"), 16).ok(),
        _ => None,
    };
    let words = words.map(|value| format!(" ({})", feature_words(value).join(", "))).unwrap_or_default();
    println!("    {:<20} {}{words}", register.name, register.value);
}
