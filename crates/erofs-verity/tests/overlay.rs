//! Layers as the kernel's own overlayfs leaves them: whiteouts, opaque directories, copied-up directories.
#![allow(clippy::unwrap_used, reason = "what fails in a helper has failed the test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use erofs_verity::layer::Settings;
use erofs_verity::source::dir::{self, Fidelity};
use erofs_verity::tree::{DeviceNumber, Kind, Tree};

mod kept;
use kept::Kept;

const WHITEOUT: DeviceNumber = DeviceNumber { major: 0, minor: 0 };

/// A tmpfs with an overlay in it, unmounted when the value goes.
struct Overlay(tempfile::TempDir);

impl Overlay {
    fn new() -> Option<Self> {
        let overlay = Self(tempfile::tempdir().unwrap());
        let place = overlay.0.path();
        mount(&["-t", "tmpfs", "tmpfs"], place)?;
        for name in ["lower", "upper", "work", "merged"] {
            fs::create_dir(place.join(name)).unwrap();
        }
        for name in ["gone", "gone-too", "dir/inner", "replaced/old", "copied/file"] {
            let path = overlay.path("lower").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        }
        let [lower, upper, work] =
            ["lower", "upper", "work"].map(|name| overlay.path(name).display().to_string());
        let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
        mount(&["-t", "overlay", "-o", &options, "overlay"], &overlay.path("merged"))?;
        Some(overlay)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        for path in [self.path("merged"), self.0.path().to_owned()] {
            let _ = Command::new("umount").arg(path).output();
        }
    }
}

fn mount(arguments: &[&str], place: &Path) -> Option<()> {
    let output = Command::new("mount").args(arguments).arg(place).output().unwrap();
    if !output.status.success() {
        eprintln!("skipped: cannot mount here: {}", String::from_utf8_lossy(&output.stderr).trim());
        return None;
    }
    Some(())
}

fn change(merged: &Path) {
    fs::remove_file(merged.join("gone")).unwrap();
    fs::remove_file(merged.join("gone-too")).unwrap();
    fs::remove_dir_all(merged.join("dir")).unwrap();
    fs::remove_dir_all(merged.join("replaced")).unwrap();
    fs::create_dir(merged.join("replaced")).unwrap();
    fs::write(merged.join("replaced/new"), "new").unwrap();
    fs::write(merged.join("copied/other"), "other").unwrap();
}

fn xattr(tree: &Tree, path: &str, name: &str) -> Option<Vec<u8>> {
    let mut metadata = tree.metadata(tree.lookup(path.as_bytes()).unwrap());
    metadata.xattrs.remove(name.as_bytes())
}

#[test]
fn what_overlayfs_means_is_kept_and_what_is_the_hosts_is_not() {
    let Some(overlay) = Overlay::new() else { return };
    change(&overlay.path("merged"));
    let upper = overlay.path("upper");
    let exact = dir::read(&upper, Fidelity::Exact, &mut Kept::default()).unwrap();
    let portable = dir::read(&upper, Fidelity::Portable, &mut Kept::default()).unwrap();
    for tree in [&exact, &portable] {
        for name in ["gone", "gone-too", "dir"] {
            let kind = tree.kind(tree.lookup(name.as_bytes()).unwrap());
            assert_eq!(kind, Some(Kind::CharDevice(WHITEOUT)), "{name}");
        }
        assert_eq!(xattr(tree, "replaced", "trusted.overlay.opaque"), Some(b"y".to_vec()));
    }
    assert!(xattr(&exact, "copied", "trusted.overlay.origin").is_some());
    assert_eq!(xattr(&portable, "copied", "trusted.overlay.origin"), None);
    assert_eq!(xattr(&portable, "", "trusted.overlay.impure"), None);
}

#[test]
fn the_same_changes_on_another_overlay_give_the_same_root_digest() {
    let roots = [(); 2].map(|()| {
        let overlay = Overlay::new()?;
        change(&overlay.path("merged"));
        let upper = overlay.path("upper");
        // An image fixes the times of what it holds; here the clock set them.
        let times = ["replaced/new", "replaced", "copied/other", "copied", "."].map(|name| upper.join(name));
        assert!(Command::new("touch").args(["-d", "@1700000000"]).args(times).status().unwrap().success());
        let out = tempfile::tempfile().unwrap();
        Some(dir::pack(&upper, Fidelity::Portable, &out, &Settings::default()).unwrap().root)
    });
    if let [Some(one), Some(other)] = roots {
        assert_eq!(one, other);
    }
}
