//! Conversion of a layer beside `mkfs.erofs` of its unpacked files and `veritysetup format` of that image.
//!
//! `cargo bench -p oci-layer -- [--mib N] [--rounds N] [--directory PATH]`
//!
//! All read from the page cache and write to the same file system, by turns; printed are medians of wall clock
//! times, each of whole processes, and the least processor time, which other work on the machine disturbs less.
//! Ratios are of wall clock times to the two tools alone. They start from files, and a pull from
//! an archive whose digest it has to compute: the line below them adds `tar -x` of it, the lines of the
//! conversion have all of that in them.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use oci_layer::{Limits, convert};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["convert", blob, out] => child(Path::new(blob), Path::new(out)),
        options => Plan::parse(options)?.run(),
    }
}

/// Converts and says what memory that took at most.
fn child(blob: &Path, out: &Path) -> Result<()> {
    let out = File::options().read(true).write(true).create_new(true).open(out)?;
    let converted = convert(File::open(blob)?, &out, &Limits::default())?;
    let status = fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    println!("{} {}", peak.trim().trim_end_matches(" kB"), converted.layer.root);
    Ok(())
}

struct Plan {
    mib: u64,
    rounds: usize,
    directory: PathBuf,
}

/// Wall clock times of one way to do it.
struct Runs {
    name: &'static str,
    times: Vec<Duration>,
    /// Least processor time of all threads of a run, in seconds, with what the kernel does for them.
    processor: f64,
    /// Highest of the processes' peaks of memory, in KiB.
    peak: u64,
}

impl Runs {
    fn new(name: &'static str) -> Self {
        Self { name, times: Vec::new(), processor: f64::INFINITY, peak: 0 }
    }

    fn add(&mut self, cost: Cost) {
        self.times.push(cost.wall);
        self.processor = self.processor.min(cost.processor);
    }

    fn median(&self) -> f64 {
        let mut times = self.times.clone();
        times.sort();
        times[times.len() / 2].as_secs_f64()
    }
}

/// What child processes took.
#[derive(Clone, Copy)]
struct Cost {
    wall: Duration,
    /// In seconds.
    processor: f64,
}

impl Cost {
    /// Measures what `children` starts and waits for.
    fn of<T>(children: impl FnOnce() -> Result<T>) -> Result<(Self, T)> {
        let (start, before) = (Instant::now(), childrens_time()?);
        let result = children()?;
        let (wall, after) = (start.elapsed(), childrens_time()?);
        Ok((Self { wall, processor: after - before }, result))
    }
}

/// Seconds of processor time of all children that have ended (proc(5): fields 16 and 17 of `stat`).
fn childrens_time() -> Result<f64> {
    /// On every Linux.
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = fs::read_to_string("/proc/self/stat")?;
    // Field 2, the program's name, may have spaces in it.
    let (_, fields) = stat.rsplit_once(") ").context("/proc/self/stat: no name")?;
    let ticks: Vec<f64> = fields.split(' ').skip(13).take(2).map(str::parse).collect::<Result<_, _>>()?;
    ensure!(ticks.len() == 2, "/proc/self/stat: expected 17 fields, found {stat:?}");
    Ok(ticks.iter().sum::<f64>() / TICKS_PER_SECOND)
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
        ensure!(plan.rounds > 0, "expected at least one round");
        Ok(plan)
    }

    fn run(&self) -> Result<()> {
        let place = tempfile::tempdir_in(&self.directory)?;
        let place = place.path();
        let files = make_files(&place.join("files"), self.mib << 20)?;
        let archive = place.join("layer.tar");
        run(Command::new("tar")
            .args(["--sort=name", "-cf"])
            .arg(&archive)
            .arg("-C")
            .arg(place.join("files"))
            .arg("."))?;
        let gzip = place.join("layer.tar.gz");
        compress(&archive, &gzip, Command::new("gzip").arg("-6"))?;
        let zstd = place.join("layer.tar.zst");
        compress(&archive, &zstd, Command::new("zstd").args(["-3", "-q"]))?;
        let length = fs::metadata(&archive)?.len();
        println!("{files} files, {} MB of archive", length / 1_000_000);

        let mut reference = Runs::new("mkfs.erofs + veritysetup format");
        let mut unpacking = Runs::new("tar -x + these");
        let mut conversions =
            [("convert, plain", &archive), ("convert, gzip", &gzip), ("convert, zstd", &zstd)]
                .map(|(name, blob)| (Runs::new(name), blob));
        let mut root = None;
        for _ in 0..self.rounds {
            let packed = time_reference(place)?;
            let unpacked = time_unpacking(place, &archive)?;
            reference.add(packed);
            unpacking.add(Cost {
                wall: packed.wall + unpacked.wall,
                processor: packed.processor + unpacked.processor,
            });
            for (runs, blob) in &mut conversions {
                let found = time_conversion(place, blob, runs)?;
                let expected = root.get_or_insert_with(|| found.clone());
                ensure!(*expected == found, "{}: root hash {found}, expected {expected}", runs.name);
            }
        }
        let lines: Vec<&Runs> =
            [&unpacking].into_iter().chain(conversions.iter().map(|(runs, _)| runs)).collect();
        println!("{}", report(&reference, &lines, length)?);
        Ok(())
    }
}

fn report(reference: &Runs, others: &[&Runs], length: u64) -> Result<String> {
    let mut text = String::new();
    let base = reference.median();
    writeln!(
        text,
        "{:34}{:>8}{:>12}{:>9}{:>9}{:>12}",
        "", "seconds", "processor", "MB/s", "ratio", "peak MiB"
    )?;
    for runs in [reference].iter().chain(others) {
        let (seconds, processor) = (runs.median(), runs.processor);
        #[allow(clippy::cast_precision_loss, reason = "a figure for people")]
        let rate = length as f64 / 1e6 / seconds;
        let peak = if runs.peak == 0 { String::new() } else { (runs.peak / 1024).to_string() };
        let ratio = base / seconds;
        writeln!(text, "{:34}{seconds:>8.2}{processor:>12.2}{rate:>9.0}{ratio:>9.2}{peak:>12}", runs.name)?;
    }
    Ok(text)
}

fn time_reference(place: &Path) -> Result<Cost> {
    let (image, hashes) = (place.join("image"), place.join("hashes"));
    let (cost, ()) = Cost::of(|| {
        run(Command::new("mkfs.erofs").arg(&image).arg(place.join("files")))?;
        run(Command::new("veritysetup").arg("format").arg(&image).arg(&hashes))
    })?;
    fs::remove_file(image)?;
    fs::remove_file(hashes)?;
    Ok(cost)
}

fn time_unpacking(place: &Path, archive: &Path) -> Result<Cost> {
    let unpacked = place.join("unpacked");
    fs::create_dir(&unpacked)?;
    let (cost, ()) = Cost::of(|| run(Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(&unpacked)))?;
    fs::remove_dir_all(unpacked)?;
    Ok(cost)
}

fn time_conversion(place: &Path, blob: &Path, runs: &mut Runs) -> Result<String> {
    let out = place.join("layer");
    let mut convert = Command::new(std::env::current_exe()?);
    convert.arg("convert").arg(blob).arg(&out);
    let (cost, output) = Cost::of(|| Ok(convert.output()?))?;
    runs.add(cost);
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::remove_file(out)?;
    let text = String::from_utf8(output.stdout)?;
    let (peak, root) = text.trim().split_once(' ').context("no peak of memory")?;
    runs.peak = runs.peak.max(peak.parse()?);
    Ok(root.to_owned())
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn compress(from: &Path, to: &Path, command: &mut Command) -> Result<()> {
    let status =
        command.stdin(File::open(from)?).stdout(File::create(to)?).stderr(Stdio::inherit()).status()?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

/// How many of a thousand files have sizes of so many bits, in `/usr` of a Debian system. Most files are small;
/// most bytes are in files of megabytes.
const SIZES: [(u32, u64); 22] = [
    (0, 8),
    (6, 8),
    (7, 8),
    (8, 36),
    (9, 59),
    (10, 153),
    (11, 223),
    (12, 163),
    (13, 108),
    (14, 90),
    (15, 64),
    (16, 37),
    (17, 23),
    (18, 10),
    (19, 5),
    (20, 3),
    (21, 1),
    (22, 2),
    (23, 1),
    (24, 1),
    (25, 1),
    (26, 1),
];

/// Writes files of `total` bytes in all, whose content compresses to about a third.
fn make_files(root: &Path, total: u64) -> io::Result<usize> {
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let sum: u64 = SIZES.iter().map(|(_, weight)| weight).sum();
    let mut written = 0;
    let mut count = 0;
    while written < total {
        let directory = root.join(format!("{:02}/{:02}", count / 2500, count / 50 % 50));
        fs::create_dir_all(&directory)?;
        let mut place = random.below(sum);
        let mut bits = 0;
        for (size, weight) in SIZES {
            bits = size;
            if place < weight {
                break;
            }
            place -= weight;
        }
        let size = (1u64 << bits >> 1) + random.below(1 << bits >> 1 | 1);
        let size = size.min(total - written);
        let mut file = io::BufWriter::new(File::create(directory.join(format!("file-{count}")))?);
        let mut left = usize::try_from(size).unwrap_or(usize::MAX);
        while left > 0 {
            let word = random.word();
            let piece = &word.as_bytes()[..word.len().min(left)];
            file.write_all(piece)?;
            left -= piece.len();
        }
        written += size;
        count += 1;
    }
    Ok(count)
}

/// Xorshift: the same files every time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn word(&mut self) -> String {
        format!("{:x} symbol_{} ", self.next(), self.below(4000))
    }
}
