//! Writable space: the container's own, what the containers of a pod share, and what the host gets to see of it.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::case::{Bed, Case};
use crate::command::run;
use crate::cri::{Container, Cri, Pod};
use crate::ctr::{BUSYBOX, import_busybox};
use crate::ledger::{Ledger, processes};

pub const CASES: &[Case] = &[
    Case { name: "volume::empty_directory_is_shared_in_the_pod", run: empty_directory },
    Case { name: "volume::empty_directory_in_memory", run: memory },
    Case { name: "scratch::host_sees_ciphertext_only", run: ciphertext },
    Case { name: "scratch::absent_unless_asked_for", run: absent },
];

/// Where a kubelet keeps the empty directories of its pods.
const PODS: &str = "/var/lib/kubelet/pods";
/// What is written in the guest and must not be found on the host.
const CANARY: &str = "the canary sings in the utility VM";
/// How often: some hundred blocks of it.
const CANARY_BYTES: u64 = 4 << 20;
/// Size of the scratch device that the pod asks for, in MiB.
const SCRATCH_MIB: u64 = 64;

/// A directory as a kubelet makes it for a pod's `emptyDir`.
struct EmptyDir {
    path: PathBuf,
    mounted: bool,
}

impl EmptyDir {
    fn make(pod: &str, name: &str) -> Result<Self> {
        let path = Path::new(PODS).join(pod).join("volumes/kubernetes.io~empty-dir").join(name);
        fs::create_dir_all(&path)?;
        Ok(Self { path, mounted: false })
    }

    /// One of `medium: Memory`, with a limit.
    fn in_memory(pod: &str, name: &str, bytes: u64) -> Result<Self> {
        let mut volume = Self::make(pod, name)?;
        let options = format!("size={bytes}");
        run("mount", &["-t", "tmpfs", "-o", &options, "tmpfs", &volume.path.display().to_string()])?
            .expect_status(0)?;
        volume.mounted = true;
        Ok(volume)
    }

    /// Fails if anything arrived on the host.
    fn expect_empty(&self) -> Result<()> {
        let found: Vec<_> = fs::read_dir(&self.path)?.flatten().map(|entry| entry.path()).collect();
        ensure!(found.is_empty(), "found on the host: {found:?}");
        Ok(())
    }
}

impl Drop for EmptyDir {
    fn drop(&mut self) {
        if self.mounted {
            let _ = run("umount", &[&self.path]);
        }
        // The pod's own directory, which is all that a case makes below.
        let pod = self.path.ancestors().nth(3).filter(|pod| pod.starts_with(PODS));
        let _ = pod.map(fs::remove_dir_all);
    }
}

/// A pod with these annotations, for as long as `check` takes; then nothing of it is left.
fn in_pod(
    bed: &Bed,
    name: &str,
    annotations: &[(&str, &str)],
    check: impl FnOnce(&mut Cri, &Pod) -> Result<()>,
) -> Result<()> {
    import_busybox(bed)?;
    let (logs, mut cri) = (tempfile::tempdir()?, Cri::connect()?);
    let before = Ledger::take()?;
    let pod = cri.run_annotated_pod(name, logs.path(), annotations)?;
    let outcome = check(&mut cri, &pod);
    cri.remove_pod(&pod)?;
    outcome?;
    before.expect_nothing_new()
}

fn mounting<'a>(name: &'a str, mounts: &'a [(&'a Path, &'a str)]) -> Container<'a> {
    Container { name, image: BUSYBOX, command: &["sleep", "1000"], mounts }
}

/// What one container writes another one reads, the host sees nothing of it, and a container that comes later
/// finds it too.
fn empty_directory(bed: &Bed) -> Result<()> {
    let volume = EmptyDir::make("shared-volume-uid", "cache")?;
    in_pod(bed, "shared-volume", &[], |cri, pod| {
        let first = cri.run_container(pod, &mounting("first", &[(&volume.path, "/out")]))?;
        cri.succeed(&first, &["sh", "-c", "echo from-the-first > /out/file"])?;
        cri.stop_container(&first)?;
        cri.remove_container(&first)?;
        let second = cri.run_container(pod, &mounting("second", &[(&volume.path, "/in")]))?;
        let read = cri.succeed(&second, &["cat", "/in/file"])?;
        ensure!(read == "from-the-first\n", "found {read:?}");
        let mode = cri.succeed(&second, &["stat", "-c", "%a", "/in"])?;
        ensure!(mode == "777\n", "anybody may write to it: expected mode 777, found {mode:?}");
        volume.expect_empty()
    })
}

fn memory(bed: &Bed) -> Result<()> {
    let volume = EmptyDir::in_memory("memory-volume-uid", "fast", 1 << 20)?;
    in_pod(bed, "memory-volume", &[], |cri, pod| {
        let container = cri.run_container(pod, &mounting("main", &[(&volume.path, "/fast")]))?;
        let mounts = cri.succeed(&container, &["cat", "/proc/mounts"])?;
        let mount = mounts.lines().find(|line| line.split(' ').nth(1) == Some("/fast"));
        ensure!(mount.is_some_and(|line| line.starts_with("tmpfs ")), "{mounts}");
        cri.succeed(&container, &["dd", "if=/dev/zero", "of=/fast/fits", "bs=64k", "count=8"])?;
        let full =
            cri.exec_sync(&container, &["dd", "if=/dev/zero", "of=/fast/more", "bs=64k", "count=16"])?;
        let said = String::from_utf8_lossy(&full.stderr).into_owned();
        ensure!(full.exit_code != 0 && said.contains("No space left"), "beyond its size: {full:?}");
        volume.expect_empty()
    })
}

/// Files without a name that the newest machine has open: the backing of its scratch device.
fn scratch_files() -> Result<Vec<PathBuf>> {
    let machine = processes("uvm-vmm")?.into_iter().max().context("expected a machine, found none")?;
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{machine}/fd"))?.flatten() {
        let target = fs::read_link(entry.path()).unwrap_or_default().display().to_string();
        if target.ends_with(" (deleted)") && !target.starts_with("/memfd:") {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// A canary in the container's own root and in a volume: both are on the device, neither is to be read there.
fn ciphertext(bed: &Bed) -> Result<()> {
    let volume = EmptyDir::make("scratch-uid", "data")?;
    let size = SCRATCH_MIB.to_string();
    in_pod(bed, "scratch", &[("uvm.scratch_mib", &size)], |cri, pod| {
        let container = cri.run_container(pod, &mounting("main", &[(&volume.path, "/data")]))?;
        let files = scratch_files()?;
        let [path] = &files[..] else { anyhow::bail!("expected one scratch file, found {files:?}") };
        let fresh = fs::metadata(path)?;
        ensure!(fresh.len() == SCRATCH_MIB << 20, "expected {SCRATCH_MIB} MiB, found {} bytes", fresh.len());

        for place in ["/root-canary", "/data/volume-canary"] {
            let script = format!("yes '{CANARY}' | head -c {CANARY_BYTES} > {place}; sync; wc -c < {place}");
            let written = cri.succeed(&container, &["sh", "-c", &script])?;
            ensure!(written.trim() == CANARY_BYTES.to_string(), "{place}: wrote {written:?}");
        }
        let space = cri.succeed(&container, &["df", "-m", "/data"])?;
        let blocks = fs::metadata(path)?.blocks();
        let grown = (blocks - fresh.blocks()) * 512;
        ensure!(
            grown >= 2 * CANARY_BYTES,
            "expected the canaries on the device, found {grown} bytes: {space}"
        );
        ensure!(blocks * 512 < SCRATCH_MIB << 20, "expected a sparse file, found {blocks} blocks");
        expect_ciphertext(path)
    })
}

/// The host's file has much in it, and the canary is nothing of it.
fn expect_ciphertext(path: &Path) -> Result<()> {
    let mut bytes = Vec::new();
    File::open(path)?.read_to_end(&mut bytes)?;
    // Long enough not to be there by chance, short enough to be found across the lines of what was written.
    let needle = &CANARY.as_bytes()[..12];
    let found = bytes.windows(needle.len()).position(|window| window == needle);
    ensure!(found.is_none(), "the canary is in the host's file at {found:?}");
    let written = bytes.iter().filter(|byte| **byte != 0).count();
    ensure!(
        u64::try_from(written)? > 2 * CANARY_BYTES * 9 / 10,
        "expected ciphertext, found {written} bytes"
    );
    Ok(())
}

/// Without a size, what a container writes stays in the guest's memory.
fn absent(bed: &Bed) -> Result<()> {
    in_pod(bed, "no-scratch", &[], |cri, pod| {
        let container = cri.run_container(pod, &mounting("main", &[]))?;
        cri.succeed(&container, &["sh", "-c", "echo x > /file; sync; cat /file"])?;
        let files = scratch_files()?;
        ensure!(files.is_empty(), "expected no file of the host, found {files:?}");
        Ok(())
    })
}
