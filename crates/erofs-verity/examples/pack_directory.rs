//! Packs a directory into a layer file: `pack_directory DIRECTORY FILE`. Prints the root digest, sizes and speed.

use std::fs::File;
use std::path::Path;
use std::time::Instant;

use erofs_verity::layer::Settings;
use erofs_verity::source::dir::{self, Fidelity};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [directory, file] = &arguments[..] else {
        return Err("expected two arguments: DIRECTORY FILE".into());
    };
    let start = Instant::now();
    let out = File::options().read(true).write(true).create(true).truncate(true).open(file)?;
    let layer = dir::pack(Path::new(directory), Fidelity::Portable, &out, &Settings::default())?;
    let total = start.elapsed();
    let bytes_per_second = u128::from(layer.length) * 1_000_000 / total.as_micros().max(1);
    println!("root digest {}", layer.root);
    println!("{} data blocks, {} bytes", layer.data_blocks, layer.length);
    println!("written in {total:?}, {} MB/s", bytes_per_second / 1_000_000);
    Ok(())
}
