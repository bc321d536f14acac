//! What computing a launch digest costs, beside what nobody can do without: reading the file, and one SHA-384 pass over
//! the measured bytes.
//!
//! `cargo bench -p igvm-builder` measures made-up images of a real one's size; `-- FILE…` measures images with a
//! SEV-SNP part.

#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

#[path = "../tests/inputs/mod.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod inputs;

use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use igvm_builder::{Layout, Recipe, build};
use launch::image::{Image, PageKind, Platform};
use launch::layout::MAX_VCPUS;
use launch::plan::Tee;
use launch::snp::{self, Backend, vmsa};
use sha2::{Digest, Sha384};

const ROUNDS: usize = 101;
const KERNEL_BYTES: usize = 5 << 20;
const STUB_BYTES: usize = 64 << 10;
/// What a measurement may cost, in units of what it cannot do without.
const GOAL: f64 = 1.5;

fn main() {
    let files: Vec<PathBuf> =
        std::env::args().skip(1).filter(|word| word != "--bench").map(Into::into).collect();
    let folder = tempfile::tempdir().unwrap();
    let files = if files.is_empty() { made_up(folder.path()) } else { files };
    let mut within = true;
    for file in files {
        within &= compare(&file);
    }
    assert!(within, "expected every ratio to be at most {GOAL}");
}

/// An image of each layout, with a kernel that no hash finds shorter than it is.
fn made_up(folder: &Path) -> Vec<PathBuf> {
    let mut kernel = inputs::kernel(KERNEL_BYTES);
    let mut state = 1u64;
    for word in kernel[0x1000..].as_chunks_mut::<8>().0 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *word = state.to_le_bytes();
    }
    let stub = inputs::stub(&vec![0xF4; STUB_BYTES]);
    let image = |name: &str, layout| {
        let recipe = Recipe { layout, ..inputs::recipe(&[Tee::Snp]) };
        let path = folder.join(name);
        fs::write(&path, build(&kernel, &stub, &recipe).unwrap().file).unwrap();
        path
    };
    vec![image("window.igvm", Layout::Window), image("measured.igvm", Layout::Measured)]
}

fn compare(path: &Path) -> bool {
    let image = open(path);
    let measured: Vec<u8> = image
        .pages
        .iter()
        .filter(|page| page.kind == PageKind::Measured)
        .flat_map(|page| if page.data.is_empty() { vec![0; 4096] } else { page.data.to_vec() })
        .collect();
    drop(image);
    let measure = |vcpus| black_box(snp::digests(&open(path), Backend::Kvm, vcpus, vmsa::RESET_RDX));
    let [mut floor, mut one, mut all] = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        floor.push(time(|| {
            black_box(fs::read(path).unwrap());
            black_box(Sha384::digest(black_box(&measured)));
        }));
        one.push(time(|| drop(measure(1))));
        all.push(time(|| drop(measure(MAX_VCPUS))));
    }
    let [floor, one, all] = [floor, one, all].map(median);
    let ratio = one.as_secs_f64() / floor.as_secs_f64();
    println!("{}: {} measured bytes", path.display(), measured.len());
    println!("  reading and one SHA-384 pass  {floor:>10.1?}");
    println!("  measure, 1 virtual CPU        {one:>10.1?}  {ratio:.2} times (goal {GOAL})");
    println!("  measure, 1 to {MAX_VCPUS}               {all:>10.1?}");
    ratio <= GOAL
}

fn open(path: &Path) -> Image {
    Image::decode_bytes(fs::read(path).unwrap().into(), Platform::Snp).unwrap()
}

fn time(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
