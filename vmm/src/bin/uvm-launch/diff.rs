//! `uvm-launch diff`: what makes two measurements differ.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::ValueEnum as _;
use launch::image::Image;
use launch::plan::Tee;
use measure::cpu::Model;
use measure::diff::{Comparison, Side, compare};
use measure::profile::Profile;
use serde::Serialize;

use crate::input::{EXIT_STATUS, ImageFile, NO, YES, print_json};
use crate::launch_arguments::{Loader, MeasuredTee, Vcpus, check_limit, tee_of};

/// Arguments of `diff`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_STATUS)]
pub struct Arguments {
    /// One image, A: an IGVM file.
    a: PathBuf,
    /// The other, B; the same file again to compare two launches of it.
    b: PathBuf,
    /// Compare under this isolation only; two, with a comma between, are for A and B.
    #[arg(long, value_name = "TEE[,TEE]", value_parser = for_each_side(|text| MeasuredTee::from_str(text, false)))]
    tee: Option<[MeasuredTee; 2]>,
    /// Who loads A, and who B.
    #[arg(long, default_value = "kvm", value_name = "BACKEND[,BACKEND]",
        value_parser = for_each_side(|text| Loader::from_str(text, false)))]
    backend: [Loader; 2],
    /// Number of virtual CPUs of A, and of B.
    #[arg(long, default_value = "1", value_name = "N[,N]", value_parser = for_each_side(one_number))]
    vcpus: [u32; 2],
    /// The processor's model, for monitors that leave RDX at reset; see `measure`.
    #[arg(long, value_name = "MODEL[,MODEL]", value_parser = for_each_side(model))]
    cpu_model: Option<[Model; 2]>,
    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

/// Reads `x`, which is for both sides, or `x,y`.
fn for_each_side<T: Send + Sync>(
    value: fn(&str) -> Result<T, String>,
) -> impl Fn(&str) -> Result<[T; 2], String> + Clone + Send + Sync {
    move |text| {
        let (a, b) = text.split_once(',').unwrap_or((text, text));
        Ok([value(a)?, value(b)?])
    }
}

fn one_number(text: &str) -> Result<u32, String> {
    let Vcpus(range) = text.parse()?;
    if range.start() == range.end() { Ok(*range.start()) } else { Err("expected one number".into()) }
}

fn model(text: &str) -> Result<Model, String> {
    text.parse().map_err(|error: measure::cpu::UnknownModel| error.to_string())
}

#[derive(Debug, Serialize)]
struct Differences {
    a: String,
    b: String,
    /// Whether every launch that was compared measures the same on both sides.
    same: bool,
    /// Platforms of only one of the files.
    only_in_a: Vec<&'static str>,
    only_in_b: Vec<&'static str>,
    platforms: Vec<Comparison>,
}

/// Prints the differences; the exit status says whether there are any that are measured.
pub fn run(arguments: &Arguments) -> Result<u8> {
    let files = [ImageFile::read(&arguments.a)?, ImageFile::read(&arguments.b)?];
    let mut platforms = Vec::new();
    for [a, b] in pairs(arguments, &files)? {
        platforms.push(compare(&side(arguments, 0, a)?, &side(arguments, 1, b)?)?);
    }
    let [a, b] = &files;
    if platforms.is_empty() {
        bail!("{} and {}: expected a platform that both have, found none", a.name, b.name);
    }
    let differences = Differences {
        a: a.name.clone(),
        b: b.name.clone(),
        same: platforms.iter().all(Comparison::same_measurement),
        only_in_a: only(a, b),
        only_in_b: only(b, a),
        platforms,
    };
    if arguments.json {
        print_json(&differences)?;
    } else {
        show(&differences);
    }
    Ok(if differences.same { YES } else { NO })
}

/// An image and the isolation under which it is compared; none for an ordinary machine.
type Part<'a> = (&'a Image, Option<Tee>);

/// What to compare: what `--tee` names, or every platform that both files have.
fn pairs<'a>(arguments: &Arguments, [a, b]: &'a [ImageFile; 2]) -> Result<Vec<[Part<'a>; 2]>> {
    if let Some(tees) = &arguments.tee {
        let [first, second] = tees.map(Tee::from);
        return Ok(vec![[(a.of(first)?, Some(first)), (b.of(second)?, Some(second))]]);
    }
    let mut pairs = Vec::new();
    for first in &a.images {
        if let Some(second) = b.images.iter().find(|second| second.platform == first.platform) {
            pairs.push([(first, tee_of(first)?), (second, tee_of(second)?)]);
        }
    }
    Ok(pairs)
}

fn side<'a>(arguments: &Arguments, index: usize, (image, tee): Part<'a>) -> Result<Side<'a>> {
    let vcpus = arguments.vcpus[index];
    check_limit(image, vcpus)?;
    let backend = arguments.backend[index].into();
    let cpu = arguments.cpu_model.as_ref().map(|models| models[index].clone());
    Ok(Side { image, profile: tee.map(|tee| Profile { tee, backend, cpu }), vcpus })
}

fn only(of: &ImageFile, other: &ImageFile) -> Vec<&'static str> {
    let missing = |image: &&Image| other.images.iter().all(|other| other.platform != image.platform);
    of.images.iter().filter(missing).map(|image| image.platform.name()).collect()
}

fn show(differences: &Differences) {
    println!("A {}\nB {}", differences.a, differences.b);
    for (side, platforms) in [("A", &differences.only_in_a), ("B", &differences.only_in_b)] {
        platforms.iter().for_each(|platform| println!("platform only in {side}: {platform}"));
    }
    for comparison in &differences.platforms {
        println!("\n{}", comparison.platform);
        match (&comparison.a, &comparison.b) {
            (Some(a), Some(b)) => println!("  digest A {a}\n  digest B {b}"),
            _ => println!("  no digest: nobody measures the launch of an ordinary machine"),
        }
        let verdict =
            if comparison.same_measurement() { "measures the same" } else { "measures differently" };
        println!("  {verdict}; {} differences (A -> B)", comparison.differences.len());
        for difference in &comparison.differences {
            println!("  - {}", difference.to_string().replace('\n', "\n  "));
        }
    }
}
