//! `uvm-launch measure`: the digests that a launch of an image will have.

use std::path::PathBuf;

use anyhow::Result;
use launch::plan::Tee;
use measure::cpu::Model;
use measure::profile::{Profile, backend_name};
use serde::Serialize;

use crate::input::{EXIT_STATUS, ImageFile, YES, print_json};
use crate::launch_arguments::{Loader, MeasuredTee, Vcpus, check_limit, tee_of};

/// Arguments of `measure`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_STATUS)]
pub struct Arguments {
    /// The image: an IGVM file.
    image: PathBuf,
    /// Isolation to launch with [default: every one that the image is for].
    #[arg(long)]
    tee: Option<MeasuredTee>,
    /// Who loads the image: the order of pages and the save areas differ.
    #[arg(long, default_value = "kvm")]
    backend: Loader,
    /// Number of virtual CPUs, or a range such as 1-64.
    #[arg(long, default_value = "1")]
    vcpus: Vcpus,
    /// The processor's model, for monitors that leave RDX of virtual CPUs at reset: EPYC-Milan, EPYC-Genoa,
    /// EPYC-Turin, …, or a CPUID signature such as 0xa00f11. Our own monitor sets RDX to 0.
    #[arg(long)]
    cpu_model: Option<Model>,
    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Measurements {
    image: String,
    image_sha256: String,
    launches: Vec<Launch>,
}

/// The digests of one way to launch.
#[derive(Debug, Serialize)]
struct Launch {
    tee: Tee,
    backend: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_model: Option<String>,
    /// What the digest is called in this isolation's reports.
    field: &'static str,
    /// Whether the number of virtual CPUs has a part in it.
    depends_on_vcpus: bool,
    digests: Vec<Digest>,
}

#[derive(Debug, Serialize)]
struct Digest {
    vcpus: u32,
    digest: String,
}

/// Prints the digests.
pub fn run(arguments: &Arguments) -> Result<u8> {
    let file = ImageFile::read(&arguments.image)?;
    let tees = match arguments.tee {
        Some(tee) => vec![tee.into()],
        None => default_tees(&file)?,
    };
    let launches: Result<Vec<Launch>> = tees.into_iter().map(|tee| launch(arguments, &file, tee)).collect();
    let launches = launches?;
    if arguments.json {
        // Only here: hashing the whole file takes longer than measuring what is in it.
        let image_sha256 = file.sha256();
        print_json(&Measurements { image: file.name, image_sha256, launches })?;
    } else {
        launches.iter().for_each(show);
    }
    Ok(YES)
}

/// Every isolation that the file is for and that somebody measures.
fn default_tees(file: &ImageFile) -> Result<Vec<Tee>> {
    let mut tees = Vec::new();
    for image in &file.images {
        tees.extend(tee_of(image)?);
    }
    // The error for a file without any names what is in it.
    if tees.is_empty() { file.of(Tee::Snp).map(|_| tees) } else { Ok(tees) }
}

fn launch(arguments: &Arguments, file: &ImageFile, tee: Tee) -> Result<Launch> {
    let image = file.of(tee)?;
    let backend = arguments.backend.into();
    let profile = Profile { tee, backend, cpu: arguments.cpu_model.clone() };
    let Vcpus(range) = &arguments.vcpus;
    check_limit(image, *range.end())?;
    let digests = profile.digests(image, *range.end())?;
    let digests = (1..).zip(digests).filter(|(vcpus, _)| range.contains(vcpus));
    Ok(Launch {
        tee,
        backend: backend_name(backend),
        cpu_model: arguments.cpu_model.as_ref().map(|model| model.name.clone()),
        field: if tee == Tee::Tdx { "MRTD" } else { "MEASUREMENT" },
        depends_on_vcpus: tee != Tee::Tdx && arguments.backend == Loader::Kvm,
        digests: digests.map(|(vcpus, digest)| Digest { vcpus, digest: digest.to_string() }).collect(),
    })
}

fn show(launch: &Launch) {
    let model = launch.cpu_model.as_ref().map(|model| format!(", processor {model}")).unwrap_or_default();
    println!("{} on {}{model}: {}", launch.tee, launch.backend, launch.field);
    if launch.depends_on_vcpus {
        println!("vCPUs  digest");
        launch.digests.iter().for_each(|digest| println!("{:5}  {}", digest.vcpus, digest.digest));
    } else if let Some(digest) = launch.digests.first() {
        println!("vCPUs  digest");
        println!("  any  {}", digest.digest);
    }
}
