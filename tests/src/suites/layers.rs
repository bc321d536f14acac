//! Layers: what an archive becomes, by our conversion and by containerd's own unpacking.
//!
//! Every layer of the corpus and of the product's images, which hold Debian's packages, is unpacked by containerd's
//! overlayfs snapshotter, and converted, checked by `fsck.erofs` and `veritysetup`, and mounted by the kernel. The two
//! directories are compared file by file: each is a layer alone, as overlayfs is given it. Whatever differs is listed
//! here, with the reason.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use layer_corpus::archive::Archive;
use layer_corpus::{Odd, corpus};
use serde_json::json;

use crate::case::{Bed, Case};
use crate::file_tree::{self, Difference, File};
use crate::oci_archive::write_layers;
use crate::unpacked::{Image, LayerFile};

pub const CASES: &[Case] = &[
    Case { name: "layers::odd_archives_equal_overlayfs_unpack", run: odd_archives },
    Case { name: "layers::real_images_equal_overlayfs_unpack", run: real_images },
];

/// The product's images.
const IMAGES: [&str; 2] = ["busybox.oci.tar", "redis.oci.tar"];

/// What is expected of an archive of the corpus that is not the same in both forms.
enum Outcome {
    /// These properties of these files differ.
    Differs(&'static [(&'static str, &'static str)]),
    /// Ours refuses it, with these words; containerd does not.
    RefusedByUs(&'static str),
    /// containerd refuses it, with these words; ours does not.
    RefusedByContainerd(&'static str),
    /// Both refuse it: ours with these words.
    RefusedByBoth(&'static str),
}
use Outcome::{Differs, RefusedByBoth, RefusedByContainerd, RefusedByUs};

/// The archives that are no layer, or not the same one, and why.
const EXCEPTIONS: &[(&str, Outcome, &str)] = &[
    ("unknown-type", RefusedByBoth("type flag"), "Linux has no such files"),
    ("through-a-file", RefusedByBoth("another kind of file"), "a file has no entries"),
    ("through-a-cycle", RefusedByBoth("or a cycle"), "the path leads nowhere"),
    ("hard-link-to-nothing", RefusedByBoth("which is not in it"), "there is no such file"),
    ("hard-link-to-a-directory", RefusedByBoth("found one to a directory"), "Linux has no such links"),
    ("name-too-long", RefusedByBoth("a name of 1 to 255 bytes"), "Linux has no such names"),
    ("link-without-target", RefusedByBoth("a target of 1 to 4095 bytes"), "Linux has no such links"),
    ("whiteout-of-nothing", RefusedByBoth("expected a name behind .wh."), "nothing to be deleted"),
    ("above-the-root", RefusedByUs("expected a path inside the layer"), "containerd stays at the root"),
    ("sparse-of-old-gnu", RefusedByContainerd("unhandled tar header type"), "GNU tar writes them by default"),
    ("file-and-whiteout", RefusedByContainerd("file exists"), "a whiteout hides lower layers only"),
    ("directory-and-whiteout", RefusedByContainerd("file exists"), "a whiteout hides lower layers only"),
    (
        "whiteout-and-directory",
        Differs(&[("a", "xattr trusted.overlay.opaque")]),
        "a whiteout hides the lower layers' directory, whose files containerd merges into the new one",
    ),
    (
        "books-of-aufs",
        Differs(&[(".wh.aufs", "file"), (".wh.plnk", "file")]),
        "names that begin with .wh. are reserved: there is no lower file for containerd's whiteouts to hide",
    ),
];

fn odd_archives(_: &Bed) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (corpus, mut wrong) = (corpus(), Vec::new());
    for odd in &corpus {
        if let Err(error) = compare_odd(folder.path(), odd) {
            wrong.push(format!("{}: {error:#}", odd.name));
        }
    }
    println!("      {} archives, {} of them exceptions", corpus.len(), EXCEPTIONS.len());
    ensure!(wrong.is_empty(), "{}", wrong.join("\n      "));
    Ok(())
}

/// Compares the archive as the upper of two layers: containerd makes overlayfs's marks only where there is something
/// to be marked.
fn compare_odd(folder: &Path, odd: &Odd) -> Result<()> {
    let bottom = Archive::new().file("file-of-the-bottom-layer", b"x").finish();
    let name = format!("docker.io/library/odd:{}", odd.name);
    let archive = write_layers(folder, &name, &[bottom, odd.tar.clone()], &json!({}))?;
    let image = Image::open(Path::new(&archive))?;
    let since = now()?;
    let ours = convert(folder, &odd.tar)?;
    let theirs = image.unpacked(|layers| file_tree::read(layers.last().context("a layer")?))?;
    let expected = EXCEPTIONS.iter().find(|(name, ..)| *name == odd.name).map(|(_, outcome, _)| outcome);
    match (expected, ours, theirs) {
        (None, Ok(ours), Ok(theirs)) => expect_differences(&ours, &theirs, since, &[]),
        (Some(Differs(listed)), Ok(ours), Ok(theirs)) => expect_differences(&ours, &theirs, since, listed),
        (Some(RefusedByUs(words)), Err(said), Ok(_)) if said.contains(words) => Ok(()),
        (Some(RefusedByContainerd(words)), Ok(_), Err(said)) if said.contains(words) => Ok(()),
        (Some(RefusedByBoth(words)), Err(said), Err(_)) if said.contains(words) => Ok(()),
        (_, ours, theirs) => {
            let shown = |result: Result<Files, String>| result.map(|files| format!("{} files", files.len()));
            bail!("not as expected: ours {:?}, containerd's {:?}", shown(ours), shown(theirs))
        }
    }
}

type Files = BTreeMap<PathBuf, File>;

/// Converts, checks and mounts a layer, and reads what is in it.
fn convert(folder: &Path, blob: &[u8]) -> Result<Result<Files, String>> {
    let layer = match LayerFile::convert(blob, &folder.join("layer"))? {
        Ok(layer) => layer,
        Err(refusal) => return Ok(Err(refusal)),
    };
    layer.expect_sound()?;
    Ok(Ok(layer.mounted(file_tree::read)?))
}

fn real_images(bed: &Bed) -> Result<()> {
    let folder = tempfile::tempdir()?;
    for archive in IMAGES {
        let image = Image::open(&bed.product.join(archive))?;
        let since = now()?;
        let compared = image.unpacked(|layers| {
            for (blob, layer) in image.blobs.iter().zip(layers) {
                let ours = convert(folder.path(), blob)?.map_err(anyhow::Error::msg)?;
                let theirs = file_tree::read(layer)?;
                println!("      {archive}: a layer of {} files", ours.len());
                expect_differences(&ours, &theirs, since, &[])?;
            }
            Ok(())
        });
        compared.and_then(|taken| taken.map_err(anyhow::Error::msg)).with_context(|| archive.to_owned())?;
    }
    Ok(())
}

fn now() -> Result<i64> {
    Ok(i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?)
}

/// Fails unless the differences are those `listed`, by path and property, and those of every layer.
fn expect_differences(ours: &Files, theirs: &Files, since: i64, listed: &[(&str, &str)]) -> Result<()> {
    let mut listed: Vec<_> = listed.iter().map(|&(path, what)| (Path::new(path), what)).collect();
    let mut unexpected = Vec::new();
    for difference in file_tree::differences(ours, theirs) {
        let key = (difference.path.as_path(), difference.what.as_str());
        if let Some(place) = listed.iter().position(|listed| *listed == key) {
            listed.remove(place);
        } else if !is_of_every_layer(&difference, ours, since) {
            unexpected.push(difference);
        }
    }
    ensure!(unexpected.is_empty(), "{unexpected:#?}");
    ensure!(listed.is_empty(), "expected to differ, but the same: {listed:?}");
    Ok(())
}

/// Whether a difference is one that layers have on purpose.
fn is_of_every_layer(difference: &Difference, ours: &Files, since: i64) -> bool {
    // A layer's root is the same whatever its archive says: what a container sees of it is the merged root, whose
    // metadata come from elsewhere. Marks on it count.
    if difference.path.as_os_str().is_empty() {
        return ["mode", "owner", "mtime"].contains(&difference.what.as_str());
    }
    // What no entry describes, a missing parent or a whiteout, is of the time at which containerd unpacked it; ours
    // is a function of the archive.
    let Some(file) = ours.get(&difference.path) else { return false };
    let is = |what: &str, value: &str| file.get(what).is_some_and(|found| found == value);
    let is_implied = is("mode", "40755") && is("owner", "0:0");
    let is_whiteout = is("mode", "20000") && is("device", "0:0");
    let theirs = difference.theirs.as_deref().and_then(|time| time.split('.').next()?.parse::<i64>().ok());
    difference.what == "mtime"
        && difference.ours.as_deref() == Some("0.000000000")
        && (is_implied || is_whiteout)
        && theirs.is_some_and(|time| time >= since)
}
