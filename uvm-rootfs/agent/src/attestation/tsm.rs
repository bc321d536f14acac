//! Evidence through configfs-tsm (Linux's `Documentation/ABI/testing/configfs-tsm`).
//!
//! Each request makes an entry of its own below `/sys/kernel/config/tsm/report`, writes the report data to
//! `inblob`, reads `outblob` and, where there is one, `auxblob`, and removes the entry. The driver commits
//! `inblob` when it is closed, and says nothing if that fails; `generation` counts what was committed, so that a
//! report over other data is noticed.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::mount::{MountFlags, mount};

use super::{Attester, Evidence, EvidenceError};
use crate::error::{Context, Result as AgentResult};

/// The driver of SEV-SNP's secure processor.
pub const SEV_GUEST: &str = "sev_guest";
/// The driver of TDX.
pub const TDX_GUEST: &str = "tdx_guest";

const CONFIGFS: &str = "/sys/kernel/config";
const REPORTS: &str = "/sys/kernel/config/tsm/report";
/// Most bytes of a blob (`TSM_OUTBLOB_MAX`).
const MAX_BLOB: usize = 32 * 1024;
/// Most bytes of a text attribute: configfs shows one page.
const MAX_TEXT: usize = 4096;

/// Mounts configfs.
///
/// # Errors
/// If it cannot be mounted.
pub fn mount_configfs() -> AgentResult<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("configfs", CONFIGFS, "configfs", flags, c"").doing(|| format!("mount configfs at {CONFIGFS}"))
}

/// Attests through one named provider.
#[derive(Debug)]
pub struct Reports {
    provider: &'static str,
    folder: PathBuf,
    entries: AtomicU64,
}

impl Reports {
    /// Reports of `provider`, and of no other.
    #[must_use]
    pub fn new(provider: &'static str) -> Self {
        Self::below(provider, Path::new(REPORTS))
    }

    fn below(provider: &'static str, folder: &Path) -> Self {
        Self { provider, folder: folder.into(), entries: AtomicU64::new(0) }
    }
}

impl Attester for Reports {
    fn evidence(&self, report_data: &[u8; 64]) -> Result<Evidence, EvidenceError> {
        let number = self.entries.fetch_add(1, Ordering::Relaxed);
        let path = self.folder.join(format!("uvm-agent-{number}"));
        let entry = Entry::make(path).map_err(|error| EvidenceError::NoProvider {
            expected: self.provider,
            found: format!("no entry in {}: {error}", self.folder.display()),
        })?;
        converse(&entry, self.provider, report_data)
    }
}

/// The attributes of an entry.
trait Attributes {
    /// What `name` holds, if that is at most `most` bytes.
    fn read(&self, name: &str, most: usize) -> io::Result<Vec<u8>>;
    /// Sets `name`.
    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()>;
}

/// An entry in configfs, removed when it is dropped.
struct Entry(PathBuf);

impl Entry {
    fn make(path: PathBuf) -> io::Result<Self> {
        fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        // An entry that stays costs a little memory; the next one has another name.
        let _ = fs::remove_dir(&self.0);
    }
}

impl Attributes for Entry {
    fn read(&self, name: &str, most: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let limit = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(1);
        File::open(self.0.join(name))?.take(limit).read_to_end(&mut bytes)?;
        if bytes.len() > most { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        // Not created: what is not there is not an attribute.
        File::options().write(true).open(self.0.join(name))?.write_all(bytes)
    }
}

fn converse(
    entry: &impl Attributes,
    provider: &'static str,
    report_data: &[u8; 64],
) -> Result<Evidence, EvidenceError> {
    let failed = |what: &'static str| move |source| EvidenceError::Io { provider, what: what.into(), source };
    let found = entry.read("provider", MAX_TEXT).map_err(failed("read provider"))?;
    let found = found.trim_ascii_end();
    if found != provider.as_bytes() {
        let found = String::from_utf8_lossy(found).chars().take(64).collect();
        return Err(EvidenceError::NoProvider { expected: provider, found });
    }
    let before = generation(entry, provider)?;
    entry.write("inblob", report_data).map_err(failed("write inblob"))?;
    let report = entry.read("outblob", MAX_BLOB).map_err(failed("read outblob"))?;
    let certificates = match entry.read("auxblob", MAX_BLOB) {
        // A provider that never has any hides the attribute.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        other => other.map_err(failed("read auxblob"))?,
    };
    let after = generation(entry, provider)?;
    if after != before.wrapping_add(1) {
        let found = format!("expected generation {}, found {after}", before.wrapping_add(1));
        return Err(EvidenceError::Answer { provider, found });
    }
    if report.is_empty() {
        return Err(EvidenceError::Answer { provider, found: "an empty outblob".into() });
    }
    Ok(Evidence { provider, report, certificates })
}

fn generation(entry: &impl Attributes, provider: &'static str) -> Result<u64, EvidenceError> {
    let failed = |source| EvidenceError::Io { provider, what: "read generation".into(), source };
    let bytes = entry.read("generation", MAX_TEXT).map_err(failed)?;
    let number = std::str::from_utf8(bytes.trim_ascii_end()).ok().and_then(|text| text.parse().ok());
    number.ok_or_else(|| failed(io::ErrorKind::InvalidData.into()))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::HashMap;

    use super::*;

    /// The kernel's side of an entry.
    struct Kernel {
        attributes: RefCell<HashMap<&'static str, Vec<u8>>>,
        /// What a write of `inblob` adds to the generation.
        step: u64,
        /// What it makes the report, before the data.
        report: &'static [u8],
    }

    impl Kernel {
        fn new(provider: &str) -> Self {
            let attributes = HashMap::from([
                ("provider", format!("{provider}\n").into_bytes()),
                ("generation", b"41\n".to_vec()),
                ("auxblob", b"table".to_vec()),
            ]);
            Self { attributes: RefCell::new(attributes), step: 1, report: b"report over " }
        }

        fn without(self, name: &str) -> Self {
            self.attributes.borrow_mut().remove(name);
            self
        }
    }

    impl Attributes for Kernel {
        fn read(&self, name: &str, _: usize) -> io::Result<Vec<u8>> {
            self.attributes.borrow().get(name).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
        }

        fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
            assert_eq!(name, "inblob");
            let mut attributes = self.attributes.borrow_mut();
            let data = if self.report.is_empty() { &[] } else { bytes };
            attributes.insert("outblob", [self.report, data].concat());
            attributes.insert("generation", format!("{}\n", 41 + self.step).into_bytes());
            Ok(())
        }
    }

    #[test]
    fn the_expected_provider_gives_a_report_over_the_data() {
        let evidence = converse(&Kernel::new("sev_guest"), SEV_GUEST, &[5; 64]).unwrap();
        assert_eq!(evidence.provider, "sev_guest");
        assert_eq!(evidence.report, [b"report over ".as_slice(), &[5; 64]].concat());
        assert_eq!(evidence.certificates, b"table");
        let quote = converse(&Kernel::new("tdx_guest").without("auxblob"), TDX_GUEST, &[5; 64]).unwrap();
        assert_eq!(quote.certificates, b"");
    }

    #[test]
    fn anything_else_is_no_evidence() {
        let cases = [
            (Kernel::new("tdx_guest"), "expected sev_guest, found tdx_guest"),
            (Kernel::new(""), "expected sev_guest, found "),
            (Kernel::new("sev_guest").without("provider"), "read provider"),
            (Kernel::new("sev_guest").without("generation"), "read generation"),
            (Kernel { step: 0, ..Kernel::new("sev_guest") }, "expected generation 42, found 41"),
            (Kernel { step: 2, ..Kernel::new("sev_guest") }, "expected generation 42, found 43"),
            (Kernel { report: b"", ..Kernel::new("sev_guest") }, "an empty outblob"),
        ];
        for (kernel, message) in cases {
            let error = converse(&kernel, SEV_GUEST, &[5; 64]).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn without_configfs_there_is_no_provider() {
        let folder = tempfile::tempdir().unwrap();
        let reports = Reports::below(SEV_GUEST, &folder.path().join("tsm/report"));
        let error = reports.evidence(&[0; 64]).unwrap_err();
        assert!(matches!(error, EvidenceError::NoProvider { expected: SEV_GUEST, .. }), "{error}");
        // A directory in which nothing appears is not configfs; nothing is written to it, nothing stays.
        let reports = Reports::below(SEV_GUEST, folder.path());
        assert!(reports.evidence(&[0; 64]).is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn reads_are_bounded_and_writes_create_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let entry = Entry(folder.path().to_owned());
        fs::write(folder.path().join("outblob"), [1; 17]).unwrap();
        assert_eq!(entry.read("outblob", 17).unwrap(), [1; 17]);
        assert_eq!(entry.read("outblob", 16).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(entry.write("inblob", b"x").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
