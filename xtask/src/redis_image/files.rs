//! The files of a layer, in memory and sorted, and what every image needs beside its packages.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use anyhow::{Context, Result, bail, ensure};
use object::LittleEndian;
use object::elf::{DT_NEEDED, FileHeader64};
use object::read::elf::FileHeader;
use tar::EntryType;

/// Parts of packages that a container has no use for.
const LEFT_OUT: [&str; 8] = [
    "etc/default/",
    "etc/init.d/",
    "etc/logrotate.d/",
    "lib/systemd/",
    "usr/lib/systemd/",
    "usr/lib/x86_64-linux-gnu/gconv/",
    "usr/share/",
    "etc/apparmor.d/",
];

/// Names that busybox goes by in the images: those that tests and people type.
const BUSYBOX_NAMES: &str = "[ ash awk base64 basename cat chmod chown cp cut date dd df dirname dmesg du echo env \
    expr false find free grep gunzip gzip head hostname id ifconfig ip kill killall ln ls md5sum mkdir mknod mktemp \
    more mount mv nc nproc od passwd ping printenv printf ps pwd readlink realpath rm rmdir route sed seq sh \
    sha256sum sleep sort stat stty sync tail tar tee test time timeout top touch tr true tty umount uname uniq \
    uptime vi wc wget which whoami xargs yes";

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
    redis:x:101:101:redis:/var/lib/redis:/bin/false\n\
    nobody:x:65534:65534:nobody:/:/bin/false\n";
const GROUP: &str = "root:x:0:\nredis:x:101:\nnogroup:x:65534:\n";

/// A file of a layer. All belong to root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    Directory { mode: u32 },
    Regular { mode: u32, content: Vec<u8> },
    Symlink { target: String },
}

/// Files by path, without a leading slash; parents sort before their children.
#[derive(Debug, Default)]
pub(super) struct Files(pub(super) BTreeMap<String, Entry>);

impl Files {
    /// Adds the entries of a package's tar archive.
    pub(super) fn add_tar(&mut self, tar: &[u8]) -> Result<()> {
        for entry in tar::Archive::new(tar).entries()? {
            let mut entry = entry?;
            let path = String::from_utf8(entry.path_bytes().into_owned()).context("path in a package")?;
            let path = path.trim_start_matches("./").trim_end_matches('/').to_owned();
            let directory = format!("{path}/");
            if path.is_empty() || LEFT_OUT.iter().any(|part| directory.starts_with(part)) {
                continue;
            }
            let mode = entry.header().mode()? & 0o7777;
            let added = match entry.header().entry_type() {
                EntryType::Directory => Entry::Directory { mode },
                EntryType::Regular => {
                    let mut content = Vec::new();
                    entry.read_to_end(&mut content)?;
                    Entry::Regular { mode, content }
                }
                EntryType::Symlink => {
                    let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                    Entry::Symlink { target: String::from_utf8(target).context("link in a package")? }
                }
                other => {
                    bail!("{path}: expected a directory, regular file or symbolic link, found {other:?}")
                }
            };
            self.add(path, added)?;
        }
        Ok(())
    }

    /// Adds accounts, mount points and busybox's names.
    pub(super) fn add_base(&mut self) -> Result<()> {
        for (path, mode) in [
            ("bin", 0o755),
            ("dev", 0o755),
            ("etc", 0o755),
            ("proc", 0o755),
            ("root", 0o700),
            ("run", 0o755),
            ("sys", 0o755),
            ("tmp", 0o1777),
        ] {
            self.add(path.to_owned(), Entry::Directory { mode })?;
        }
        for (path, content) in [("etc/passwd", PASSWD), ("etc/group", GROUP)] {
            self.add(path.to_owned(), Entry::Regular { mode: 0o644, content: content.into() })?;
        }
        ensure!(self.0.contains_key("bin/busybox"), "expected bin/busybox in the base layer's packages");
        for name in BUSYBOX_NAMES.split_whitespace() {
            self.add(format!("bin/{name}"), Entry::Symlink { target: "busybox".to_owned() })?;
        }
        Ok(())
    }

    fn add(&mut self, path: String, entry: Entry) -> Result<()> {
        match self.0.get(&path) {
            Some(Entry::Directory { .. }) if matches!(entry, Entry::Directory { .. }) => {}
            Some(_) => bail!("{path}: expected one package to have it, found two"),
            None => {
                self.0.insert(path, entry);
            }
        }
        Ok(())
    }
}

/// Checks that every shared library that a program or library of the image asks for is in the image.
pub(super) fn check_libraries(layers: &[Files]) -> Result<()> {
    let paths = || layers.iter().flat_map(|files| &files.0);
    let present: BTreeSet<&str> = paths().filter_map(|(path, _)| path.rsplit('/').next()).collect();
    for (path, entry) in paths() {
        let Entry::Regular { content, .. } = entry else { continue };
        if !content.starts_with(b"\x7fELF") {
            continue;
        }
        for library in needed(content).with_context(|| format!("{path}: malformed ELF file"))? {
            ensure!(
                present.contains(library.as_str()),
                "{path}: expected {library} among the image's packages, found it in none"
            );
        }
    }
    Ok(())
}

/// Names of the shared libraries that an ELF file asks for (its `DT_NEEDED` entries).
fn needed(elf: &[u8]) -> Result<Vec<String>> {
    let header = FileHeader64::<LittleEndian>::parse(elf)?;
    let endian = header.endian()?;
    let table = header.sections(endian, elf)?.dynamic_table(endian, elf)?;
    let needed = table.iter().filter(|entry| entry.tag == DT_NEEDED);
    needed.map(|entry| Ok(String::from_utf8_lossy(table.string(entry)?).into_owned())).collect()
}
