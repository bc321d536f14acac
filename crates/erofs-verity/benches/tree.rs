//! The hash tree of one file, beside `veritysetup format` of the same file.
//!
//! `cargo bench -p erofs-verity --bench tree -- [--mib N] [--rounds N] [--directory PATH]`
//!
//! The first lines hash memory; all others read the file, which is in the page cache, and what they write stays
//! there. Printed are the shortest wall clock time and the least processor time
//! of all rounds, the latter over all threads and with what the kernel does for them: bytes of data by that
//! time are what one core does, however busy the machine is with other things.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::hint::black_box;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use erofs_verity::BLOCK_SIZE;
use erofs_verity::layer::{LayerWriter, Settings, verify};
use erofs_verity::tree::{Metadata, Tree};
use erofs_verity::verity::{DIGEST_SIZE, SALT, hash_blocks};
use sha2::{Digest as _, Sha256};

/// Bytes that are read and hashed at a time, as in the layer writer.
const PIECE: usize = 512 << 10;
/// Bytes of the file that are hashed from memory: more than the caches hold.
const MEMORY: usize = 64 << 20;
/// Unit of processor time in `/proc`: a hundredth of a second, on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    Plan::parse(&arguments.iter().map(String::as_str).collect::<Vec<_>>())?.run()
}

struct Plan {
    mib: usize,
    rounds: usize,
    directory: PathBuf,
}

/// One way to hash the file, and the best of its rounds in seconds.
struct Runs<'a> {
    name: &'static str,
    run: Box<dyn Fn() -> Result<()> + 'a>,
    wall: f64,
    processor: f64,
}

impl<'a> Runs<'a> {
    fn new(name: &'static str, run: impl Fn() -> Result<()> + 'a) -> Self {
        Self { name, run: Box::new(run), wall: f64::INFINITY, processor: f64::INFINITY }
    }

    fn round(&mut self) -> Result<()> {
        let (start, before) = (Instant::now(), processor_time()?);
        (self.run)()?;
        self.wall = self.wall.min(start.elapsed().as_secs_f64());
        self.processor = self.processor.min(processor_time()? - before);
        Ok(())
    }
}

impl Plan {
    fn parse(options: &[&str]) -> Result<Self> {
        let mut plan = Self { mib: 1024, rounds: 5, directory: std::env::temp_dir() };
        for option in options.chunks(2) {
            match option {
                ["--mib", number] => plan.mib = number.parse()?,
                ["--rounds", number] => plan.rounds = number.parse()?,
                ["--directory", path] => plan.directory = path.into(),
                other => bail!("expected --mib N, --rounds N or --directory PATH, found {other:?}"),
            }
        }
        ensure!(plan.mib > 0 && plan.rounds > 0, "expected at least one MiB and one round");
        Ok(plan)
    }

    fn run(&self) -> Result<()> {
        let place = tempfile::tempdir_in(&self.directory)?;
        let (data, layer) = (place.path().join("data"), place.path().join("layer"));
        let bytes = self.mib << 20;
        make_file(&data, bytes)?;
        let mut memory = vec![0; bytes.min(MEMORY)];
        File::open(&data)?.read_exact_at(&mut memory, 0)?;
        let written = write_layer(&data, &layer, &Settings::default())?;
        let one_thread = Settings { threads: NonZeroUsize::MIN, ..Settings::default() };
        let again = place.path().join("again");
        let hashing = |name, piece, hash: fn(&[u8], &mut [u8])| {
            let memory = &memory;
            Runs::new(name, move || {
                hash_memory(memory, bytes, piece, hash);
                Ok(())
            })
        };
        let mut runs = [
            hashing("sha2, block by block", PIECE, hash_each),
            // What processors without AVX-512 do.
            hashing("hash_blocks of two at a time", 2 * BLOCK_SIZE, hash_blocks),
            hashing("hash_blocks", PIECE, hash_blocks),
            Runs::new("layer::verify", || {
                Ok(verify(&File::open(&layer)?, written.data_blocks, written.root)?)
            }),
            Runs::new("LayerWriter, one thread", || write_layer(&data, &again, &one_thread).map(drop)),
            Runs::new("LayerWriter, all processors", || {
                write_layer(&data, &again, &Settings::default()).map(drop)
            }),
            Runs::new("veritysetup format", || format(&data, &place.path().join("hashes"))),
        ];
        for _ in 0..self.rounds {
            runs.iter_mut().try_for_each(Runs::round)?;
        }
        println!("{}", report(&runs, bytes)?);
        Ok(())
    }
}

fn report(runs: &[Runs<'_>], bytes: usize) -> Result<String> {
    let mut text = String::new();
    writeln!(text, "{bytes} bytes{:>30}{:>18}{:>14}", "seconds", "processor time", "GB/s a core")?;
    for Runs { name, wall, processor, .. } in runs {
        #[allow(clippy::cast_precision_loss, reason = "a figure for people")]
        let rate = bytes as f64 / 1e9 / processor;
        writeln!(text, "{name:34}{wall:>12.2}{processor:>18.2}{rate:>14.2}")?;
    }
    Ok(text)
}

/// Seconds of processor time that this process and those that it has waited for have taken (proc(5)).
fn processor_time() -> Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // The program's name may have spaces in it; user time is the 14th field, the children's system time the 17th.
    let (_, fields) = stat.rsplit_once(") ").context("/proc/self/stat: no name")?;
    let ticks: Vec<f64> = fields.split(' ').skip(11).take(4).map(str::parse).collect::<Result<_, _>>()?;
    ensure!(ticks.len() == 4, "/proc/self/stat: expected 17 fields, found {stat:?}");
    Ok(ticks.iter().sum::<f64>() / TICKS_PER_SECOND)
}

/// Hashes `bytes` bytes: `memory` again and again.
fn hash_memory(memory: &[u8], bytes: usize, piece: usize, hash: impl Fn(&[u8], &mut [u8])) {
    let mut digests = [0; PIECE / BLOCK_SIZE * DIGEST_SIZE];
    let mut left = bytes;
    for piece in memory.chunks(piece).cycle() {
        hash(piece, &mut digests);
        black_box(&digests);
        left = left.saturating_sub(piece.len());
        if left == 0 {
            break;
        }
    }
}

fn hash_each(data: &[u8], digests: &mut [u8]) {
    let (blocks, _) = data.as_chunks::<BLOCK_SIZE>();
    let (digests, _) = digests.as_chunks_mut::<DIGEST_SIZE>();
    for (block, digest) in blocks.iter().zip(digests) {
        *digest = Sha256::new().chain_update(SALT).chain_update(block).finalize().into();
    }
}

/// Writes a layer with one content: the file's.
fn write_layer(data: &Path, layer: &Path, settings: &Settings) -> Result<erofs_verity::layer::Layer> {
    let data = File::open(data)?;
    let out = File::options().read(true).write(true).create(true).truncate(true).open(layer)?;
    let mut writer = LayerWriter::new(&out, settings)?;
    let mut piece = vec![0; PIECE];
    writer.begin()?;
    for position in (0..data.metadata()?.len()).step_by(PIECE) {
        data.read_exact_at(&mut piece, position)?;
        writer.write(&piece)?;
    }
    writer.end()?;
    Ok(writer.finish(Tree::new(Metadata::default())?)?)
}

fn format(data: &Path, hashes: &Path) -> Result<()> {
    let output = Command::new("veritysetup").arg("format").arg(data).arg(hashes).output()?;
    ensure!(output.status.success(), "veritysetup: {}", String::from_utf8_lossy(&output.stderr));
    Ok(fs::remove_file(hashes)?)
}

/// A file whose blocks all differ.
fn make_file(path: &Path, bytes: usize) -> Result<()> {
    let file = File::create(path)?;
    let mut piece: Vec<u8> = (0..PIECE).map(|n| (n * 31 % 251).to_le_bytes()[0]).collect();
    for position in (0..bytes as u64).step_by(PIECE) {
        for block in piece.chunks_mut(BLOCK_SIZE) {
            block[..8].copy_from_slice(&position.to_le_bytes());
        }
        file.write_all_at(&piece, position)?;
    }
    Ok(())
}
